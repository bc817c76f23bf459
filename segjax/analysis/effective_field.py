"""Which pixels of an image move the score of one class at one pixel."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def influence(
    scores: Callable[[jax.Array], jax.Array],
    image: jax.Array,
    *,
    row: jax.Array | int,
    column: jax.Array | int,
    channel: jax.Array | int,
) -> jax.Array:
    """The absolute gradient of one score, summed over the channels of the image.

    For one image, what ``receptive_field.effective`` averages over several (Luo et al.,
    NeurIPS 2016). Pixels that the network sees twice, as mirrored ones, have the
    gradient of both.

    Args:
      scores: images [1, H, W, C] -> [1, h, w, K].
      image: [H, W, C], 0..255.
      row, column, channel: of the score; they may be traced.

    Returns:
      float32 [H, W], 0 or more.
    """

    def score(image: jax.Array) -> jax.Array:
        return scores(image[None])[0, row, column, channel].astype(jnp.float32)

    gradient = jax.grad(score)(image.astype(jnp.float32))
    return jnp.abs(gradient).sum(axis=-1)
