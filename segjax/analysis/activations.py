"""What the layers of a network show of one image: its maps, channel by channel.

A map has one value per location and channel. It is drawn at the size of the image,
every pixel with the value of the nearest location (:class:`Locations`), and all that is
said of a channel is said of that picture: a location counts as often as it has pixels.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn

from segjax import errors
from segjax.analysis.tracing import LOGITS
from segjax.errors import UserError
from segjax.models.network import abstract_variables
from segjax.ops import geometry

RULES = ("class", "variance", "mean")
"""How :func:`representative` chooses; the words are those of its table."""


def maps(model: nn.Module, channels: int = 3) -> dict[str, int]:
    """Names of the maps of prediction, in the order of execution: their channels.

    They are the endpoints [N, h, w, C], those of lists as ``NAME/0``, and the logits.
    An endpoint that is no map of the image, such as the features of superpixels, is
    left out: of a square image it would not be square.
    """
    side = geometry.nearest_sides(model.tiling, 64)[-1]
    images = jax.ShapeDtypeStruct((1, side, side, channels), np.uint8)
    names: list[str] = []  # jax sorts the keys of what it returns

    def named(variables, images):
        found = _flat(*model.apply(variables, images, train=False))
        names.extend(found)
        return found

    shapes = jax.eval_shape(named, abstract_variables(model, channels), images)
    square = {n for n, x in shapes.items() if x.ndim == 4 and x.shape[1] == x.shape[2]}
    return {name: shapes[name].shape[-1] for name in names if name in square}


def run(model: nn.Module, names: Sequence[str]) -> Callable[..., dict[str, jax.Array]]:
    """A function (variables, images [N, H, W, C]) -> maps [N, h, w, C] by name."""

    def apply(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        found = _flat(*model.apply(variables, images, train=False))
        return {name: found[name] for name in names}

    return apply


def _flat(logits: jax.Array, endpoints: dict[str, Any]) -> dict[str, jax.Array]:
    found = {}
    for name, value in endpoints.items():
        for keys, leaf in jax.tree_util.tree_leaves_with_path(value):
            inner = jax.tree_util.keystr(keys, simple=True, separator="/")
            found[f"{name}/{inner}" if keys else name] = leaf
    return found | {LOGITS: logits}


class Locations(NamedTuple):
    """The location nearest to each pixel of an image; -1 if there is none near."""

    rows: np.ndarray  # int [H]
    columns: np.ndarray  # int [W]


def locations(
    grid: geometry.Grid | None,
    shape: Sequence[int],
    *,
    size: tuple[int, int],
    scaled: tuple[int, int],
    extended: tuple[int, int],
    margin: int,
) -> Locations:
    """Where the pixels of an image are in a map.

    Args:
      grid: of the map, in the input of the network, see ``receptive_field.grids``; None
        stretches the map over the input.
      shape: (h, w, ..) of the map.
      size: (H, W) of the image.
      scaled: (height, width) to which it was resized for the network.
      extended: (height, width) of the input, which is that image extended.
      margin: by how many pixels, at the top and on the left.
    """

    def along(count: int, side: int, inner: int, whole: int) -> np.ndarray:
        step, start = whole / count, (whole / count - 1) / 2
        if grid is not None:
            step, start = float(grid.step), float(grid.start)
        pixels = (np.arange(side) + 0.5) * (inner / side) - 0.5 + margin
        # A pixel between two locations belongs to the second one.
        places = (pixels - start) / step
        nearest = np.clip(np.floor(places + 0.5).astype(int), 0, count - 1)
        return np.where(np.abs(places - nearest) <= 1, nearest, -1)

    return Locations(
        *map(along, shape[:2], size, scaled, extended),
    )


def enlarge(values: np.ndarray, where: Locations) -> np.ndarray:
    """One channel [h, w] at the size of the image, float32 [H, W]; NaN beyond it."""
    picture = values.astype(np.float32)[np.ix_(where.rows, where.columns)]
    picture[where.rows < 0] = np.nan
    picture[:, where.columns < 0] = np.nan
    return picture


def channel_scores(
    values: np.ndarray, where: Locations, *, rule: str, target: np.ndarray
) -> np.ndarray:
    """How representative each channel is of the image.

    Args:
      values: the map [h, w, C].
      where: its locations.
      rule: "class": Pearson's correlation with ``target``; "variance": over the pixels;
        "mean": the mean over them.
      target: float [H, W], such as the probability of a class.

    Returns:
      float64 [C]: -inf for channels that are constant or not finite, but 0 for the
      mean of one that is zero everywhere.

    Raises:
      UserError: an unknown rule.
    """
    if rule not in RULES:
        raise errors.unknown("--rule", rule, RULES)
    values = values.astype(np.float64)
    rows, columns = (
        (index[:, None] == np.arange(count)).astype(np.float64)
        for index, count in zip(where, values.shape[:2])
    )
    weights = np.outer(rows.sum(0), columns.sum(0))
    total = weights.sum()
    if not total:
        return np.full(values.shape[2], -np.inf)

    def over_pixels(x: np.ndarray) -> np.ndarray:
        return np.tensordot(weights, x, 2) / total

    with np.errstate(invalid="ignore", over="ignore"):
        mean = over_pixels(values)
        if rule == "mean":
            return np.where(np.isfinite(mean), mean, -np.inf)
        centered = values - mean
        variance = over_pixels(centered**2)
        varies = np.isfinite(variance) & (variance > 1e-12 * mean**2)
        if rule == "variance":
            return np.where(varies, variance, -np.inf)
        inside = np.ix_(where.rows >= 0, where.columns >= 0)
        spread = target[inside].astype(np.float64)
        sums = rows.T @ (target - spread.mean()) @ columns
        covariance = np.tensordot(sums, centered, 2) / total
        scale = np.sqrt(variance * spread.var())
        return np.where(varies & (scale > 0), covariance / scale, -np.inf)


def representative(
    values: np.ndarray, where: Locations, *, rule: str, target: np.ndarray
) -> tuple[int, float]:
    """The channel of the highest :func:`channel_scores`, and that score.

    The first one of equals; (0, -inf) if no channel varies.
    """
    scores = channel_scores(values, where, rule=rule, target=target)
    best = int(np.argmax(scores))
    return best, float(scores[best])


def check_channel(names: Sequence[str], known: dict[str, int], channel: int) -> None:
    """Raises a UserError that names the map if a map does not have this channel."""
    for name in names:
        if not 0 <= channel < known[name]:
            raise UserError(
                f"--channel={channel}: {name} has the channels 0 to {known[name] - 1}; "
                "choose other --endpoints, or another channel"
            )
