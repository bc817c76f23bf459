"""Scores a trained model on a dataset split.

    python -m experiments.evaluate --workdir /tmp/run
    python -m experiments.evaluate --workdir /tmp/run --split test --checkpoint latest
    python -m experiments.evaluate --workdir /tmp/run --config.data.root=/other/folder
    python -m experiments.evaluate --workdir /tmp/run --crf=deeplab_v1 --trimap
    python -m experiments.evaluate --workdir /tmp/run --window=473 --flip \\
        --scales=0.75,1,1.25 --ensemble=/tmp/run2

Prints pixel accuracy, mean accuracy, mIoU and frequency-weighted IoU (one confusion
matrix over all images; segjax/metrics.py defines them) with a table per class, beside
the baseline of always answering the most frequent class.  Writes them as
evaluation/SPLIT.json with SPLIT_confusion.png and pictures into the workdir or into
--output.
--config.* overrides fields of the run's own config.  The images are predicted as
experiments.predict would: --tile, --window, --stride, --scales, --flip, --ensemble (or
more workdirs as arguments) and --checkpoint mean the same; without --tile and --window
an image of any size is predicted in one piece.  With config.data.resize images and
labels are resized first, and the scores are those of the resized labels.

--crf adds the same scores after a fully connected CRF: "config" takes the fields
config.crf, FILE.json what experiments.tune_crf has found, other names published
parameters (docs/crf.md).  --trimap adds the scores within 1 to 40 pixels of the
boundaries of the true labels, as a curve and as numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import ConfigDict

from experiments.shared import cli, evaluation, predict_flags
from segjax import (
    compilation,
    evaluators,
    files,
    inference,
    metrics,
    sharding,
    tables,
    viz,
)
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets, pipeline
from segjax.inference import collection
from segjax.ops import mean_field

TRIMAP_RADIUS = 40  # pixels, as in DeepLab


def evaluate(
    config: ConfigDict,
    workdir: Path,
    *,
    checkpoint: str = "best",
    split: str = "",
    output: Path | None = None,
    options: inference.PredictOptions | None = None,
    ensemble: Sequence[str] = (),
    crf: str = "",
    trimap: bool = False,
) -> dict:
    """Evaluates the checkpoints, writes the results and returns them."""
    config_lib.check(config)
    settings = predict_flags.crf_settings(config, crf)
    split = split or config.data.eval_split
    output = output or workdir / "evaluation"
    source, info = datasets.load(config.data, split)
    workdir_lib.check_same_classes(workdir_lib.read_dataset(workdir), info)
    sharding.check_batch_size(config.eval_batch_size, "eval_batch_size")
    mesh = sharding.make_mesh()
    segmenter = inference.load(
        workdir,
        *ensemble,
        checkpoint=checkpoint,
        options=options,
        config=config,
        mesh=mesh,
    )
    fingerprint = datasets.fingerprint(source)
    known = workdir_lib.read_splits(workdir)
    for note in _notes(config, segmenter, known, split=split, source=source):
        cli.log(f"note: {note}")
    cli.make_folder(output)
    eval_step = _make_eval_step(
        segmenter, settings, radius=TRIMAP_RADIUS if trimap else 0
    )
    bar = tqdm.tqdm(
        evaluation.eval_batches(config, source, info.channels),
        total=len(pipeline.eval_plan(source.sizes, config.eval_batch_size)),
        desc=f"evaluate {split}",
        unit="batch",
        disable=jax.process_index() > 0,
    )
    h, shown = evaluators.evaluate(
        eval_step,
        segmenter.variables,
        batches=bar,
        mesh=mesh,
        pictures=config.eval_images,
    )
    baseline = metrics.majority_baseline(h[0, -1])
    results = {
        "dataset": info.name,
        "split": split,
        "images": len(source),
        "fingerprint": fingerprint,
        "image_size": sorted(set(source.sizes))[:4],
        "step": segmenter.steps[0],
        "models": [
            {"path": str(path), "step": step}
            for path, step in zip((workdir, *ensemble), segmenter.steps)
        ],
        "options": segmenter.options._asdict(),
        "majority_baseline": {name: baseline[name] for name in metrics.SCORES},
    } | _results(h[0], info)
    if settings:
        results["crf"] = {"settings": settings._asdict()} | _results(h[1], info)
    if jax.process_index() == 0:
        _write(output, split, h=h, results=results, shown=shown, info=info)
    return results


def _notes(
    config: ConfigDict,
    segmenter: inference.Segmenter,
    known: Mapping[str, workdir_lib.Split],
    *,
    split: str,
    source: datasets.Source,
) -> Iterator[str]:
    """What a reader of the scores might not expect.

    Args:
      config: of the evaluation.
      segmenter: what is evaluated.
      known: the splits that the run trained and evaluated on, by name.
      split: name of the split that is evaluated.
      source: its images.
    """
    fingerprint, train = datasets.fingerprint(source), config.data.train_split
    if train in known and known[train].fingerprint == fingerprint:
        yield f"the images of the split {split!r} are those that the run trained on"
    elif split in known and known[split].fingerprint != fingerprint:
        yield (
            f"the images of the split {split!r} are not those of the training run "
            f"({known[split].images} then, {len(source)} now; their names or sizes "
            "differ)"
        )
    limit, options = collection.MAX_PIXELS, segmenter.options
    large = sum(h * w > limit for h, w in source.sizes)
    if large and not (any(segmenter.resize) or options.window or options.tile):
        yield (
            f"{large} images of more than {limit} pixels are predicted in one piece, "
            "by experiments.predict in parts: give both --window or --tile"
        )


def _write(
    output: Path,
    split: str,
    *,
    h: np.ndarray,
    results: dict,
    shown: Sequence[dict],
    info: datasets.Dataset,
) -> None:
    """Writes results, confusion matrix, curves and pictures."""
    columns = {"model": results}
    if "crf" in results:
        columns["with CRF"] = results["crf"]
    files.write_json(output / f"{split}.json", results)
    figures = {"confusion": viz.confusion_figure(h[-1, -1], info.classes)}
    if "trimap" in results:
        curves = {name: column["trimap"] for name, column in columns.items()}
        figures["trimap"] = viz.trimap_figure(curves)
    for name, png in figures.items():
        with files.atomic_write(output / f"{split}_{name}.png") as partial:
            partial.write_bytes(png)
    for i, example in enumerate(shown):
        picture = viz.panel(
            example["image"],
            example["label"],
            prediction=example["prediction"],
            palette=info.palette,
            captions=["image", "truth", *columns],
        )
        cv2.imwrite(str(output / f"{split}_{i}.png"), picture[..., ::-1])


def _make_eval_step(
    segmenter: inference.Segmenter,
    crf: mean_field.Settings | None,
    *,
    radius: int,
) -> Callable:
    """Like ``evaluation.make_eval_step``, for predictions without and with a CRF."""
    mesh = segmenter.mesh
    split = sharding.split(mesh)
    predictor = inference.compose(segmenter.models, segmenter.options)
    predictor = compilation.precision(segmenter.precision)(predictor)
    predict = jax.jit(predictor, out_shardings=split)
    score = jax.jit(
        evaluators.make_score(len(segmenter.info.classes), radius),
        out_shardings=(sharding.replicated(mesh), split),
    )

    def step(variables: tuple, batch: dict) -> tuple[jax.Array, jax.Array]:
        columns = [predict(variables, batch["image"])]
        if crf:
            columns.append(
                inference.refine(*columns, batch["image"], settings=crf, mesh=mesh)
            )
        return score(batch["label"], *columns)

    return step


def _results(h: np.ndarray, info: datasets.Dataset) -> dict:
    """Scores of the confusion matrices of ``metrics.band_confusion``."""
    scores, bands = metrics.scores(h[-1]), [metrics.scores(band) for band in h[:-1]]
    results = {
        "scores": {name: scores[name] for name in metrics.SCORES},
        "classes": {
            name: {key: _number(scores[key][i]) for key in metrics.PER_CLASS}
            for i, name in enumerate(info.classes)
        },
        "confusion": h[-1].tolist(),
    }
    if bands:
        results["trimap"] = {"radius": list(range(1, len(h)))} | {
            name: [_number(band[name]) for band in bands] for name in metrics.SCORES
        }
    return results


def _number(value: float) -> float | None:
    """JSON has no NaN: absent classes are null."""
    return None if np.isnan(value) else float(value)


def table(results: dict) -> str:
    """The results as aligned text."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.2f}"

    crf = results.get("crf", {})
    titles = {"iou": "IoU"}
    rows = [["class", *(titles.get(name, name) for name in metrics.PER_CLASS)]]
    rows[0] += ["with CRF", "change"] if crf else []
    for name, row in results["classes"].items():
        rows.append([name, *(percent(row[key]) for key in metrics.PER_CLASS)])
        if crf:
            after = crf["classes"][name]["iou"]
            both = None not in (after, row["iou"])
            rows[-1] += [percent(after), percent(after - row["iou"] if both else None)]
    parts = [tables.text_table(rows)]

    columns = {"model": results["scores"], "with CRF": crf.get("scores")}
    columns["majority class"] = results["majority_baseline"]
    rows = [["", *(score.title for score in metrics.SCORES.values())]]
    for name, scores in columns.items():
        if scores:
            rows.append([name, *(percent(scores[key]) for key in metrics.SCORES)])
    parts.append(tables.text_table(rows))

    if trimap := results.get("trimap"):
        curves = {"model": trimap} | ({"with CRF": crf["trimap"]} if crf else {})
        rows = [["mIoU near boundaries", *curves]]
        for i in (0, 4, 9, 19, 39):
            scores = [percent(curve["miou"][i]) for curve in curves.values()]
            rows.append([f"within {i + 1:2} px", *scores])
        parts.append(tables.text_table(rows))
    sizes = ", ".join(f"{h}x{w}" for h, w in results["image_size"])
    parts.append(
        f"{results['images']} images of {results['dataset']}/{results['split']} "
        f"({sizes}), step {results['step']}"
    )
    return "\n\n".join(parts)


def main(argv) -> None:
    values = flags.FLAGS
    options = predict_flags.options(values.config)
    ensemble = predict_flags.ensemble(argv[1:])
    cli.start()
    workdir = Path(values.workdir).expanduser().absolute()
    output = Path(values.output).expanduser() if values.output else None
    results = evaluate(
        values.config,
        workdir,
        checkpoint=values.checkpoint,
        split=values.split,
        output=output,
        options=options,
        ensemble=ensemble,
        crf=values.crf,
        trimap=values.trimap,
    )
    if jax.process_index() == 0:
        print(table(results))
        print(f"written to {output or workdir / 'evaluation'}")


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_string("split", "", "Of the dataset; '': config.data.eval_split.")
    flags.DEFINE_string("output", "", "Folder; '': WORKDIR/evaluation.")
    predict_flags.define()
    flags.adopt_module_key_flags(predict_flags)  # for --help
    flags.DEFINE_bool("trimap", False, "Also score bands around label boundaries.")
    cli.run(main, positional=True)
