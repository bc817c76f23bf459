"""The whole program once: train, evaluate, predict a folder, write a report.

    make quickstart
    python -m experiments.quickstart --workdir runs/quickstart

Uses configs/quickstart.py: procedural scenes, nothing is downloaded.  The report is
WORKDIR/report.html, one file with everything in it.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from PIL import Image

from experiments import evaluate, predict, train
from experiments.shared import cli, html
from segjax import files, labels, viz
from segjax.data import datasets
from segjax.workdir import read_metrics

_VOID_COLOR = (255, 255, 255)
IMAGES = 8  # of the validation split that are predicted from files and shown


def quickstart(config: ConfigDict, workdir: Path) -> int:
    """Runs all steps in ``workdir``; returns the exit code."""
    began = time.perf_counter()
    cli.log("1/4 train")
    code = train.train(config, workdir)
    if code:
        return code
    cli.log("2/4 evaluate")
    results = evaluate.evaluate(config, workdir)
    print(evaluate.table(results))
    cli.log("3/4 predict a folder of images")
    source, info = datasets.load(config.data, config.data.eval_split)
    images = workdir / "images"
    images.mkdir(exist_ok=True)
    for i in range(min(IMAGES, len(source))):
        example = source[i]
        cv2.imwrite(str(images / f"{i}.png"), example["image"][..., ::-1])
    predictions = workdir / "predictions"
    predict.predict(
        config, workdir, paths=[str(images)], output=predictions, overwrite=True
    )
    cli.log("4/4 report")
    report = workdir / "report.html"
    files.write_text(
        report, _page(config, workdir, results=results, info=info, source=source)
    )
    scores, baseline = results["scores"], results["majority_baseline"]
    print(
        f"validation mIoU {scores['miou']:.3f} (always the majority class: "
        f"{baseline['miou']:.3f}) in {time.perf_counter() - began:.0f} s\n"
        f"report: {report}"
    )
    return 0


def _page(
    config: ConfigDict,
    workdir: Path,
    *,
    results: dict,
    info: datasets.Dataset,
    source: Sequence[dict],
) -> str:
    """One self-contained page: scores, curves, pictures, the confusion, the commands.

    Args:
      config: of the run.
      workdir: of the run.
      results: of evaluate.
      info: of the data set.
      source: of the split that was predicted.
    """
    scores, baseline = results["scores"], results["majority_baseline"]
    confusion = workdir / "evaluation" / f"{results['split']}_confusion.png"
    return html.page(
        f"{config.model_name} on {info.name}",
        [
            html.paragraph(
                f"Step {results['step']}, {results['images']} images of the "
                f"{results['split']} split.",
                "lead",
            ),
            html.facts(
                {
                    "mIoU": _percent(scores["miou"]),
                    "pixel accuracy": _percent(scores["pixel_accuracy"]),
                    "mIoU of always the majority class": _percent(baseline["miou"]),
                }
            ),
            html.heading("Image, truth, prediction, wrong pixels"),
            html.legend(
                [*info.classes, "void (not scored)"], [*info.palette, _VOID_COLOR]
            ),
            *_predictions(workdir, info, source),
            html.heading("Classes"),
            _class_table(results, info),
            html.heading("Training"),
            html.image(viz.curves_figure(read_metrics(workdir))),
            html.heading("Confusion"),
            html.image_file(confusion),
            html.heading("Files"),
            html.links(
                {
                    "config.json": "every field of the config",
                    "metrics.jsonl": "what was logged, one line per entry",
                    f"evaluation/{results['split']}.json": "scores, confusion matrix",
                    "predictions/labels/0.png": "class ids, with the palette",
                    "predictions/overlays/0.jpg": "prediction over the image",
                }
            ),
            html.heading("The same by hand"),
            html.commands(
                f"python -m experiments.train --config configs/quickstart.py "
                f"--workdir {workdir}\n"
                f"python -m experiments.evaluate --workdir {workdir}\n"
                f"python -m experiments.predict --workdir {workdir} "
                f"--output {workdir}/predictions {workdir}/images"
            ),
        ],
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _class_table(results: dict, info: datasets.Dataset) -> html.Markup:
    rows = [("class", "IoU", "accuracy", "share of pixels")]
    for name, values in results["classes"].items():
        cells = (_percent(values[key]) for key in ("iou", "accuracy", "frequency"))
        rows.append((name, *cells))
    numbers = [False, True, True, True]
    return html.table(rows, numbers=numbers, swatches=info.palette)


def _predictions(
    workdir: Path, info: datasets.Dataset, source: Sequence[dict]
) -> Iterator[html.Markup]:
    """Every pixel of the predicted images, enlarged by a whole factor."""
    for i in range(min(IMAGES, len(source))):
        example = source[i]
        image, truth = example["image"], example["label"]
        label = np.asarray(Image.open(workdir / "predictions" / "labels" / f"{i}.png"))
        gray = np.uint8(image.mean(axis=2, keepdims=True) / 2 + 110)
        void = truth == labels.VOID
        wrong = (label != truth) & ~void
        truth_colors = viz.colorize(truth, info.palette)
        truth_colors[void] = _VOID_COLOR
        columns = [
            np.broadcast_to(image, truth_colors.shape),
            truth_colors,
            viz.colorize(label, info.palette),
            np.where(wrong[..., None], np.uint8([216, 27, 27]), gray),
        ]
        zoom = max(1, 290 // image.shape[1])
        share = wrong.sum() / max(1, (~void).sum())
        captions = ["image", "truth", "prediction", f"{100 * share:.1f} % wrong"]
        yield html.pictures([html.image(x, zoom=zoom) for x in columns], captions)


def main(argv) -> int:
    del argv
    workdir = files.user_path("--workdir", flags.FLAGS.workdir).absolute()
    cli.start(trains=True)
    return quickstart(flags.FLAGS.config, workdir)


if __name__ == "__main__":
    # A default of the flag would be parsed before errors can be reported.
    if not cli.flag_value("config"):
        sys.argv.insert(1, "--config=configs/quickstart.py")
    config_flags.DEFINE_config_file("config", None, "Default: configs/quickstart.py.")
    flags.DEFINE_string("workdir", "runs/quickstart", "Where everything is written.")
    cli.run(main)
