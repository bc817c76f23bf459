"""Mean-field inference in fully connected CRFs (Krähenbühl and Koltun, NIPS 2011).

The energy of a labelling x of N points with features f, and the parallel update of its
mean-field approximation Q:

    E(x) = sum_i U_i(x_i) + 1/2 sum_ij sum_m mu_m(x_i, x_j) k_m(f_i, f_j)
    Q <- softmax(-U - sum_m mu_m K_m Q),   Q_0 = softmax(-U)

A term m is a :class:`Kernel`: a filter v -> K v (ops/filters.py) and a label
compatibility mu. As in the programs of the field, the sums include j = i. Gradients
flow in the unaries and the compatibilities; features are constants.

:func:`dense_crf` puts it together for images.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax import errors
from segjax.labels import VOID
from segjax.ops import filters, lattice


class Kernel(NamedTuple):
    """One pairwise term.

    Attributes:
      filter: v -> K v, normalized or not.
      compatibility: mu, with the weight of the kernel in it: a number w > 0 for Potts
        (reward -w for equal labels, which is a penalty w for different ones but for a
        constant), [K] for the diagonal of mu, or [K, K] for mu[a, b] itself (row: the
        label of the point; energies, so positive repels; not symmetrised).
    """

    filter: filters.Filter
    compatibility: float | jax.Array


# --- inference ------------------------------------------------------------------------


def pairwise(kernels: Sequence[Kernel], q: jax.Array) -> jax.Array:
    """sum_m mu_m K_m Q: marginals [B, N, K] -> expected pairwise energies [B, N, K]."""
    total = jnp.zeros_like(q)
    for kernel in kernels:
        # XLA would repeat the end of the filter for each of the passes of a softmax.
        message = jax.lax.optimization_barrier(kernel.filter(q))
        mu = jnp.asarray(kernel.compatibility, jnp.float32)
        if mu.ndim == 2:
            total += jnp.einsum(
                "bnk,lk->bnl", message, mu, precision=jax.lax.Precision.HIGHEST
            )
        else:
            total += (-mu if mu.ndim == 0 else mu) * message
    return total


def energy(unary: jax.Array, kernels: Sequence[Kernel], q: jax.Array) -> jax.Array:
    """Expected energy [B] of the marginals q [B, N, K]; E(x) where they are one-hot.

    The sum over pairs includes j = i.
    """
    return jnp.sum(q * (unary + 0.5 * pairwise(kernels, q)), axis=(1, 2))


def mean_field(
    unary: jax.Array,
    kernels: Sequence[Kernel],
    *,
    iterations: int,
    relaxation: float = 1.0,
) -> jax.Array:
    """Marginals Q after some parallel updates.

    Args:
      unary: energies U [B, N, K] float32.
      kernels: any number of pairwise terms.
      iterations: 0 gives softmax(-U).
      relaxation: r in Q <- (1 - r) Q + r softmax(..); below 1 it damps oscillations.

    Returns:
      [B, N, K] float32, sums of 1.
    """

    def step(q: jax.Array, _) -> tuple[jax.Array, None]:
        update = jax.nn.softmax(-unary - pairwise(kernels, q))
        q = update if relaxation == 1 else q + relaxation * (update - q)
        return jax.lax.optimization_barrier(q), None

    unary = jax.lax.optimization_barrier(unary)
    return jax.lax.scan(step, jax.nn.softmax(-unary), length=iterations)[0]


def trace(
    unary: jax.Array,
    kernels: Sequence[Kernel],
    *,
    iterations: int,
    relaxation: float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """:func:`mean_field` with energies and divergences of all updates.

    Returns:
      The marginals; the expected energies [iterations + 1, B], before the first update
      and after each one; and the Kullback-Leibler divergences of Q from the Gibbs
      distribution of E, up to the constant log Z: energy minus entropy. (With j = i in
      the sum both are off by that term; only a symmetric operator has an energy, so
      "after" and "before" need not descend, and nor do parallel updates in general.)
    """

    def step(q: jax.Array, _) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        messages = pairwise(kernels, q)
        update = jax.nn.softmax(-unary - messages)
        expected = jnp.sum(q * (unary + 0.5 * messages), axis=(1, 2))
        entropy = -jnp.sum(jax.scipy.special.xlogy(q, q), axis=(1, 2))
        return q + relaxation * (update - q), (q, expected, expected - entropy)

    _, (q, energies, divergences) = jax.lax.scan(
        step, jax.nn.softmax(-unary), length=iterations + 1
    )
    return q[-1], energies, divergences


# --- images ---------------------------------------------------------------------------


class Settings(NamedTuple):
    """The CRF of two kernels, smoothness and appearance; hashable, static under jit."""

    iterations: int = 10
    smoothness_weight: float = 3.0  # 0 leaves the kernel out
    smoothness_sigma: float = 3.0  # px
    appearance_weight: float = 10.0  # 0 leaves the kernel out
    appearance_sigma_xy: float = 80.0  # px
    appearance_sigma_rgb: float = 13.0  # gray levels
    normalization: str = "symmetric"  # one of NORMALIZATIONS
    smoothness_filter: str = "lattice"  # or "separable"; both approximate the paper's
    relaxation: float = 1.0
    color_order: str = "rgb"  # one of filters.COLOR_ORDERS


SMOOTHNESS_FILTERS = ("lattice", "separable")

# Published settings. DeepLab searched them anew for each network, on 100 validation
# images (v2: weight 3..6, sigma_xy 30..100, sigma_rgb 3..6; the smoothness fixed).
SETTINGS: dict[str, Settings] = {
    # The script of the released code; the paper gives the ranges only.
    "deeplab_v1": Settings(10, 3.0, 3.0, 4.0, 49.0, 5.0, "after"),
    # As re-implementations quote the release; not in the paper, not verified.
    "deeplab_v2_vgg16": Settings(10, 2.0, 2.0, 4.0, 65.0, 3.0, "after"),
    "deeplab_v2_resnet101": Settings(10, 3.0, 1.0, 4.0, 67.0, 3.0, "after"),
    "deconvnet": Settings(10, 3.0, 3.0, 5.0, 20.0, 3.0, "after"),
    # The demo of the 2011 code; the paper learned its parameters on the data.
    "krahenbuhl_koltun": Settings(10, 3.0, 3.0, 10.0, 60.0, 20.0, "after"),
    # Initial values of CRF-RNN; 5 iterations in training.
    "crfrnn": Settings(10, 3.0, 3.0, 5.0, 160.0, 3.0, "after", color_order="caffe"),
    # The example in pydensecrf's documentation.
    "pydensecrf": Settings(),
}


CLIP = 1e-5
"""Probabilities below are raised to it, before their logarithm is an energy."""


def unary_from_probabilities(probabilities: jax.Array, clip: float = CLIP) -> jax.Array:
    """-log p of class probabilities (any shape), which are clipped from below."""
    return -jnp.log(jnp.clip(probabilities.astype(jnp.float32), clip, 1.0))


def unary_from_labels(
    labels: jax.Array, num_classes: int, *, confidence: float, void: int = VOID
) -> jax.Array:
    """Energies of hard labels, such as annotations to be snapped to the image.

    Args:
      labels: [...] integers; `void` means unknown.
      confidence: probability of that label, in (0, 1); the other classes share what
        remains.

    Returns:
      float32 [..., num_classes].
    """
    others = (1 - confidence) / max(num_classes - 1, 1)
    labeled = labels[..., None] == jnp.arange(num_classes)
    p = jnp.where(labeled, jnp.float32(confidence), jnp.float32(others))
    known = (labels != void)[..., None]
    return -jnp.log(jnp.where(known, p, jnp.float32(1 / num_classes)))


def dense_crf(
    probabilities: jax.Array,
    images: jax.Array,
    *,
    settings: Settings,
    capacity: tuple[int, int] = (0, 0),
    appearance: lattice.Sorted | None = None,
) -> jax.Array:
    """Refines class probabilities by the colors of the images.

    Args:
      probabilities: [B, H, W, K].
      images: [B, H, W, C], 0..255, usually RGB.
      settings: under jit static, but weights and sigmas may be traced (not the sigma
        of a separable filter); a kernel whose weight is the number 0 is left out.
      capacity: vertices of the smoothness and of the appearance lattice, static; 0 is
        the bound, N * (d + 1), which always suffices but wastes time and memory.
        :func:`choose_capacity` finds what the images need.
      appearance: ``lattice.sort`` of the features of the appearance kernel, if this has
        been done to count their vertices.

    Returns:
      Marginals [B, H, W, K] float32; NaN for an image whose lattice needs more.

    Raises:
      UserError: a bad field of `settings`.
    """
    _, height, width, classes = probabilities.shape
    smoothness = smoothness_kernel(
        height, width, settings=settings, capacity=capacity[0]
    )

    def run(probabilities, images, appearance):
        terms = smoothness + appearance_kernel(
            images, settings, capacity=capacity[1], points=appearance
        )
        unary = unary_from_probabilities(probabilities)
        unary = unary.reshape(len(images), -1, classes)
        q = mean_field(
            unary,
            terms,
            iterations=settings.iterations,
            relaxation=settings.relaxation,
        )
        return q.reshape(probabilities.shape)

    arrays = probabilities, images, appearance
    if len(images) == 1:
        return run(*arrays)

    # One after the other on CPU: what one image needs fits the cache, and each
    # operation uses all cores anyway.
    def one_by_one(*arrays):
        alone = jax.tree.map(lambda x: x[:, None], arrays)
        return jax.lax.map(lambda one: run(*one)[0], alone)

    return jax.lax.platform_dependent(*arrays, cpu=one_by_one, default=run)


def smoothness_kernel(
    height: int, width: int, *, settings: Settings, capacity: int = 0
) -> list[Kernel]:
    """The first term of :func:`dense_crf`, for any images; none at weight 0."""
    if not _has(settings.smoothness_weight):
        return []
    sigma = settings.smoothness_sigma
    if settings.smoothness_filter == "separable":
        filter = filters.separable_filter(height, width, sigma)
    elif settings.smoothness_filter == "lattice":
        features = filters.smoothness_features(height, width, sigma)
        filter = filters.lattice_filter(features, capacity)
    else:
        raise errors.unknown(
            "smoothness_filter", settings.smoothness_filter, SMOOTHNESS_FILTERS
        )
    filter = filters.normalize(
        filter, settings.normalization, batch=1, points=height * width
    )
    return [Kernel(filter, settings.smoothness_weight)]


def appearance_kernel(
    images: jax.Array,
    settings: Settings,
    *,
    capacity: int = 0,
    points: lattice.Sorted | None = None,
) -> list[Kernel]:
    """The second term of :func:`dense_crf`; none at weight 0."""
    if not _has(settings.appearance_weight):
        return []
    batch, height, width, _ = images.shape
    filter = filters.lattice_filter(
        appearance_features(images, settings) if points is None else points, capacity
    )
    filter = filters.normalize(
        filter, settings.normalization, batch=batch, points=height * width
    )
    return [Kernel(filter, settings.appearance_weight)]


def appearance_features(images: jax.Array, settings: Settings) -> jax.Array:
    """``filters.appearance_features`` of the appearance kernel of these settings."""
    return filters.appearance_features(
        images,
        settings.appearance_sigma_xy,
        settings.appearance_sigma_rgb,
        color_order=settings.color_order,
    )


def _has(weight: float | jax.Array) -> bool:
    return not isinstance(weight, int | float) or weight != 0


def choose_capacity(images: Any, settings: Settings) -> tuple[int, int]:
    """Capacities for :func:`dense_crf` of `images` [B, H, W, C], 0..255.

    For the host, not under jit: the vertices are counted. Rounded up, so that similar
    images share one compilation.
    """
    _, height, width, channels = images.shape
    points = height * width
    smoothness = appearance = 0
    if settings.smoothness_weight and settings.smoothness_filter == "lattice":
        smoothness = smoothness_capacity(height, width, settings.smoothness_sigma)
    if settings.appearance_weight:
        counts = np.asarray(_count_appearance(jnp.asarray(images), settings))
        appearance = lattice.choose_capacity(counts, points, dims=2 + channels)
    return smoothness, appearance


@functools.partial(jax.jit, static_argnums=1)
def _count_appearance(images: jax.Array, settings: Settings) -> jax.Array:
    return lattice.count_vertices(appearance_features(images, settings))


@functools.lru_cache
def smoothness_capacity(height: int, width: int, sigma: float) -> int:
    """The capacity for :func:`smoothness_features`, which needs no image.

    Counted on the device; works while something else is being traced, too.
    """
    features = filters.smoothness_features(height, width, sigma)
    with jax.ensure_compile_time_eval():
        counts = np.asarray(lattice.count_vertices(features))
    return lattice.choose_capacity(counts, height * width, dims=2)
