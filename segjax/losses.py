"""Losses: each returns ``(sum, count)``, so that the caller divides once.

Dividing per device, per image or per accumulated part and averaging afterwards would
weigh pixels unevenly as soon as the void pixels are unevenly spread.
"""

import jax
import jax.numpy as jnp

from segjax.labels import VOID


def center_crop(labels: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Crops [N, H, W] to the centered [N, h, w] that a valid model predicts.

    Raises:
      ValueError: the margins are not equal on both sides, or negative.
    """
    margins = [have - want for have, want in zip(labels.shape[1:3], size, strict=True)]
    if any(margin < 0 or margin % 2 for margin in margins):
        raise ValueError(
            f"labels {labels.shape[1:3]} cannot be center-cropped to logits {size}: "
            "the margin must be even and not negative"
        )
    top, left = (margin // 2 for margin in margins)
    return labels[:, top : top + size[0], left : left + size[1]]


def _nll(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cropped labels [N, h, w] and losses [N, h, w]."""
    labels = center_crop(labels, logits.shape[1:3])
    logits = logits.astype(jnp.float32)
    chosen = _of_label(labels, logits)
    return labels, jax.nn.logsumexp(logits, axis=-1) - chosen


def _of_label(labels: jax.Array, values: jax.Array) -> jax.Array:
    """The entry of `values` [.., K] that each of the labels names; 0 for void."""
    # A masked sum instead of a gather: it fuses, and is much faster on TPU.
    truth = labels[..., None] == jnp.arange(values.shape[-1])
    return jnp.sum(jnp.where(truth, values, 0.0), axis=-1)


def _weight(labels: jax.Array, class_weights: tuple[float, ...]) -> jax.Array:
    if not class_weights:
        return (labels != VOID).astype(jnp.float32)
    return _of_label(labels, jnp.asarray(class_weights, jnp.float32))


def cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: tuple[float, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy over the valid pixels.

    Args:
      logits: [N, h, w, K] float.
      labels: [N, H, W] integer train ids, 255 = void; cropped to the center.
      class_weights: K weights, or () for 1.

    Returns:
      The weighted sum over valid pixels, and the sum of the weights (the number of
      valid pixels if there are no class weights); float32 scalars.
    """
    labels, nll = _nll(logits, labels)
    weight = _weight(labels, class_weights)
    # where, not a product: an infinite loss on a void pixel must not become NaN.
    return jnp.sum(jnp.where(weight > 0, nll * weight, 0.0)), jnp.sum(weight)


def bootstrapped_cross_entropy(
    logits: jax.Array, labels: jax.Array, pixels: int = 512 * 64
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy over the `pixels` worst pixels of every image (FRRN).

    Void pixels have a loss of 0 but are pixels: where an image has fewer than `pixels`
    valid ones, zeros fill up its mean (as in the authors' code). So every image has
    the same weight, unlike in :func:`cross_entropy`.

    Args:
      logits: [N, h, w, K] float.
      labels: [N, H, W] integer train ids, 255 = void; cropped to the center.
      pixels: how many of an image's h * w are kept; all of them if there are fewer.

    Returns:
      The sum over the kept pixels, and their number N * min(pixels, h * w); float32
      scalars.

    Raises:
      ValueError: `pixels` is below 1.
    """
    if pixels < 1:
        raise ValueError(f"pixels is {pixels}, expected at least 1")
    labels, nll = _nll(logits, labels)
    nll = jnp.where(labels != VOID, nll, 0.0).reshape(len(labels), -1)
    worst, _ = jax.lax.top_k(nll, min(pixels, nll.shape[1]))
    return jnp.sum(worst), jnp.float32(worst.size)


def count(
    labels: jax.Array, class_weights: tuple[float, ...] = (), bootstrap: int = 0
) -> jax.Array:
    """The count that a loss on `labels` [N, h, w] returns, before there are logits.

    That of :func:`bootstrapped_cross_entropy` with `bootstrap` pixels, or where that is
    0 of :func:`cross_entropy`; float32 scalar.
    """
    if bootstrap:
        height, width = labels.shape[1:3]
        return jnp.float32(len(labels) * min(bootstrap, height * width))
    return jnp.sum(_weight(labels, class_weights))
