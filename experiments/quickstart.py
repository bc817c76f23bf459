"""The whole program once: train, evaluate, predict a folder, write a report.

    make quickstart
    python -m experiments.quickstart --workdir runs/quickstart

Uses configs/quickstart.py: procedural scenes, nothing is downloaded.  The report is
WORKDIR/report.html, one file with everything in it.
"""

import base64
import html
import sys
import time
from pathlib import Path

import cv2
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments import evaluate, predict, train
from experiments.shared import cli
from segjax import viz
from segjax.data import datasets
from segjax.workdir import read_metrics


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
    for i in range(8):
        example = source[i]
        cv2.imwrite(str(images / f"{i}.png"), example["image"][..., ::-1])
    predictions = workdir / "predictions"
    predict.predict(config, workdir, [str(images)], predictions, overwrite=True)
    cli.log("4/4 report")
    report = workdir / "report.html"
    report.write_text(_report(config, workdir, results, info))
    scores, baseline = results["scores"], results["majority_baseline"]
    print(
        f"validation mIoU {scores['miou']:.3f} (always the majority class: "
        f"{baseline['miou']:.3f}) in {time.perf_counter() - began:.0f} s\n"
        f"report: {report}"
    )
    return 0


def _report(config: ConfigDict, workdir: Path, results: dict, info) -> str:
    """One self-contained page: curves, pictures, the table, the commands."""

    def picture(data: bytes, kind: str = "png", style: str = "") -> str:
        code = base64.b64encode(data).decode()
        return f'<img style="{style}" src="data:image/{kind};base64,{code}">'

    panels = sorted((workdir / "evaluation").glob("*_[0-9]*.png"))
    overlays = sorted((workdir / "predictions" / "overlays").glob("*.jpg"))
    wide = "width:100%;image-rendering:pixelated"
    small = "width:24%;image-rendering:pixelated"
    legend = viz.legend(info.classes, info.palette)
    legend = cv2.imencode(".png", legend[..., ::-1])[1].tobytes()
    confusion = workdir / "evaluation" / f"{results['split']}_confusion.png"
    parts = [
        "<!doctype html><meta charset=utf-8><title>segjax quickstart</title>",
        "<body style='font:15px sans-serif;max-width:60em;margin:2em auto'>",
        f"<h1>{html.escape(config.model_name)} on {html.escape(info.name)}</h1>",
        f"<pre>{html.escape(evaluate.table(results))}</pre>",
        "<h2>Training</h2>",
        picture(viz.curves_figure(read_metrics(workdir)), style="width:100%"),
        "<h2>Validation: image, truth, prediction</h2>",
        picture(legend),
        *(picture(path.read_bytes(), style=wide) for path in panels),
        "<h2>Confusion (rows: truth)</h2>",
        picture(confusion.read_bytes(), style="width:100%"),
        "<h2>Predicted folder</h2>",
        *(picture(path.read_bytes(), "jpeg", small) for path in overlays),
        "<h2>The same by hand</h2><pre>",
        html.escape(
            f"python -m experiments.train --config configs/quickstart.py "
            f"--workdir {workdir}\n"
            f"python -m experiments.evaluate --workdir {workdir}\n"
            f"python -m experiments.predict --workdir {workdir} "
            f"--output {workdir}/predictions {workdir}/images"
        ),
        "</pre>",
    ]
    return "\n".join(parts)


def main(argv) -> int:
    del argv
    cli.start()
    workdir = Path(flags.FLAGS.workdir).expanduser().absolute()
    return quickstart(flags.FLAGS.config, workdir)


if __name__ == "__main__":
    # A default of the flag would be parsed before errors can be reported.
    if not cli.flag_value("config"):
        sys.argv.insert(1, "--config=configs/quickstart.py")
    config_flags.DEFINE_config_file("config", None, "Default: configs/quickstart.py.")
    flags.DEFINE_string("workdir", "runs/quickstart", "Where everything is written.")
    cli.run(main)
