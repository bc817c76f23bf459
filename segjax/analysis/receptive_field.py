"""Receptive fields of feature maps: theoretical, from a trace, and effective, measured.

**Receptive field** of a location: the number of image rows from the first to the last
one that it depends on, holes included, away from the borders. A map has a (smallest,
largest) one: interpolated locations see more than those that coincide with a location
of the coarse map. ``math.inf`` is a field that grows with the image, as behind global
pooling. Only rows are followed, since all kernels are square.

**Stride** of a map: image rows per row of the map; ``math.inf`` where pooling gives a
fixed size.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.analysis import dependencies, tracing
from segjax.analysis.tracing import LOGITS, Path
from segjax.errors import UserError
from segjax.models.network import abstract_variables
from segjax.ops import geometry

Field = tuple[float, float]  # smallest and largest receptive field of a map's locations


class View(NamedTuple):
    """How a map sees the image."""

    stride: float
    field: Field


def views(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    paths: Sequence[Path],
    channels: int,
) -> tuple[dict[Path, View], dict[str, View]]:
    """Views of the used ones of the modules `paths`, and of the outputs by name.

    From two images that are tall enough to have rows that no border influences. Their
    heights differ by a multiple of all strides, and are of the form 8k + 1, where
    aligned corners are exact, if the model takes that.

    Raises:
      UserError: the model uses an operation that cannot be followed.
    """
    first, second = _two_heights(model, variables, paths=paths, channels=channels)
    return (
        {k: _view(x, second.modules[k]) for k, x in first.modules.items()},
        {k: _view(x, second.outputs[k]) for k, x in first.outputs.items()},
    )


def _two_heights(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    paths: Sequence[Path],
    channels: int,
) -> tuple["_Reaches", "_Reaches"]:
    """What a tall image and a less tall one reach; see :func:`views`."""
    width = geometry.nearest_sides(model.tiling, 33)[-1]
    tall = geometry.nearest_sides(model.tiling, 4097)[-1]
    short = tall - math.lcm(model.tiling.step, 512)
    first, second = (
        _reaches(model, variables, paths=paths, image=(height, width, channels))
        for height in (tall, short)
    )
    return first, second


def grids(model: nn.Module, channels: int = 3) -> dict[str, geometry.Grid]:
    """Where the locations of the logits and endpoints lie in the input of the network.

    A location lies at the center of its receptive field, away from the borders; the
    centers of interpolated ones are on average where they are interpolated. Layers that
    are not symmetric, as some transposed convolutions, shift the centers of deep paths
    and not the map: where that exceeds half a location, a map that covers the input
    from border to border is taken to do so evenly. Maps whose field is infinite, or
    that have a fixed size, are left out.

    Raises:
      UserError: the model uses an operation that cannot be followed.
    """
    variables = abstract_variables(model, channels)
    first, second = _two_heights(model, variables, paths=(), channels=channels)
    found = {}
    for name, tall in first.outputs.items():
        view = _view(tall, second.outputs[name])
        if math.inf in (view.stride, *view.field) or not all(view.field):
            continue
        rows = tall.rows - second.outputs[name].rows
        step = Fraction(tall.height - second.outputs[name].height, rows)
        seen = np.broadcast_to(tall.reach.min(axis=(0, 2, 3)), (tall.rows, 2))
        middle = np.arange(tall.rows * 7 // 16, -(tall.rows * 9 // -16))
        centers = (seen[middle, 0] - seen[middle, 1]) / 2
        start = float(np.mean(centers - middle * float(step)))
        covers = abs(tall.rows * step - tall.height) < step
        even = (step - 1) / 2
        if covers and abs(start - even) >= step / 2:
            start = float(even)
        found[name] = geometry.Grid(step, Fraction(start).limit_denominator(64))
    return found


def rows_seen(model: nn.Module, image: tuple[int, int, int]) -> np.ndarray:
    """First and last image row that each row of the logits depends on, int64 [h, 2].

    For an image of this (H, W, C), whose borders cut the receptive fields.

    Raises:
      UserError: the model does not take such an image, or cannot be followed.
    """
    variables = abstract_variables(model, image[-1])
    logits = _reaches(model, variables, paths=(), image=image).outputs[LOGITS]
    seen = logits.reach.min(axis=(0, 2, 3))
    return np.broadcast_to(seen, (logits.rows, 2)) * [1, -1]


class _Map(NamedTuple):
    """A map of the network for one height of the image."""

    height: int  # of the image
    rows: int  # of the map
    reach: np.ndarray  # see dependencies.Value


class _Reaches(NamedTuple):
    modules: dict[Path, _Map]  # the outputs of modules
    outputs: dict[str, _Map]  # of the model, by name


def _reaches(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    paths: Sequence[Path],
    image: tuple[int, int, int],
) -> _Reaches:
    plain = tracing.plain_form(model)
    jaxpr, shapes = tracing.trace(plain, variables, image)
    owner = tracing.owner_of(paths)
    calls: list[tuple] = []

    def visit(scope, equation, outputs):
        shape = tracing.struct(equation.outvars[0]).shape
        calls.append((owner(scope), shape, outputs[0].reach))

    *weights, images = (dependencies.unknown(x) for x in jaxpr.jaxpr.invars)
    rows = np.arange(image[0]).reshape(1, -1, 1, 1)
    images = dependencies.Value(np.stack([rows, -rows], axis=-1))
    constants = map(dependencies.constant, jaxpr.consts)
    outputs = dependencies.propagate(
        jaxpr.jaxpr, constants, inputs=[*weights, images], visit=visit
    )
    module_outputs = tracing.outputs_of_modules(calls)
    maps = {
        name: _Map(image[0], shape[1], output.reach)
        for (name, shape), output in zip(shapes.items(), outputs, strict=True)
        if len(shape) == 4
    }
    modules = {
        path: _Map(image[0], shape[1], reach)
        for path, (_, shape, reach) in module_outputs.items()
    }
    return _Reaches(modules, maps)


def _view(tall: _Map, short: _Map) -> View:
    """The view of a map from what it is for two heights of the image."""
    rows = tall.rows - short.rows
    stride = (tall.height - short.height) / rows if rows > 0 else math.inf
    field = _field(tall.rows, tall.reach)
    # No border is in what the middle eighth of the rows sees.
    same = field == _field(short.rows, short.reach)
    finite = same and field[1] <= short.height * 7 / 8
    return View(stride, field if finite else (math.inf, math.inf))


def _field(rows: int, seen: np.ndarray) -> Field:
    """Smallest and largest field of the middle eighth of the rows of a map."""
    seen = seen.min(axis=(0, 2, 3))
    if len(seen) > 1:
        seen = seen[rows * 7 // 16 : -(rows * 9 // -16)]
    seen = seen[seen[:, 0] < dependencies.NOTHING]
    if not len(seen):
        return 0, 0
    widths = 1 - seen.sum(axis=1)
    return int(widths.min()), int(widths.max())


def effective(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    images: np.ndarray,
    output: str = LOGITS,
    seed: int = 0,
) -> np.ndarray:
    """How much each pixel moves the center location (Luo et al., NeurIPS 2016).

    The mean over `images` of the absolute gradient of the center location of `output`,
    summed over the channels of the image. The channels of the location are summed with
    random signs, other ones for each image.

    Args:
      variables: of the model.
      images: [N, H, W, C], 0..255; random ones show the network, real ones the data.
      output: "logits" or an endpoint of prediction.

    Returns:
      float32 [H, W] with a maximum of 1 (all zero if no pixel has an influence).

    Raises:
      UserError: no such output.
    """

    @jax.jit
    def gradient(image, key):
        def center(image):
            logits, endpoints = model.apply(variables, image[None], train=False)
            outputs = {**endpoints, LOGITS: logits}
            if output not in outputs:
                raise UserError(
                    f"output {output!r}: {type(model).__name__} has "
                    f"{', '.join(sorted(outputs))}"
                )
            values = outputs[output]
            channels = values[0, values.shape[1] // 2, values.shape[2] // 2]
            return channels.astype(jnp.float32) @ jax.random.rademacher(
                key, channels.shape, jnp.float32
            )

        return jnp.abs(jax.grad(center)(image)).sum(axis=-1)

    keys = jax.random.split(jax.random.key(seed), len(images))
    pairs = zip(images.astype(np.float32), keys, strict=True)
    gradients = (np.asarray(gradient(image, key)) for image, key in pairs)
    total = functools.reduce(np.add, gradients)
    return total / max(total.max(), np.finfo(np.float32).tiny)


def effective_side(influence: np.ndarray) -> float:
    """Side of a square as large as the area above 4.55 % of the maximum.

    The size of an effective receptive field in Luo et al. (two standard deviations of
    a Gaussian); `influence` [H, W] comes from :func:`effective`.
    """
    return math.sqrt(np.count_nonzero(influence > (1 - 0.9545) * influence.max()))
