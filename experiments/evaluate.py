"""Scores a trained model on a dataset split.

    python -m experiments.evaluate --workdir /tmp/run
    python -m experiments.evaluate --workdir /tmp/run --split test --checkpoint latest
    python -m experiments.evaluate --workdir /tmp/run --config.data.root=/other/folder
    python -m experiments.evaluate --workdir /tmp/run --crf=deeplab_v1 --trimap

Prints pixel accuracy, mean accuracy, mIoU and frequency-weighted IoU (one confusion
matrix over all images; segjax/metrics.py defines them) with a table per class, beside
the baseline of always answering the most frequent class.  Writes them as
evaluation/SPLIT.json with SPLIT_confusion.png and pictures into the workdir or into
--output.
--config.* overrides fields of the run's own config.

--crf adds the same scores after a fully connected CRF: "config" takes the fields
config.crf, FILE.json what experiments.tune_crf has found, other names published
parameters (docs/crf.md).  --trimap adds the scores within 1 to 40 pixels of the
boundaries of the true labels, as a curve and as numbers.
"""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import jax
import numpy as np
import tqdm
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.shared import cli, evaluation, predict_flags
from segjax import config as config_lib
from segjax import evaluators, inference, metrics, sharding, viz
from segjax import workdir as workdir_lib
from segjax.data import datasets, pipeline
from segjax.inference.trained import load_model
from segjax.ops import mean_field

NAMES = ("pixel_accuracy", "mean_accuracy", "miou", "fwiou")
TRIMAP_RADIUS = 40  # pixels, as in DeepLab


def evaluate(
    config: ConfigDict,
    workdir: Path,
    which: str = "best",
    split: str = "",
    output: Path | None = None,
    crf: str = "",
    trimap: bool = False,
) -> dict:
    """Evaluates a checkpoint of ``workdir``, writes the results and returns them."""
    config_lib.check(config)
    settings = predict_flags.crf_settings(config, crf)
    split = split or config.data.eval_split
    output = output or workdir / "evaluation"
    source, info = datasets.load(config.data, split)
    trained = workdir_lib.read_dataset(workdir)
    workdir_lib.check_same_classes(trained, info)
    sharding.check_batch_size(config.eval_batch_size, "eval_batch_size")
    mesh = sharding.make_mesh()
    model, variables, step = load_model(config, workdir, info, which, mesh)
    cli.make_folder(output)
    radius = TRIMAP_RADIUS if trimap else 0
    eval_step = _make_eval_step(
        config, model, settings, len(info.classes), radius, mesh
    )
    batches = evaluation.eval_batches(config, source, info.channels)
    sizes = source.sizes
    total = len(pipeline.eval_plan(sizes, config.eval_batch_size))
    bar = tqdm.tqdm(
        batches,
        total=total,
        desc=f"evaluate {split}",
        unit="batch",
        disable=jax.process_index() > 0,
    )
    h, shown = evaluators.evaluate(eval_step, variables, bar, mesh, config.eval_images)
    baseline = metrics.majority_baseline(h[0, -1])
    results = {
        "dataset": info.name,
        "split": split,
        "images": len(source),
        "image_size": sorted(set(sizes))[:4],
        "step": step,
        "majority_baseline": {name: baseline[name] for name in NAMES},
    } | _results(h[0], info)
    curves, captions = {"model": results.get("trimap")}, ["image", "truth", "model"]
    if settings:
        results["crf"] = {"settings": settings._asdict()} | _results(h[1], info)
        curves["with CRF"] = results["crf"].get("trimap")
        captions += ["with CRF"]
    if jax.process_index() == 0:
        (output / f"{split}.json").write_text(json.dumps(results, indent=1) + "\n")
        (output / f"{split}_confusion.png").write_bytes(
            viz.confusion_figure(h[-1, -1], info.classes)
        )
        if trimap:
            (output / f"{split}_trimap.png").write_bytes(viz.trimap_figure(curves))
        for i, example in enumerate(shown):
            picture = viz.panel(
                example["image"],
                example["label"],
                example["prediction"],
                info.palette,
                captions,
            )
            cv2.imwrite(str(output / f"{split}_{i}.png"), picture[..., ::-1])
    return results


