"""Pictures of labels, predictions and results; arrays in, arrays or PNG bytes out."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from segjax.labels import VOID

_INK, PAPER = (40, 40, 40), (255, 255, 255)
_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
LINE = 22
"""Height of a line of text."""
GAP = 4
"""Between the pictures of a panel."""
_CELL = 240  # side of the squares of a grid
_PANEL_WIDTH = 160  # small pictures are enlarged to this, for the captions to fit

# Title -> metrics drawn in one set of axes, with their labels.
_CURVES = {
    "loss": {"loss": "loss"},
    "learning rate": {"lr": "learning rate"},
    "validation": {"val_miou": "mIoU", "val_pixel_accuracy": "pixel accuracy"},
}


def colorize(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Colors of a label map.

    Args:
      label: uint8 [H, W]; ids without a color, void among them, turn black.
      palette: uint8 [K, 3].

    Returns:
      uint8 [H, W, 3].
    """
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = palette
    colors[VOID] = 0
    if label.dtype == np.uint8:  # in a third of the time of indexing
        return cv2.LUT(cv2.merge([label] * 3), colors[None])
    return colors[label]


def overlay(
    image: np.ndarray, label: np.ndarray, *, palette: np.ndarray, alpha: float = 0.5
) -> np.ndarray:
    """The colors of a label map over its image; void shows the image alone.

    Args:
      image: uint8 [H, W, C]; of more than three channels the first three are shown
        as red, green and blue, of two the first one.
      label: uint8 [H, W].
      palette: uint8 [K, 3].
      alpha: opacity of the colors, 0 to 1.

    Returns:
      uint8 [H, W, 3].
    """
    image = rgb(image)
    mixed = cv2.addWeighted(image, 1 - alpha, colorize(label, palette), alpha, 0)
    void = label == VOID
    return np.where(void[..., None], image, mixed) if void.any() else mixed


