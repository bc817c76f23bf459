"""What the figures share: numbers in cells, pictures, files."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from segjax import viz
from segjax.data import scenes
from segjax.errors import UserError

if TYPE_CHECKING:  # importing it takes 0.4 s, which no --help should wait for
    from matplotlib.figure import Figure

VOID_COLOR = (255, 255, 255)


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def axes_grid(rows: int, columns: int, cell: tuple[float, float]) -> tuple[Figure, Any]:
    """A figure of rows x columns axes of (width, height) inches, as an array [r, c]."""
    figure = new_figure(cell[0] * columns, cell[1] * rows)
    return figure, figure.subplots(rows, columns, squeeze=False)


def png(figure: Figure, dpi: int = 80, colors: int = 256) -> bytes:
    """The figure as a PNG file of at most so many colors, which keeps it small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return compressed(np.asarray(Image.open(buffer).convert("RGB")), colors)


def compressed(picture: np.ndarray, colors: int = 256) -> bytes:
    """uint8 [h, w, 3] as a PNG file of at most so many colors."""
    image = Image.fromarray(picture).quantize(colors, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def outline(
    axes: Any,
    corner: tuple[float, float],
    *,
    size: tuple[float, float],
    color: str,
    width: float,
) -> None:
    """A rectangle of (width, height) whose upper left corner is at (x, y)."""
    from matplotlib.patches import Rectangle

    shape = Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=width)
    axes.add_patch(shape)


def empty(axes: Any, title: str = "") -> None:
    """Axes without ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=9)


def cells(
    axes: Any,
    values: np.ndarray,
    title: str,
    *,
    colors: np.ndarray | None = None,
    cmap: str = "Blues",
    fontsize: int = 9,
) -> None:
    """A small map with its numbers written in the cells.

    Args:
      axes: where.
      values: [h, w].
      title: above it.
      colors: [h, w], what decides the color of a cell, if not its value.
      cmap: of matplotlib.
      fontsize: of the numbers.
    """
    values = np.asarray(values, float)
    shade = np.abs(values) if colors is None else np.asarray(colors, float)
    axes.imshow(shade, cmap=cmap, vmin=0, vmax=max(shade.max() * 1.6, 1e-9))
    for (row, column), value in np.ndenumerate(values):
        text = f"{value:.2f}".rstrip("0").rstrip(".")
        axes.text(column, row, text, ha="center", va="center", fontsize=fontsize)
    height, width = values.shape
    axes.set_xticks(np.arange(width + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(height + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="gray", linewidth=0.6)
    axes.tick_params(which="both", length=0)
    empty(axes, title)


def picture(axes: Any, image: np.ndarray, title: str, **how: Any) -> None:
    """An image [H, W, 3], or a map [H, W] with the colors of ``cmap=``."""
    axes.imshow(image, **{"interpolation": "nearest", **how})
    empty(axes, title)


def check_at_most(flag: str, value: int, limit: int) -> None:
    """Raises UserError if a figure would be too large to draw or to compute."""
    if value > limit:
        raise UserError(f"--{flag}={value}: expected at most {limit} in this figure")


def labels(label: np.ndarray) -> np.ndarray:
    """The colors of a label map of scenes; void is white."""
    colors = viz.colorize(label, scenes.PALETTE)
    colors[label == 255] = VOID_COLOR
    return colors


def scene(index: int, side: int) -> dict[str, np.ndarray]:
    """A procedural scene that no network of the tour is trained on."""
    return scenes.scene(1, index, size=(side, side))


def blank(axes: Sequence[Any]) -> None:
    """Axes without anything."""
    for one in axes:
        one.axis("off")
