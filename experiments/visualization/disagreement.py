"""Where two runs disagree, and which of them is right."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm

from experiments.visualization import inputs
from segjax import heatmaps, inference, viz
from segjax.data import datasets
from segjax.errors import UserError
from segjax.inference import collection
from segjax.labels import VOID

# Colors that the color-blind tell apart (Okabe and Ito); agreement is the gray image.
COLORS = {
    "A right, B wrong": (0, 114, 178),
    "B right, A wrong": (230, 159, 0),
    "both wrong, differently": (204, 121, 167),
    "both wrong, equally": (120, 40, 60),
}
UNLABELED = {"A and B differ": (213, 94, 0)}


class Counts(NamedTuple):
    """Pixels of one image, void left out."""

    pixels: int
    by_kind: dict[str, int]
    """Of the kinds of COLORS, or of UNLABELED."""


def kinds(
    first: np.ndarray, second: np.ndarray, label: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Where the predictions disagree, or are wrong: bool [H, W] by kind.

    Args:
      first, second: class ids [H, W] of run A and run B.
      label: uint8 [H, W], 255 void, which is of no kind; None: not known.
    """
    if label is None:
        return dict(zip(UNLABELED, [first != second], strict=True))
    counts, differ = label != VOID, first != second
    right = first == label, second == label
    neither = counts & ~right[0] & ~right[1]
    found = [
        counts & right[0] & ~right[1],
        counts & right[1] & ~right[0],
        neither & differ,
        neither & ~differ,
    ]
    return dict(zip(COLORS, found, strict=True))


def draw(
    image: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    *,
    label: np.ndarray | None,
    info: datasets.Dataset,
    columns: int,
) -> tuple[np.ndarray, Counts]:
    """Image, labels, both predictions and where they disagree; uint8 [h, w, 3].

    Args:
      image: uint8 [H, W, C].
      predictions: class ids [H, W] of run A and of run B, by their names.
      label: uint8 [H, W], or None.
      info: names and colors of the classes.
      columns: pictures per row.
    """
    first, second = predictions.values()
    found = kinds(first, second, label)
    gray = viz.rgb(image).mean(axis=-1, keepdims=True)
    differences = np.repeat(np.uint8(128 + gray / 2), 3, axis=2)
    colors = UNLABELED if label is None else COLORS
    for kind, where in found.items():
        differences[where] = colors[kind]
    pixels = int(np.sum(label != VOID)) if label is not None else first.size
    counts = Counts(pixels, {kind: int(where.sum()) for kind, where in found.items()})

    pictures, captions = [viz.rgb(image)], ["image"]
    if label is not None:
        pictures.append(viz.colorize(label, info.palette))
        captions.append("truth")
    for letter, (name, prediction) in zip("AB", predictions.items()):
        pictures.append(info.palette[prediction])
        captions.append(f"{letter}: {name}")
    pictures.append(differences)
    captions.append(
        f"{sum(counts.by_kind.values()) / max(pixels, 1):.1%} of the pixels"
    )
    names = [f"{kind} ({n / max(pixels, 1):.1%})" for kind, n in counts.by_kind.items()]
    legends = [
        viz.legend(info.classes, info.palette),
        viz.legend(names, np.array(list(colors.values()), np.uint8), columns=2),
    ]
    width = max(part.shape[1] for part in legends)
    below = np.vstack(
        [
            np.pad(
                part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255
            )
            for part in legends
        ]
    )
    lines = [[caption] for caption in captions]
    return heatmaps.tiles(pictures, lines, columns=columns, below=below), counts


def write(
    images: inputs.Images,
    segmenters: dict[str, inference.Segmenter],
    *,
    labels: Path | None,
    output: Path,
    columns: int,
    limits: tuple[float, int],
    threads: int,
) -> tuple[dict[str, str], dict[str, Counts]]:
    """Writes where two runs disagree; what is wrong and the counts, by image.

    The label maps of the first run are kept in memory until the second has predicted.
    """
    paths, failures = list(images.sources), {}
    (name, first), (_, second) = segmenters.items()
    classes, maps = len(first.info.classes), {}
    results = inputs.predicted(images, first, limits=limits, threads=threads)
    for index, result in tqdm.tqdm(results, "run A", len(paths), unit="image"):
        if isinstance(result, UserError):
            failures[paths[index]] = inputs.message(paths[index], result)
        else:
            maps[index] = collection.whole_label(result, classes)
    counts = {}
    results = inputs.predicted(images, second, limits=limits, threads=threads)
    for index, result in tqdm.tqdm(results, "run B", len(paths), unit="image"):
        path = paths[index]
        if index not in maps:
            continue
        try:
            if isinstance(result, UserError):
                raise result
            label = inputs.label_of(images, index, folder=labels, classes=classes)
            label_map = collection.whole_label(result, classes)
            if label is not None and label.shape != label_map.shape:
                raise UserError(
                    f"the mask has {label.shape[0]}x{label.shape[1]} pixels, the image "
                    f"{label_map.shape[0]}x{label_map.shape[1]}"
                )
            picture, counts[path] = draw(
                result.read(slice(None), slice(None)),
                dict(zip(segmenters, [maps.pop(index), label_map], strict=True)),
                label=label,
                info=first.info,
                columns=columns,
            )
        except UserError as error:
            failures[path] = inputs.message(path, error)
            continue
        inputs.save(output, "disagreement", images.names[path], picture)
    return failures, counts


def total(counts: dict[str, Counts]) -> dict[str, float]:
    """Shares of the pixels of all images."""
    pixels = max(sum(one.pixels for one in counts.values()), 1)
    kinds = next(iter(counts.values())).by_kind if counts else {}
    return {k: sum(c.by_kind[k] for c in counts.values()) / pixels for k in kinds}
