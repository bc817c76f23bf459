"""The fully connected CRF as the last stage of a prediction (ops/mean_field.py)."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from segjax import config_fields, errors, sharding
from segjax.errors import UserError
from segjax.inference import crf_points
from segjax.inference.predictors import Predictor
from segjax.ops import filters, lattice, mean_field


def dense_crf(
    predictor: Predictor,
    settings: mean_field.Settings,
    capacity: tuple[int, int] = (0, 0),
) -> Predictor:
    """A predictor whose probabilities are the marginals of the CRF.

    A pure function that can be jitted; the capacities of the lattices must therefore be
    known beforehand. 0 is the bound, which always suffices; a smaller one takes less
    time and memory, and an image that needs more gets NaN. Commands use ``refine``,
    which counts the vertices first.

    Args:
      predictor: gives the unary energies, -log p.
      settings: of the CRF.
      capacity: see ``mean_field.dense_crf``.
    """

    def predict(variables: Any, images: jax.Array) -> jax.Array:
        probabilities = predictor(variables, images)
        return mean_field.dense_crf(
            probabilities, images, settings=settings, capacity=capacity
        )

    return predict


def refine(
    probabilities: jax.Array,
    images: jax.Array,
    *,
    settings: mean_field.Settings,
    mesh: jax.sharding.Mesh,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> jax.Array:
    """Marginals of the CRF, with as much memory as these images need.

    Not under jit: it counts the vertices of the lattices first. Few shapes compile: on
    a CPU one for all images of up to four times as many pixels (``crf_points.py``),
    elsewhere one for a shape of the batch and a power of two of vertices. Weights and
    sigmas are arguments of the executable: a search over them compiles no more than a
    single evaluation. Each device works on its own images.

    Args:
      probabilities: [N, H, W, K], split over the devices of ``mesh``.
      images: [N, H, W, C], 0..255, split in the same way.
      settings: of the CRF.
      mesh: of all processes if there are several, which then call this together, or of
        one process.
      sizes: (h, w) of the images of this process without what they were padded by;
        (0, 0) for rows that are no images. None: H x W. Other pixels keep their
        probabilities.

    Returns:
      float32 [N, H, W, K], split in the same way.

    Raises:
      UserError: sigmas so small that a lattice has too many vertices to number, or
        images that are neither gray nor RGB.
    """
    filters.check_colors(images.shape[-1])
    if mesh.devices.flat[0].platform == "cpu":
        return _refine_on_cpu(
            probabilities, images, sizes=sizes, settings=settings, mesh=mesh
        )
    return _refine_on_devices(probabilities, images, settings=settings, mesh=mesh)


def _refine_on_cpu(
    probabilities: jax.Array,
    images: jax.Array,
    *,
    sizes: Sequence[tuple[int, int]] | None,
    settings: mean_field.Settings,
    mesh: jax.sharding.Mesh,
) -> jax.Array:
    """``refine`` by ``crf_points.py``."""
    split = sharding.split(mesh)
    probabilities, images = jax.device_put((probabilities, images), split)
    shards = sorted(probabilities.addressable_shards, key=_first_row)
    refined = [np.array(shard.data, np.float32) for shard in shards]
    pixels = [
        np.asarray(shard.data)
        for shard in sorted(images.addressable_shards, key=_first_row)
    ]
    rows = [row for shard in refined for row in shard]
    if sizes is None:
        sizes = [row.shape[:2] for row in rows]

    whole = zip(rows, itertools.chain(*pixels), sizes, strict=True)
    # Views of the rows: what is refined takes their place.
    parts = [(row[:h, :w], image[:h, :w]) for row, image, (h, w) in whole if h and w]
    given, seen = [part for part, _ in parts], [image for _, image in parts]
    for part, found in zip(given, crf_points.dense_crfs(given, seen, settings)):
        part[:] = found
    arrays = [
        jax.device_put(array, shard.device)
        for array, shard in zip(refined, shards, strict=True)
    ]
    shape = probabilities.shape
    return jax.make_array_from_single_device_arrays(shape, split, arrays)


def _first_row(shard: Any) -> int:
    return shard.index[0].start or 0


def _refine_on_devices(
    probabilities: jax.Array,
    images: jax.Array,
    *,
    settings: mean_field.Settings,
    mesh: jax.sharding.Mesh,
) -> jax.Array:
    """``refine`` by ``mean_field.dense_crf``, all images of a device at once."""
    _, height, width, channels = images.shape
    # 0 where there is no such lattice.
    smoothness = appearance = 0
    points = None
    if settings.smoothness_weight and settings.smoothness_filter == "lattice":
        sigma = settings.smoothness_sigma
        smoothness = mean_field.smoothness_capacity(height, width, sigma)
    if settings.appearance_weight:
        sigmas = settings.appearance_sigma_xy, settings.appearance_sigma_rgb
        points, largest = _sort(images, sigmas, mesh, settings.color_order)
        count = int(largest)
        if count == np.iinfo(np.int32).max:
            raise UserError(f"the CRF's sigmas {sigmas} are too small for a lattice")
        # Coarse steps: compiling another shape costs more than unused vertices.
        appearance = lattice.choose_capacity(
            [count], height * width, dims=2 + channels, per_octave=1
        )
    # Traced, so that changing them does not recompile; a weight of 0 stays a number,
    # because it decides which kernels there are.
    traced = {name: v for name in _TRACED if (v := getattr(settings, name))}
    if settings.smoothness_filter == "separable":
        del traced["smoothness_sigma"]  # it determines the taps of a convolution
    ones: dict[str, Any] = dict.fromkeys(traced, 1.0)
    fixed = settings._replace(**ones)
    capacity = smoothness, appearance
    return _refine(probabilities, images, points, traced, fixed, capacity, mesh)


_TRACED = (
    "smoothness_weight",
    "smoothness_sigma",
    "appearance_weight",
    "appearance_sigma_xy",
    "appearance_sigma_rgb",
)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _sort(
    images: jax.Array,
    sigmas: tuple[float, float],
    mesh: jax.sharding.Mesh,
    color_order: str,
) -> tuple[lattice.Sorted, jax.Array]:
    """The vertices of the appearance lattices, and the largest number per image."""

    def run(images: jax.Array, sigmas: tuple) -> lattice.Sorted:
        features = filters.appearance_features(images, *sigmas, color_order=color_order)
        return lattice.sort(features)

    points = _on_each_device(run, mesh)(images, sigmas)
    replicated = NamedSharding(mesh, PartitionSpec())
    largest = jax.lax.with_sharding_constraint(jnp.max(points.vertex_count), replicated)
    return points, largest


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _refine(
    probabilities: jax.Array,
    images: jax.Array,
    points: lattice.Sorted | None,
    traced: dict[str, jax.Array],
    fixed: mean_field.Settings,
    capacity: tuple[int, int],
    mesh: jax.sharding.Mesh,
) -> jax.Array:
    """``mean_field.dense_crf`` with some of the settings traced."""

    def run(probabilities, images, points, traced):
        return mean_field.dense_crf(
            probabilities,
            images,
            settings=fixed._replace(**traced),
            capacity=capacity,
            appearance=points,
        )

    return _on_each_device(run, mesh)(probabilities, images, points, traced)


def _on_each_device(run: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """``shard_map`` of ``run``: all arguments sharded over the batch but the last."""

    def split_run(*args):
        split = PartitionSpec(mesh.axis_names)
        return jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(*(split for _ in args[1:]), PartitionSpec()),
            out_specs=split,
            # Loops start from constants, which are the same on all devices.
            check_vma=False,
        )(*args)

    return split_run


def crf_settings(values: Mapping[str, Any], address: str) -> mean_field.Settings:
    """Checks the fields of a CRF; those not given keep their defaults.

    Args:
      values: of fields of ``mean_field.Settings``.
      address: where they come from, for messages: "--config.crf" or a file.

    Raises:
      UserError: an unknown name, or a type or value that cannot be; one line.
    """
    settings = mean_field.Settings()._asdict()
    for field, value in values.items():
        if field not in settings:
            raise errors.unknown(address, field, settings)
        if isinstance(settings[field], float) and type(value) is int:
            value = float(value)
        if type(value) is not type(settings[field]):
            kind = type(settings[field]).__name__
            raise UserError(f"{address}.{field} is {value!r}; expected {kind}")
        known = config_fields.FIELDS["crf"][field]
        config_fields.check(f"{address}.{field}", known, value)
        settings[field] = value
    return mean_field.Settings(**settings)