def _make_eval_step(
    config: ConfigDict,
    model: nn.Module,
    settings: mean_field.Settings | None,
    classes: int,
    radius: int,
    mesh: jax.sharding.Mesh,
) -> Callable:
    """Like ``evaluation.make_eval_step``, of the predictions without and with a CRF."""
    places = sharding.replicated(mesh), sharding.split(mesh)
    predict = jax.jit(evaluation.make_predictor(config, model), out_shardings=places[1])
    score = jax.jit(evaluators.make_score(classes, radius), out_shardings=places)

    def step(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        found = [predict(variables, batch["image"])]
        if settings:
            found.append(inference.refine(*found, batch["image"], settings, mesh))
        return score(batch["label"], *found)

    return step


def _results(h: np.ndarray, info: datasets.Dataset) -> dict:
    """Scores of the confusion matrices of ``metrics.band_confusion``."""
    scores, bands = metrics.scores(h[-1]), [metrics.scores(band) for band in h[:-1]]
    results = {
        "scores": {name: scores[name] for name in NAMES},
        "classes": {
            name: {
                "iou": _number(scores["iou"][i]),
                "accuracy": _number(scores["accuracy"][i]),
                "frequency": _number(scores["frequency"][i]),
            }
            for i, name in enumerate(info.classes)
        },
        "confusion": h[-1].tolist(),
    }
    if bands:
        results["trimap"] = {"radius": list(range(1, len(h)))} | {
            name: [_number(band[name]) for band in bands] for name in NAMES
        }
    return results


def _number(value: float) -> float | None:
    """JSON has no NaN: absent classes are null."""
    return None if np.isnan(value) else float(value)


def table(results: dict) -> str:
    """The results as aligned text."""

    def cell(value: float | None) -> str:
        return f"{'-':>9}" if value is None else f"{100 * value:9.2f}"

    crf = results.get("crf", {})
    rows = {"model": results["scores"], "with CRF": crf.get("scores")}
    rows["majority class"] = results["majority_baseline"]
    width = max(len(name) for name in [*results["classes"], *rows])
    lines = [f"{'class':{width}}      IoU  accuracy frequency"]
    lines[0] += "  with CRF    change" if crf else ""
    for name, row in results["classes"].items():
        cells = [cell(row[key]) for key in ("iou", "accuracy", "frequency")]
        if crf:
            after = crf["classes"][name]["iou"]
            both = None not in (after, row["iou"])
            cells += [cell(after), cell(after - row["iou"] if both else None)]
        lines.append(f"{name:{width}}" + " ".join(cells))
    lines += ["", " " * width + "pixel acc  mean acc      mIoU    fw IoU"]
    for name, row in rows.items():
        if row:
            lines.append(f"{name:{width}}" + " ".join(cell(row[n]) for n in NAMES))
    if trimap := results.get("trimap"):
        lines += ["", "mIoU near boundaries" + ("      model  with CRF" if crf else "")]
        for i in (0, 4, 9, 19, 39):
            curves = [trimap, crf["trimap"]] if crf else [trimap]
            cells = [cell(curve["miou"][i]) for curve in curves]
            lines.append(f"  within {i + 1:2} px       " + " ".join(cells))
    sizes = ", ".join(f"{h}x{w}" for h, w in results["image_size"])
    lines.append(
        f"{results['images']} images of {results['dataset']}/{results['split']} "
        f"({sizes}), step {results['step']}"
    )
    return "\n".join(lines)


def main(argv) -> None:
    del argv
    cli.start()
    values = flags.FLAGS
    workdir = Path(values.workdir).expanduser().absolute()
    output = Path(values.output).expanduser() if values.output else None
    results = evaluate(
        values.config,
        workdir,
        values.checkpoint,
        values.split,
        output,
        values.crf,
        values.trimap,
    )
    if jax.process_index() == 0:
        print(table(results))
        print(f"written to {output or workdir / 'evaluation'}")


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_string("checkpoint", "best", "'best', 'latest' or a step.")
    flags.DEFINE_string("split", "", "Of the dataset; '': config.data.eval_split.")
    flags.DEFINE_string("output", "", "Folder; '': WORKDIR/evaluation.")
    flags.DEFINE_string("crf", "", predict_flags.CRF_HELP)
    flags.DEFINE_bool("trimap", False, "Also score bands around label boundaries.")
    cli.run(main)
