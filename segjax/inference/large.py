"""Images too large for one compiled call: windows in, finished rows out.

The host cuts windows from an image that need not be in memory, the device predicts
them, and the host averages what they predict of each pixel. Only one row of windows is
held: [side, width, K] float32. The result is that of ``predictors.sliding`` or
``predictors.overlap_tile`` of the whole image.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from flax import linen as nn

from segjax.data.windows import ReadWindow
from segjax.errors import UserError
from segjax.inference import predictors, windows
from segjax.inference.options import PredictOptions, averaged, compose
from segjax.inference.predictors import Predictor
from segjax.inference.windows import Layout, Size
from segjax.ops import geometry

SIDE = 1024
"""Default side of windows and tiles in pixels (tiles: the next valid side)."""

_ROWS = 64  # rows divided and moved at a time: a row of windows is never copied whole


def layout(models: Sequence[nn.Module], options: PredictOptions, size: Size) -> Layout:
    """The windows or tiles of an image of that size.

    Raises:
      UserError: with these options an image cannot be predicted in parts.
    """
    if options.proposals:
        raise UserError(
            f"--proposals={options.proposals} needs the whole image: raise "
            f"--max_pixels above its {size[0] * size[1]} pixels, or leave --proposals "
            "out"
        )
    tilings = {model.tiling for model in models}
    if not any(tiling.margin for tiling in tilings):
        return windows.sliding(size, options.window or (SIDE,), options.stride)
    if len(tilings) > 1:
        raise UserError(
            "models of different margins or steps cannot share tiles: raise "
            "--max_pixels to predict such images whole"
        )
    if tuple(options.scales) != (1.0,):
        raise UserError(
            "an image in overlap-tiles can only be predicted at scale 1: raise "
            "--max_pixels to predict it whole"
        )
    (tiling,) = tilings
    # At least a step of it must be predicted.
    least = max(SIDE, 2 * tiling.margin + tiling.step)
    tile = options.tile or geometry.nearest_sides(tiling, least)[-1]
    return windows.tiles(size, tiling, tile=tile, model=type(models[0]).__name__)


def window_predictor(models: Sequence[nn.Module], options: PredictOptions) -> Predictor:
    """The predictor of single windows, each with its own scales and mirror image."""
    if not models[0].tiling.margin:
        return compose(models, options._replace(window=(), tile=0))
    parts = [predictors.without_margin(model) for model in models]
    return averaged(predictors.ensemble(parts, options.ensemble_rule), options)


def stream(
    predict: Callable[[np.ndarray], np.ndarray],
    read: ReadWindow,
    *,
    layout: Layout,
    batch: int,
) -> Iterator[np.ndarray]:
    """Predicts an image in windows.

    Args:
      predict: uint8 [batch, *window, C] -> probabilities [batch, *output, K]; need not
        wait for the device.
      read: reads a window of the image, given slices of rows and columns inside it.
      layout: of the windows.
      batch: windows of one call.

    Yields:
      Probabilities float32 [h, W, K] of the next rows, from the top; all rows together
      are the image.
    """
    starts = layout.starts
    groups = [starts[at : at + batch] for at in range(0, len(starts), batch)]

    def cut(group: list[Size]) -> np.ndarray:
        parts = [_cut(read, layout, start) for start in group]
        return np.stack(parts + parts[-1:] * (batch - len(parts)))

    row_counts, column_counts = layout.coverage
    (top, left), (height, width) = layout.before, layout.size

    def finished(total: np.ndarray, row: int) -> Iterator[np.ndarray]:
        """The rows from ``row`` of the extended image on that lie in the image."""
        first, last = max(row, top), min(row + len(total), top + height)
        for at in range(first, last, _ROWS):
            end = min(at + _ROWS, last)
            count = row_counts[at:end, None] * column_counts[left : left + width]
            part = total[at - row : end - row, left : left + width]
            yield part / count[..., None]

    total: np.ndarray | None = None
    current = layout.rows[0]
    with ThreadPoolExecutor(2) as pool:
        for group, outputs in _predicted(groups, cut, predict=predict, pool=pool):
            for (row, column), part in zip(group, outputs):
                if total is None:
                    shape = (layout.output[0], layout.extended[1], part.shape[-1])
                    total = np.zeros(shape, np.float32)
                if done := row - current:
                    yield from finished(total[:done], current)
                    for at in range(0, len(total) - done, _ROWS):
                        end = min(at + _ROWS, len(total) - done)
                        total[at:end] = total[at + done : end + done]
                    total[-done:] = 0
                    current = row
                total[:, column : column + layout.output[1]] += part
    if total is not None:
        yield from finished(total, current)


def _predicted(
    groups: Sequence, cut: Callable, *, predict: Callable, pool: ThreadPoolExecutor
) -> Iterator[tuple]:
    """(group, its probabilities); the next ones are cut and launched already."""
    cuts: collections.deque[Future] = collections.deque()
    launched: collections.deque[tuple] = collections.deque()
    waiting = iter(groups)
    for group in groups:
        while len(cuts) < 2 and (ahead := next(waiting, None)) is not None:
            cuts.append(pool.submit(cut, ahead))
        launched.append((group, predict(cuts.popleft().result())))
        if len(launched) > 1:
            ready, outputs = launched.popleft()
            yield ready, np.asarray(outputs)
    for ready, outputs in launched:
        yield ready, np.asarray(outputs)


def _cut(read: ReadWindow, layout: Layout, start: Size) -> np.ndarray:
    """The window whose output starts there, mirrored beyond the image."""
    inside, order = [], []
    for first, before, count, length in zip(
        start, layout.before, layout.window, layout.size
    ):
        index = windows.mirrored_indices(first - before - layout.margin, count, length)
        lowest = int(index.min())
        inside.append(slice(lowest, int(index.max()) + 1))
        order.append(index - lowest)
    return read(*inside)[np.ix_(*order)]
