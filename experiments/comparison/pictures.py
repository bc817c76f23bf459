"""The images of a comparison: what every method makes of the same ones."""

from collections.abc import Iterable, Sequence

import numpy as np

from experiments.comparison.results import Data, Result
from segjax import labels, viz

VOID_COLOR = (255, 255, 255)
_SHEET = 8  # rows; more make a picture that nobody can look at


def row(
    image: int, results: Sequence[Result], *, data: Data, photos: bool
) -> list[np.ndarray]:
    """Image, truth and the prediction of every method, uint8 [H, W, 3] each.

    Args:
      image: its number in the source.
      results: of the methods.
      data: the images.
      photos: False leaves image and truth out.
    """
    predictions = [viz.colorize(x.labels[image], data.info.palette) for x in results]
    if not photos:
        return predictions
    example = data.source[image]
    truth = viz.colorize(example["label"], data.info.palette)
    truth[example["label"] == labels.VOID] = VOID_COLOR
    # One channel is shown as gray, of more the first three.
    channels = 3 if example["image"].shape[-1] > 2 else 1
    picture = example["image"][..., :channels]
    return [np.broadcast_to(picture, truth.shape), truth, *predictions]


def titles(results: Sequence[Result], photos: bool) -> list[str]:
    """Of the columns."""
    return ["image", "truth"] * photos + [result.name for result in results]


def sheet(
    images: Iterable[int], results: Sequence[Result], *, data: Data, photos: bool
) -> np.ndarray:
    """Some images below each other, over the legend of the classes; uint8 [h, w, 3].

    Args:
      images: their numbers in the source, at least one.
      results, data, photos: as for ``row``.
    """
    rows = [
        row(image, results, data=data, photos=photos) for image in [*images][:_SHEET]
    ]
    legend = viz.legend(data.info.classes, data.info.palette)
    return viz.grid(rows, titles(results, photos), below=legend)
