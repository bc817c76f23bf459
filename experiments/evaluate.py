"""Scores a trained model on a dataset split.

    python -m experiments.evaluate --workdir /tmp/run
    python -m experiments.evaluate --workdir /tmp/run --split test --checkpoint latest
    python -m experiments.evaluate --workdir /tmp/run --config.data.root=/other/folder

Prints pixel accuracy, mean accuracy, mIoU and frequency-weighted IoU (one confusion
matrix over all images; segjax/metrics.py defines them) with a table per class, beside
the baseline of always answering the most frequent class.  Writes them as
evaluation/SPLIT.json with SPLIT_confusion.png and pictures into the workdir or into
--output.
--config.* overrides fields of the run's own config.
"""

import json
from pathlib import Path

import cv2
import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import ConfigDict

from experiments import cli, common
from segjax import config as config_lib
from segjax import evaluators, metrics, sharding, viz
from segjax.data import datasets, pipeline

NAMES = ("pixel_accuracy", "mean_accuracy", "miou", "fwiou")


def evaluate(
    config: ConfigDict,
    workdir: Path,
    which: str = "best",
    split: str = "",
    output: Path | None = None,
) -> dict:
    """Evaluates a checkpoint of ``workdir``, writes the results and returns them."""
    config_lib.check(config)
    split = split or config.data.eval_split
    output = output or workdir / "evaluation"
    source, info = datasets.load(config.data, split)
    trained = common.load_dataset(workdir / "dataset.json")
    common.check_same_classes(trained, info)
    sharding.check_batch_size(config.eval_batch_size, "eval_batch_size")
    mesh = sharding.make_mesh()
    model, variables, step = common.load_model(config, workdir, info, which, mesh)
    common.make_folder(output)
    eval_step = common.make_eval_step(config, model, len(info.classes), mesh)
    batches = common.eval_batches(config, source, info.channels)
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
    scores, baseline = metrics.scores(h), metrics.majority_baseline(h)
    results = {
        "dataset": info.name,
        "split": split,
        "images": len(source),
        "image_size": sorted(set(sizes))[:4],
        "step": step,
        "scores": {name: scores[name] for name in NAMES},
        "majority_baseline": {name: baseline[name] for name in NAMES},
        "classes": {
            name: {
                "iou": _number(scores["iou"][i]),
                "accuracy": _number(scores["accuracy"][i]),
                "frequency": _number(scores["frequency"][i]),
            }
            for i, name in enumerate(info.classes)
        },
        "confusion": h.tolist(),
    }
    if jax.process_index() == 0:
        (output / f"{split}.json").write_text(json.dumps(results, indent=1) + "\n")
        (output / f"{split}_confusion.png").write_bytes(
            viz.confusion_figure(h, info.classes)
        )
        for i, example in enumerate(shown):
            picture = viz.panel(
                example["image"], example["label"], example["prediction"], info.palette
            )
            cv2.imwrite(str(output / f"{split}_{i}.png"), picture[..., ::-1])
    return results


def _number(value: float) -> float | None:
    """JSON has no NaN: absent classes are null."""
    return None if np.isnan(value) else float(value)


def table(results: dict) -> str:
    """The results as aligned text."""

    def cell(value: float | None) -> str:
        return f"{'-':>9}" if value is None else f"{100 * value:9.2f}"

    width = max(len(name) for name in [*results["classes"], "majority class"])
    lines = [f"{'class':{width}}      IoU  accuracy frequency"]
    for name, row in results["classes"].items():
        cells = (cell(row[key]) for key in ("iou", "accuracy", "frequency"))
        lines.append(f"{name:{width}}" + " ".join(cells))
    lines += ["", " " * width + "pixel acc  mean acc      mIoU    fw IoU"]
    for name, key in (("model", "scores"), ("majority class", "majority_baseline")):
        lines.append(f"{name:{width}}" + " ".join(cell(results[key][n]) for n in NAMES))
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
    results = evaluate(values.config, workdir, values.checkpoint, values.split, output)
    if jax.process_index() == 0:
        print(table(results))
        print(f"written to {output or workdir / 'evaluation'}")


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_string("checkpoint", "best", "'best', 'latest' or a step.")
    flags.DEFINE_string("split", "", "Of the dataset; '': config.data.eval_split.")
    flags.DEFINE_string("output", "", "Folder; '': WORKDIR/evaluation.")
    cli.run(main)
