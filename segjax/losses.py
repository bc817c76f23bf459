"""Losses: each returns ``(sum, count)``, so that the caller divides once.

Dividing per device, per image or per accumulated part and averaging afterwards would
weigh pixels unevenly as soon as the void pixels are unevenly spread.
"""

import jax
import jax.numpy as jnp

VOID = 255


def centre_crop(labels: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Crops [N, H, W] to the centred [N, h, w] that a valid model predicts.

    Raises:
      ValueError: the margins are not equal on both sides, or negative.
    """
    margins = [have - want for have, want in zip(labels.shape[1:3], size, strict=True)]
    if any(margin < 0 or margin % 2 for margin in margins):
        raise ValueError(
            f"labels {labels.shape[1:3]} cannot be centre-cropped to logits {size}: "
            "the margin must be even and not negative"
        )
    top, left = (margin // 2 for margin in margins)
    return labels[:, top : top + size[0], left : left + size[1]]


def cross_entropy(
    logits: jax.Array, labels: jax.Array, class_weights: tuple[float, ...] = ()
) -> tuple[jax.Array, jax.Array]:
    """Softmax cross-entropy over the valid pixels.

    Args:
      logits: [N, h, w, K] float.
      labels: [N, H, W] integer train ids, 255 = void; cropped to the centre.
      class_weights: K weights, or () for 1.

    Returns:
      The weighted sum over valid pixels, and the sum of the weights (the number of
      valid pixels if there are no class weights); float32 scalars.
    """
    labels = centre_crop(labels, logits.shape[1:3]).astype(jnp.int32)
    logits = logits.astype(jnp.float32)
    classes = logits.shape[-1]
    # A masked sum instead of a gather: it fuses, and is much faster on TPU.
    truth = labels[..., None] == jnp.arange(classes)
    nll = jax.nn.logsumexp(logits, axis=-1) - jnp.sum(
        jnp.where(truth, logits, 0.0), axis=-1
    )
    weight = (labels != VOID).astype(jnp.float32)
    if class_weights:
        table = jnp.asarray(class_weights, jnp.float32)
        weight = weight * jnp.sum(jnp.where(truth, table, 0.0), axis=-1)
    # where, not a product: an infinite loss on a void pixel must not become NaN.
    return jnp.sum(jnp.where(weight > 0, nll * weight, 0.0)), jnp.sum(weight)
