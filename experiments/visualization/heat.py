"""Where a run sees a class: its probability at every pixel, over the image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tqdm

from experiments.visualization import inputs
from segjax import heatmaps, inference, viz
from segjax.data import datasets
from segjax.errors import UserError

MOST = 8  # classes that are shown if none is named


def draw(
    image: np.ndarray,
    probabilities: np.ndarray,
    *,
    info: datasets.Dataset,
    names: Sequence[str],
    columns: int,
) -> np.ndarray:
    """The image, its prediction and a heat map per class, from 0 to 1; uint8 [h, w, 3].

    Args:
      image: uint8 [H, W, C].
      probabilities: float [H, W, K].
      info: names and colors of the classes.
      names: of the classes to show; empty: those predicted somewhere, the most frequent
        first, at most eight.
      columns: pictures per row.

    Raises:
      UserError: no such class.
    """
    label = probabilities.argmax(-1)
    counts = np.bincount(label.reshape(-1), minlength=len(info.classes))
    chosen = [inputs.class_index(info.classes, name) for name in names]
    if not chosen:
        order = np.argsort(-counts, kind="stable")[:MOST]
        chosen = [int(index) for index in order if counts[index]]
    pictures = [viz.rgb(image), info.palette[label]]
    captions = [["image", ""], ["prediction", ""]]
    for index in chosen:
        values = probabilities[..., index].astype(np.float32)
        pictures.append(heatmaps.heat_overlay(image, values, low=0, high=1))
        facts = f"max {values.max():.2f}, mean {values.mean():.2f}"
        captions.append([info.classes[index], facts])
    bar = heatmaps.heat_bar("probability 0", "1")
    return heatmaps.tiles(pictures, captions, columns=columns, below=bar)


def write(
    images: inputs.Images,
    segmenter: inference.Segmenter,
    *,
    names: Sequence[str],
    output: Path,
    columns: int,
    limits: tuple[float, int],
    threads: int,
) -> dict[str, str]:
    """Writes the heat maps of the classes; what is wrong, by image."""
    for name in names:
        inputs.class_index(segmenter.info.classes, name)
    paths, failures = list(images.sources), {}
    kinds = ("labels", "probabilities")
    results = inputs.predicted(
        images, segmenter, limits=limits, threads=threads, outputs=kinds
    )
    for index, result in tqdm.tqdm(results, "heatmap", len(paths), unit="image"):
        path = paths[index]
        if isinstance(result, UserError):
            failures[path] = inputs.message(path, result)
            continue
        probabilities = result.probabilities
        if probabilities is None:  # it comes in parts
            probabilities = np.concatenate([p.astype(np.float16) for p in result.parts])
        picture = draw(
            result.read(slice(None), slice(None)),
            probabilities,
            info=segmenter.info,
            names=names,
            columns=columns,
        )
        inputs.save(output, "heatmap", images.names[path], picture)
    return failures
