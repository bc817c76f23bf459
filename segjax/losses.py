"""Losses: each returns ``(sum, count)``, so that the caller divides once.

Dividing per device, per image or per micro-batch and averaging afterwards would weigh
pixels unevenly as soon as the void pixels are unevenly spread. The count of a loss
depends on the labels alone, never on the scores, so that it is known for a whole batch
before its first micro-batch has been processed (:func:`count`).

A new loss is a function of ``(logits, labels, options, added)`` and a line of
:data:`PIXEL_LOSSES` or :data:`REGION_LOSSES`. The weight of a pixel is that of its
class plus ``added``, if that is given: U-Net's w(x) = w_c(x) + w_border(x). A pixel of
weight w counts as w pixels. A parameter of its own is a field of
:class:`Options` and the field of the same name in ``config_fields.py``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from segjax.labels import VOID


class Options(NamedTuple):
    """What the losses may depend on; each uses the options that it mentions."""

    class_weights: tuple[float, ...] = ()
    """K weights that are not negative, or () for 1."""
    hard_pixels: int = 512 * 64
    """Number of hardest pixels of an image that count (FRRN: a quarter of 256x512)."""
    per_image: bool = True
    """Whether the sums of a loss on regions are over each image or over the batch."""


DEFAULT = Options()


def options(config: Any) -> Options:
    """The options of ``config.loss``."""
    return Options(**{name: getattr(config, name) for name in Options._fields})


def center_crop(labels: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Crops [N, H, W] to the centered [N, h, w] that a valid model predicts.

    Raises:
      ValueError: the margins are not equal on both sides, or negative.
    """
    sides = labels.shape[1:3]
    margins = [outer - inner for outer, inner in zip(sides, size, strict=True)]
    if any(margin < 0 or margin % 2 for margin in margins):
        raise ValueError(
            f"labels {sides} cannot be center-cropped to logits {size}: "
            "the margin must be even and not negative"
        )
    top, left = (margin // 2 for margin in margins)
    return labels[:, top : top + size[0], left : left + size[1]]


def _nll(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Negative log-likelihoods [N, h, w] of labels [N, h, w]."""
    logits = logits.astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=-1) - _of_label(labels, logits)


def _of_label(labels: jax.Array, values: jax.Array) -> jax.Array:
    """The entry of `values` [.., K] that each of the labels names; 0 for void."""
    # A masked sum instead of a gather: it fuses, and is much faster on TPU.
    truth = labels[..., None] == jnp.arange(values.shape[-1])
    return jnp.sum(jnp.where(truth, values, 0.0), axis=-1)


def _pixels(
    logits: jax.Array,
    labels: jax.Array,
    options: Options,
    added: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Labels and weights [N, h, w], cropped to the logits; void pixels weigh 0."""
    size = logits.shape[1], logits.shape[2]
    labels = center_crop(labels, size)
    if options.class_weights:
        classes = jnp.asarray(options.class_weights, jnp.float32)
        weights = _of_label(labels, classes)
    else:
        weights = (labels != VOID).astype(jnp.float32)
    if added is not None:
        weights += jnp.where(labels != VOID, center_crop(added, size), 0.0)
    return labels, weights


# --- losses that are sums over pixels -------------------------------------------------


def cross_entropy(
    logits: jax.Array,
    labels: jax.Array,
    options: Options = DEFAULT,
    added: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy over the valid pixels.

    Args:
      logits: [N, h, w, K] float.
      labels: [N, H, W] integer train ids, 255 = void; cropped to the center.
      options: ``class_weights``.
      added: [N, H, W] float >= 0, added to the weights of the classes.

    Returns:
      The weighted sum over valid pixels, and the sum of the weights (the number of
      valid pixels if there are no weights); float32 scalars.
    """
    labels, weight = _pixels(logits, labels, options, added)
    nll = _nll(logits, labels)
    # where, not a product: an infinite loss on a void pixel must not become NaN.
    return jnp.sum(jnp.where(weight > 0, nll * weight, 0.0)), jnp.sum(weight)


def absolute_error(
    logits: jax.Array,
    labels: jax.Array,
    options: Options = DEFAULT,
    added: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One minus the probability of the true class, over the valid pixels.

    The mean absolute error of FusionNet's released training: with two classes it is
    abs(p - y) of a sigmoid p and the label y in {0, 1}.

    Args:
      logits: [N, h, w, K] float.
      labels: [N, H, W] integer train ids, 255 = void; cropped to the center.
      options: ``class_weights``.
      added: [N, H, W] float >= 0, added to the weights of the classes.

    Returns:
      As :func:`cross_entropy`.
    """
    labels, weight = _pixels(logits, labels, options, added)
    error = -jnp.expm1(-_nll(logits, labels))
    return jnp.sum(jnp.where(weight > 0, error * weight, 0.0)), jnp.sum(weight)


def hard_pixels(
    logits: jax.Array,
    labels: jax.Array,
    options: Options = DEFAULT,
    added: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy over the hardest pixels of every image.

    The bootstrapped cross-entropy of FRRN (Pohlen et al., CVPR 2017, section 4). Void
    pixels have a loss of 0 but are pixels: where an image has fewer valid ones than are
    kept, zeros fill up its mean (as in the authors' code). So every image has the same
    weight, unlike in :func:`cross_entropy`.

    Args:
      logits: [N, h, w, K] float.
      labels: [N, H, W] integer train ids, 255 = void; cropped to the center.
      options: ``hard_pixels``, how many of an image's h * w pixels are kept; all of
        them if there are fewer.
      added: [N, H, W] float >= 0: pixels are compared, and summed, by 1 + added times
        their loss; the number of pixels that are kept stays the same.

    Returns:
      The sum over the kept pixels, and their number N * min(hard_pixels, h * w);
      float32 scalars.

    Raises:
      ValueError: ``hard_pixels`` is below 1.
    """
    if options.hard_pixels < 1:
        raise ValueError(f"hard_pixels is {options.hard_pixels}, expected at least 1")
    alike = options._replace(class_weights=())
    labels, weight = _pixels(logits, labels, alike, added)
    nll = jnp.where(weight > 0, _nll(logits, labels) * weight, 0.0)
    nll = nll.reshape(len(labels), -1)
    hardest, _ = jax.lax.top_k(nll, min(options.hard_pixels, nll.shape[1]))
    return jnp.sum(hardest), jnp.float32(hardest.size)


# --- losses that compare regions ------------------------------------------------------


class _Regions(NamedTuple):
    """Probabilities and labels of R regions: the images, or the whole batch."""

    probability: jax.Array  # [R, P, K] float32, sums of 1
    truth: jax.Array  # [R, P, K] bool, all False for void
    valid: jax.Array  # [R, P] bool
    weight: jax.Array | None  # [R, P] float32, 0 for void; None: all valid ones alike


def _regions(
    logits: jax.Array, labels: jax.Array, options: Options, added: jax.Array | None
) -> _Regions:
    # The weights of classes are those of the mean over classes, not of pixels.
    alike = options._replace(class_weights=())
    labels, weight = _pixels(logits, labels, alike, added)
    probability = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    regions = len(labels) if options.per_image else 1
    labels, weight = (x.reshape(regions, -1) for x in (labels, weight))
    truth = labels[..., None] == jnp.arange(logits.shape[-1])
    return _Regions(
        probability.reshape(*truth.shape),
        truth,
        labels != VOID,
        None if added is None else weight,
    )


def _over_classes(
    losses: jax.Array, regions: _Regions, options: Options
) -> tuple[jax.Array, jax.Array]:
    """Sum and count of losses [R, K]: of a region, the mean over its classes.

    Only classes that occur in a region count in its mean, by their weights.
    """
    weights = jnp.asarray(options.class_weights or (1.0,), jnp.float32)
    weights = jnp.where(regions.truth.any(axis=1), weights, 0.0)
    total = weights.sum(-1)
    means = jnp.sum(jnp.where(weights > 0, losses * weights, 0.0), -1)
    means = means / jnp.where(total > 0, total, 1.0)
    # An image counts once. A batch counts as its pixels, for the mean over several
    # micro-batches.
    size = regions.valid.sum(-1) if not options.per_image else 1.0
    count = jnp.where(total > 0, size, 0.0).astype(jnp.float32)
    return jnp.sum(means * count), jnp.sum(count)


def lovasz_softmax(
    logits: jax.Array,
    labels: jax.Array,
    options: Options = DEFAULT,
    added: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The Lovász-Softmax loss, a convex surrogate of 1 - IoU.

    Berman, Triki and Blaschko, CVPR 2018: with the errors m = 1 - p on the pixels of a
    class and m = p elsewhere, the Lovász extension of the Jaccard loss of that class at
    m (algorithm 1), averaged over the classes that occur in the labels ("present").

    Args:
      logits: [N, h, w, K] float.
      labels: [N, H, W] integer train ids, 255 = void; cropped to the center.
      options: ``class_weights``, of the mean over classes; ``per_image``: a loss for
        every image, or one for the batch, where that is a micro-batch if gradients are
        accumulated.
      added: [N, H, W] float >= 0: a pixel counts as 1 + added pixels in the Jaccard
        loss.

    Returns:
      The sum of the losses of the images, and the number of images with valid pixels;
      or the loss of the batch times its number of valid pixels, and that number.
      Float32 scalars.
    """
    regions = _regions(logits, labels, options, added)
    errors = jnp.abs(regions.truth - regions.probability)
    errors = jnp.where(regions.valid[..., None], errors, 0.0)
    slopes = _jaccard_slopes(errors, regions.truth, regions.weight)
    slopes = jax.lax.stop_gradient(slopes)
    losses = jnp.sum(errors * slopes, axis=1)
    return _over_classes(losses, regions, options)


def _jaccard_slopes(
    errors: jax.Array, truth: jax.Array, weight: jax.Array | None
) -> jax.Array:
    """The gradient [R, P, K] of the Lovász extension of the Jaccard loss at `errors`.

    The increase of the Jaccard loss when a pixel joins the mispredicted ones, where
    pixels join in the order of falling errors. Void pixels have an error of 0: they
    join behind all pixels that count.
    """
    errors = jnp.moveaxis(jax.lax.stop_gradient(errors), 1, -1)
    places = jax.lax.broadcasted_iota(jnp.int32, errors.shape, 2)
    keys = [-errors, places, jnp.moveaxis(truth, 1, -1)]
    if weight is None:
        _, places, truth = jax.lax.sort(keys, num_keys=1)
        # Integers: float32 would not count beyond 2^24 pixels.
        inside, outside = truth.astype(jnp.int32), (~truth).astype(jnp.int32)
    else:
        keys.append(jnp.broadcast_to(weight[:, None], errors.shape))
        _, places, truth, sizes = jax.lax.sort(keys, num_keys=1)
        inside, outside = jnp.where(truth, sizes, 0), jnp.where(truth, 0, sizes)
    foreground = inside.sum(-1, keepdims=True)
    missed, added = jnp.cumsum(inside, -1), jnp.cumsum(outside, -1)
    union = (foreground + added).astype(jnp.float32)
    least = 1.0 if weight is None else jnp.finfo(jnp.float32).tiny
    jaccard = 1.0 - (foreground - missed) / jnp.maximum(union, least)
    slopes = jnp.diff(jaccard, axis=-1, prepend=0.0)
    _, slopes = jax.lax.sort((places, slopes), num_keys=1)  # back to the pixels
    return jnp.moveaxis(slopes, -1, 1)


def soft_dice(
    logits: jax.Array,
    labels: jax.Array,
    options: Options = DEFAULT,
    added: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """One minus the soft Dice coefficient, averaged over the classes that occur.

    V-Net's form (Milletari, Navab and Ahmadi, 3DV 2016, section 3): of a class,
    D = 2 sum p g / (sum p^2 + sum g^2) with probabilities p and truth g in {0, 1}.

    Args:
      logits: [N, h, w, K] float.
      labels: [N, H, W] integer train ids, 255 = void; cropped to the center.
      options: ``class_weights``, of the mean over classes; ``per_image``: as in
        :func:`lovasz_softmax`.
      added: [N, H, W] float >= 0: a pixel counts as 1 + added pixels in all sums.

    Returns:
      As :func:`lovasz_softmax`.
    """
    regions = _regions(logits, labels, options, added)
    p = jnp.where(regions.valid[..., None], regions.probability, 0.0)
    size = 1.0 if regions.weight is None else regions.weight[..., None]
    overlap = jnp.sum(jnp.where(regions.truth, size * p, 0.0), axis=1)
    sizes = jnp.sum(size * p**2, axis=1)
    sizes += jnp.sum(jnp.where(regions.truth, size, 0.0), axis=1)
    losses = 1.0 - 2.0 * overlap / jnp.where(sizes > 0, sizes, 1.0)
    return _over_classes(losses, regions, options)


Loss = Callable[
    [jax.Array, jax.Array, Options, jax.Array | None], tuple[jax.Array, jax.Array]
]
PIXEL_LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "absolute_error": absolute_error,
    "hard_pixels": hard_pixels,
}
"""Sums over pixels, which ``config.loss.normalize`` may divide by the images."""
REGION_LOSSES: dict[str, Loss] = {
    "lovasz_softmax": lovasz_softmax,
    "soft_dice": soft_dice,
}
LOSSES = PIXEL_LOSSES | REGION_LOSSES


def count(
    loss: Loss,
    labels: jax.Array,
    *,
    num_classes: int,
    options: Options = DEFAULT,
    added: jax.Array | None = None,
) -> jax.Array:
    """The count that a loss returns for `labels` [N, h, w], before there are logits."""
    # It does not depend on the logits, so the compiler drops the rest.
    logits = jnp.zeros((*labels.shape, num_classes), jnp.float32)
    return loss(logits, labels, options, added)[1]


def auxiliary_weight(
    step: jax.Array | int,
    *,
    initial: float = 1.0,
    factor: float = 0.1,
    every: int = 10_000,
    floor: float = 0.01,
) -> jax.Array:
    """Weight of the auxiliary losses at `step`: divided step-wise down to `floor`.

    The defaults are those of the Deep Contextual Network (Chen et al., AAAI 2016),
    whose auxiliary classifiers fade from a weight of 1; the interval and the floor are
    not known for certain. A `factor` of 1 keeps the weight constant.
    """
    decay = optax.exponential_decay(initial, every, factor, staircase=True)
    return jnp.maximum(decay(jnp.asarray(step)), floor)
