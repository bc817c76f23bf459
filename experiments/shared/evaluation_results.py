"""Results of an evaluation: as JSON, as tables, and by image as CSV and pictures."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from experiments.shared.evaluation_images import IMAGE_SCORES, Collected, Row
from experiments.shared.evaluation_stages import ScoredImage, Stage
from segjax import files, metrics, scoring, tables, viz
from segjax.data import datasets

PICTURE_SIDE = 2048
"""Pictures of larger images are reduced to about this side."""


def results(
    collected: Collected,
    stages: Sequence[Stage],
    *,
    info: datasets.Dataset,
    chosen: dict[str, scoring.ImageMetric],
) -> dict:
    """The scores of all stages.

    Returns:
      ``stages`` says under which key the scores of each stage are, by its title; "" is
      the top, where those of the last stage before the CRF are, or of the only one.
    """
    h = collected.confusion
    baseline = metrics.majority_baseline(h[0, -1])
    found: dict[str, Any] = {
        "majority_baseline": {name: baseline[name] for name in metrics.SCORES},
        "stages": {stage.title: stage.key for stage in stages},
    }
    for index, stage in enumerate(stages):
        scores = _scores(h[index], info)
        if chosen:
            scores["metrics"] = {
                name: _numbers(
                    metric.combine(
                        [row.measured[index][name] for row in collected.rows]
                    )
                )
                for name, metric in chosen.items()
            }
        if stage.key:
            found[stage.key] = scores
        if not stage.key or len(stages) == 1:
            found |= scores
    return found


def _scores(h: np.ndarray, info: datasets.Dataset) -> dict:
    """Scores of the confusion matrices of ``metrics.band_confusion``."""
    scores, bands = metrics.scores(h[-1]), [metrics.scores(band) for band in h[:-1]]
    found = {
        "scores": {name: scores[name] for name in metrics.SCORES},
        "classes": {
            name: {key: _number(scores[key][i]) for key in metrics.PER_CLASS}
            for i, name in enumerate(info.classes)
        },
        "confusion": h[-1].tolist(),
    }
    if bands:
        found["trimap"] = {"radius": list(range(1, len(h)))} | {
            name: [_number(band[name]) for band in bands] for name in metrics.SCORES
        }
    return found


def _number(value: float | None) -> float | None:
    """JSON has no NaN: what is not defined is null."""
    return None if value is None or np.isnan(value) else float(value)


def _numbers(values: dict[str, Any]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in values.items()}


def columns(found: dict) -> dict[str, dict]:
    """The scores of each stage by its title."""
    return {
        title: found[key] if key else found for title, key in found["stages"].items()
    }


# Files


def write(
    output: Path,
    split: str,
    *,
    found: dict,
    collected: Collected,
    info: datasets.Dataset,
    chosen: dict[str, scoring.ImageMetric],
) -> None:
    """Writes the rows of the images, figures, and the results.

    These come last, and earlier ones go first: they say what the other files are of.
    """
    (output / f"{split}.json").unlink(missing_ok=True)
    files.write_text(
        output / f"{split}_images.csv",
        image_table(collected.rows, list(found["stages"].values()), chosen=chosen),
    )
    last = list(columns(found).values())[-1]
    figures = {"confusion": viz.confusion_figure(last["confusion"], info.classes)}
    if "trimap" in last:
        curves = {name: column["trimap"] for name, column in columns(found).items()}
        figures["trimap"] = viz.trimap_figure(curves)
    for name, png in figures.items():
        with files.atomic_write(output / f"{split}_{name}.png") as partial:
            partial.write_bytes(png)
    files.write_json(output / f"{split}.json", found)


def image_table(
    rows: Sequence[Row],
    keys: Sequence[str],
    *,
    chosen: dict[str, scoring.ImageMetric],
) -> str:
    """One CSV line per image: its scores, and the metrics of it alone, of each stage.

    Args:
      rows: of the images.
      keys: of the stages; columns of the stage "" have no prefix.
      chosen: the metrics that were measured.
    """
    lines = []
    for row in rows:
        line: dict[str, Any] = {"id": row.id}
        line |= dict(zip(("height", "width"), row.size))
        for key, scores, measured in zip(keys, row.scores, row.measured, strict=True):
            prefix = f"{key}_" if key and len(keys) > 1 else ""
            values: dict[str, Any] = {name: scores[name] for name in IMAGE_SCORES}
            for name, metric in chosen.items():
                values |= metric.combine([measured[name]])
            line |= {prefix + name: _number(value) for name, value in values.items()}
        lines.append(line)
    text = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def write_pictures(
    output: Path,
    split: str,
    *,
    collected: Collected,
    stages: Sequence[Stage],
    info: datasets.Dataset,
    first: bool,
) -> None:
    """Writes pictures of the first images (process 0) and of the worst ones.

    Args:
      output: folder.
      split: its name begins the names of the files.
      collected: the images.
      stages: a column of each picture for each.
      info: of the data set.
      first: whether to write the first images.
    """
    titles = [stage.title for stage in stages]
    pictures: dict[str, tuple[ScoredImage, list[str]]] = {}
    if first:
        for number, image in enumerate(collected.shown):
            pictures[str(number)] = image, ["image", "truth", *titles]
    for rank, image in collected.worst:
        mious = [metrics.scores(h[-1])["miou"] for h in image.confusion]
        captions = [f"{t} {100 * miou:.1f}" for t, miou in zip(titles, mious)]
        pictures[f"worst_{rank}"] = image, [image.id, "truth", *captions]
    for name, (image, captions) in pictures.items():
        step = -(-max(image.label.shape) // PICTURE_SIDE)
        picture = viz.panel(
            image.image[::step, ::step],
            image.label[::step, ::step],
            prediction=image.predictions[:, ::step, ::step],
            palette=info.palette,
            captions=captions,
        )
        data = cv2.imencode(".png", picture[..., ::-1])[1]
        with files.atomic_write(output / f"{split}_{name}.png") as partial:
            partial.write_bytes(data)


# Text


def table(found: dict) -> str:
    """The results as aligned text."""
    parts = [
        tables.text_table(list(rows))
        for rows in (
            _class_rows(found),
            _score_rows(found),
            _metric_rows(found),
            _band_rows(found),
        )
        if rows
    ]
    sizes = ", ".join(f"{h}x{w}" for h, w in found["image_size"])
    if more := found["image_sizes"] - len(found["image_size"]):
        sizes += f" and {more} other sizes"
    step = f", step {found['step']}" if "step" in found else ""
    parts.append(
        f"{found['images']} images of {found['dataset']}/{found['split']} ({sizes})"
        f"{step}"
    )
    return "\n\n".join(parts)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _class_rows(found: dict) -> list[list[str]]:
    """Numbers of each class in the first stage, then its IoU in the later ones."""
    (first, *later), titles = columns(found).values(), list(found["stages"])[1:]
    names = {"iou": "IoU"}
    head = ["class", *(names.get(name, name) for name in metrics.PER_CLASS)]
    rows = [head + titles + (["change"] if later else [])]
    for name, row in first["classes"].items():
        ious = [stage["classes"][name]["iou"] for stage in later]
        line = [name, *(_percent(row[key]) for key in metrics.PER_CLASS)]
        line += [_percent(iou) for iou in ious]
        if ious:
            both = None not in (ious[-1], row["iou"])
            line.append(_percent(ious[-1] - row["iou"] if both else None))
        rows.append(line)
    return rows


def _score_rows(found: dict) -> list[list[str]]:
    scores = {title: stage["scores"] for title, stage in columns(found).items()}
    scores["majority class"] = found["majority_baseline"]
    rows = [["", *(score.title for score in metrics.SCORES.values())]]
    for title, values in scores.items():
        rows.append([title, *(_percent(values[key]) for key in metrics.SCORES)])
    return rows


def _metric_rows(found: dict) -> list[list[str]]:
    """A row per number of a metric; they are not all shares, so not in percent."""
    rows = [["", *found["stages"]]]
    for name in found.get("metrics", {}):
        stages = [stage["metrics"][name] for stage in columns(found).values()]
        for number in stages[0]:
            values = [stage[number] for stage in stages]
            rows.append([number, *("-" if v is None else f"{v:.4f}" for v in values)])
    return rows if len(rows) > 1 else []


def _band_rows(found: dict) -> list[list[str]]:
    if "trimap" not in found:
        return []
    curves = {title: stage["trimap"] for title, stage in columns(found).items()}
    rows = [["mIoU near boundaries", *curves]]
    for i in (0, 4, 9, 19, 39):
        scores = [_percent(curve["miou"][i]) for curve in curves.values()]
        rows.append([f"within {i + 1:2} px", *scores])
    return rows


def notes(
    known: dict, *, split: str, train_split: str, source: datasets.Source
) -> Iterator[str]:
    """What a reader of the scores might not expect.

    Args:
      known: the splits that the run trained and evaluated on, by name.
      split: name of the split that is evaluated.
      train_split: name of the split that the run trained on.
      source: the images that are evaluated.
    """
    fingerprint = datasets.fingerprint(source)
    if train_split in known and known[train_split].fingerprint == fingerprint:
        yield f"the images of the split {split!r} are those that the run trained on"
    elif split in known and known[split].fingerprint != fingerprint:
        yield (
            f"the images of the split {split!r} are not those of the training run "
            f"({known[split].images} then, {len(source)} now; their names or sizes "
            "differ)"
        )