def panel(
    image: np.ndarray,
    truth: np.ndarray,
    *,
    prediction: np.ndarray,
    palette: np.ndarray,
    captions: Sequence[str] = ("image", "truth", "prediction"),
) -> np.ndarray:
    """Image, truth and prediction(s) side by side, under a line of captions.

    Pictures narrower than 160 pixels are enlarged by a whole factor.

    Args:
      image: uint8 [H, W, C], shown as by ``overlay``.
      truth: uint8 [H, W].
      prediction: uint8 [H, W], or several as [n, H, W].
      palette: uint8 [K, 3].
      captions: one per picture.

    Returns:
      uint8 [h, w, 3].
    """
    labels = [truth, *prediction.reshape(-1, *truth.shape)]
    pictures = [rgb(image), *(colorize(label, palette) for label in labels)]
    zoom = -(-_PANEL_WIDTH // image.shape[1])
    columns = []
    for picture, caption in zip(pictures, captions, strict=True):
        picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
        header = np.full((LINE, picture.shape[1], 3), PAPER, np.uint8)
        write_line(header, caption, left=2, top=0)
        columns += [np.vstack([header, picture])]
        columns += [np.full((len(columns[0]), GAP, 3), PAPER, np.uint8)]
    return np.hstack(columns[:-1])


def grid(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[str],
    below: np.ndarray | None = None,
) -> np.ndarray:
    """Rows of pictures under a line of captions.

    Pictures are enlarged by a whole factor, or reduced, to fit squares of 240 pixels.

    Args:
      rows: of pictures uint8 [H, W, 3] of any sizes, as many as there are captions.
      captions: of the columns.
      below: a picture for the end, such as a legend.

    Returns:
      uint8 [h, w, 3].
    """
    header = [np.full((LINE, _CELL, 3), PAPER, np.uint8) for _ in captions]
    for box, caption in zip(header, captions):
        write_line(box, caption, left=2, top=0)
    lines = [header, *([_in_cell(picture) for picture in row] for row in rows)]
    parts = []
    for line in lines:
        gap = np.full((len(line[0]), GAP, 3), PAPER, np.uint8)
        parts.append(np.hstack([part for box in line for part in (box, gap)]))
        parts.append(np.full((GAP, parts[-1].shape[1], 3), PAPER, np.uint8))
    parts += [] if below is None else [below]
    width = max(part.shape[1] for part in parts)
    whole = np.full((sum(map(len, parts)), width, 3), PAPER, np.uint8)
    top = 0
    for part in parts:
        whole[top : top + len(part), : part.shape[1]] = part
        top += len(part)
    return whole


def _in_cell(picture: np.ndarray) -> np.ndarray:
    """A picture in the middle of a square of paper."""
    height, width = picture.shape[:2]
    factor = _CELL / max(height, width)
    if factor >= 1:
        zoom = int(factor)
        picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    else:
        size = max(round(width * factor), 1), max(round(height * factor), 1)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    cell = np.full((_CELL, _CELL, 3), PAPER, np.uint8)
    top, left = ((_CELL - side) // 2 for side in picture.shape[:2])
    cell[top : top + len(picture), left : left + picture.shape[1]] = picture
    return cell


def legend(classes: Sequence[str], palette: np.ndarray, columns: int = 4) -> np.ndarray:
    """Names of the classes beside their colors, row by row; uint8 [h, w, 3]."""
    swatch, pad = 14, 8
    names = [text_width(name) for name in classes]
    width = max(names) + swatch + 3 * pad
    columns = min(columns, len(classes))
    rows = -(-len(classes) // columns)
    picture = np.full((rows * LINE, columns * width, 3), PAPER, np.uint8)
    for index, (name, color) in enumerate(zip(classes, palette, strict=True)):
        top, left = index // columns * LINE, index % columns * width
        box = picture[top + 4 : top + 4 + swatch, left + pad : left + pad + swatch]
        box[:] = 160  # a rim, for colors as light as the paper
        box[1:-1, 1:-1] = color
        write_line(picture, name, left=left + swatch + 2 * pad, top=top)
    return picture


def confusion_figure(confusion: np.ndarray, classes: Sequence[str]) -> bytes:
    """A confusion matrix in percent of the true class, as a PNG file.

    Args:
      confusion: counts [K, K], rows are the truth. Rows without pixels stay blank.
      classes: names, K of them. Up to 20 the percentages are written out.
    """
    from matplotlib.figure import Figure

    confusion = np.asarray(confusion, np.float64)
    total = confusion.sum(axis=1, keepdims=True)
    percent = np.full_like(confusion, np.nan)
    np.divide(100 * confusion, total, out=percent, where=total > 0)

    number = len(classes)
    side = min(max(2.5 + 0.42 * number, 4), 14)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    drawn = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    size = 9 if number <= 40 else 5
    axes.set_xticks(range(number), classes, rotation=90, fontsize=size)
    axes.set_yticks(range(number), classes, fontsize=size)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    figure.colorbar(drawn, label="% of the true class", shrink=0.7)
    if number <= 20:
        for row, column in np.argwhere(~np.isnan(percent)):
            value = percent[row, column]
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value > 55 else "black",
            )
    return _png(figure)


def curves_figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Loss, learning rate and validation scores over the steps, as a PNG file.

    Args:
      rows: one mapping per log entry, with "step" and any of the metrics "loss", "lr",
        "val_miou" and "val_pixel_accuracy"; others are not drawn.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(1, len(_CURVES)), _CURVES.items()):
        for name, label in names.items():
            points = [(row["step"], row[name]) for row in rows if name in row]
            if points:
                marker = "o" if len(points) < 30 else ""
                axes.plot(*zip(*points), marker=marker, markersize=3, label=label)
        axes.set_title(title)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
        if not axes.lines:
            axes.text(0.5, 0.5, "not logged", ha="center", transform=axes.transAxes)
    return _png(figure)


def trimap_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Scores within bands around the boundaries, over their width, as a PNG file.

    Args:
      curves: name -> "radius" in pixels, "miou" and "pixel_accuracy", 0 to 1.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    titles = {"miou": "mIoU, %", "pixel_accuracy": "pixel accuracy, %"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items()):
        for name, curve in curves.items():
            percent = 100 * np.array(curve[key], np.float64)
            axes.plot(curve["radius"], percent, marker=".", label=name)
        axes.set_title(title)
        axes.set_xlabel("pixels within this distance of a boundary")
        axes.grid(alpha=0.3)
        axes.legend()
    return _png(figure)


def growth_figure(curves: Mapping[str, Mapping[str, Sequence[float]]]) -> bytes:
    """Time and memory of something over its sizes, as a PNG file.

    Args:
      curves: name of a size -> "x", its values; "bytes"; and seconds by part.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 5.6), layout="constrained")
    grid = figure.subplots(2, len(curves), sharex="col", squeeze=False)
    for (upper, lower), (name, curve) in zip(grid.T, curves.items()):
        x = curve["x"]
        for part in [key for key in curve if key not in ("x", "bytes")]:
            milliseconds = 1000 * np.array(curve[part])
            upper.plot(x, milliseconds, marker="o", markersize=3, label=part)
        lower.plot(x, np.array(curve["bytes"]) / 1e6, marker="o", markersize=3)
        upper.set_ylabel("ms per image")
        lower.set_ylabel("MB")
        lower.set_xlabel(name)
        for axes in (upper, lower):
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
            axes.grid(alpha=0.3)
        upper.legend()
    return _png(figure)


def tradeoff_figure(
    names: Sequence[str],
    costs: Mapping[str, Sequence[float]],
    scores: Mapping[str, Sequence[Sequence[float]]],
) -> bytes:
    """Scores of several models over what they cost or see, as a PNG file.

    Args:
      names: of the models, n of them.
      costs: title -> n values; NaN is not drawn. One column of axes each.
      scores: title -> for each model its values in percent, one per seed, of which the
        mean and the standard deviation are drawn. One row of axes each.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    size = 4.2 * len(costs) + 2.2, 3.4 * len(scores)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(scores), len(costs), squeeze=False)
    markers = "os^Dv"
    for row, (score, values) in zip(grid, scores.items(), strict=True):
        for axes, (cost, places) in zip(row, costs.items(), strict=True):
            for i, (name, x, seeds) in enumerate(
                zip(names, places, values, strict=True)
            ):
                if np.isnan(x) or not len(seeds):
                    continue
                axes.errorbar(
                    [x],
                    [np.mean(seeds)],
                    [np.std(seeds, ddof=1) if len(seeds) > 1 else 0.0],
                    color=colormaps["tab10"](i % 10),
                    marker=markers[i // 10 % len(markers)],
                    capsize=3,
                    linestyle="none",
                    label=name,
                )
            axes.set_xlabel(cost)
            axes.set_ylabel(score)
            axes.margins(0.12)
            axes.grid(alpha=0.3)
    drawn: dict[str, Any] = {}  # a model may be missing in some of the axes
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        drawn |= dict(zip(labels, handles, strict=True))
    shown = [name for name in names if name in drawn]
    figure.legend(
        [drawn[name] for name in shown], shown, loc="outside right upper", fontsize=8
    )
    return _png(figure)


def rgb(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, C] -> [H, W, 3]: the first three channels, or the first one."""
    shown = image[:, :, : 3 if image.shape[2] >= 3 else 1]
    return np.broadcast_to(shown, (*image.shape[:2], 3))


def write_line(picture: np.ndarray, text: str, *, left: int, top: int) -> None:
    """Writes a line of text into uint8 [H, W, 3], in place."""
    place = (left, top + 15)
    cv2.putText(picture, text, place, _FONT, _FONT_SCALE, _INK, 1, cv2.LINE_AA)


def text_width(text: str) -> int:
    """Pixels that a line of text takes."""
    return cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
