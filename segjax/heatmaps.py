"""Heat maps, and pictures in rows under their captions; arrays in, arrays out."""

from collections.abc import Sequence

import cv2
import numpy as np

from segjax import viz

_TILE_WIDTH = 190  # smaller pictures are enlarged to this, for the captions to fit
_MISSING = (128, 128, 128)  # where a heat map has no value


def tiles(
    pictures: Sequence[np.ndarray],
    captions: Sequence[Sequence[str]],
    *,
    columns: int,
    below: np.ndarray | None = None,
) -> np.ndarray:
    """Pictures of one size in rows, each under its own lines of captions.

    Pictures narrower than 190 pixels are enlarged by a whole factor.

    Args:
      pictures: uint8 [H, W, 3], one or more.
      captions: lines of each picture; all have as many.
      columns: pictures per row.
      below: a picture for the end, such as a legend.

    Returns:
      uint8 [h, w, 3].
    """
    zoom = -(-_TILE_WIDTH // pictures[0].shape[1])
    cells = []
    for picture, lines in zip(pictures, captions, strict=True):
        picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
        header = np.full(
            (viz.LINE * len(lines), picture.shape[1], 3), viz.PAPER, np.uint8
        )
        for i, line in enumerate(lines):
            viz.write_line(header, line, left=2, top=i * viz.LINE)
        cell = np.vstack([header, picture])
        cells.append(
            np.pad(cell, ((0, viz.GAP), (0, viz.GAP), (0, 0)), constant_values=255)
        )
    columns = min(columns, len(cells))
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    rows += [] if below is None else [below]
    width = max(row.shape[1] for row in rows)
    return np.vstack(
        [
            np.pad(
                row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255
            )
            for row in rows
        ]
    )


def heat(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as colors from dark blue over green to yellow (viridis).

    Args:
      values: float [H, W]; those that are not finite turn gray.
      low, high: values of the darkest and of the lightest color.

    Returns:
      uint8 [H, W, 3].
    """
    known = np.isfinite(values)
    share = (np.where(known, values, low) - low) / max(high - low, 1e-30)
    levels = np.round(255 * np.clip(share, 0, 1)).astype(np.uint8)
    colors = np.asarray(cv2.applyColorMap(levels, cv2.COLORMAP_VIRIDIS))[..., ::-1]
    return np.where(known[..., None], colors, np.array(_MISSING, np.uint8))


def heat_overlay(
    image: np.ndarray, values: np.ndarray, *, low: float, high: float
) -> np.ndarray:
    """A heat map over its image, which is shown in gray; uint8 [H, W, 3].

    Args:
      image: uint8 [H, W, C], shown as by ``overlay``.
      values: float [H, W].
      low, high: as of ``heat``.
    """
    gray = viz.rgb(image).mean(axis=-1, keepdims=True)
    mixed = 0.35 * gray + 0.65 * heat(values, low, high)
    return np.round(mixed).astype(np.uint8)


def heat_bar(low: str, high: str) -> np.ndarray:
    """The colors of ``heat`` between two numbers; uint8 [h, w, 3]."""
    ramp = heat(np.tile(np.linspace(0, 1, 120), (viz.LINE - 8, 1)), 0, 1)
    ends = [viz.text_width(text) for text in (low, high)]
    picture = np.full((viz.LINE, ends[0] + 120 + ends[1] + 20, 3), viz.PAPER, np.uint8)
    viz.write_line(picture, low, left=2, top=0)
    picture[4 : viz.LINE - 4, ends[0] + 8 : ends[0] + 128] = ramp
    viz.write_line(picture, high, left=ends[0] + 134, top=0)
    return picture
