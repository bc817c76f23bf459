"""Dropout whose mask is drawn once."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.ops import platforms


class Dropout(nn.Dropout):
    """Flax's Dropout (Srivastava et al., JMLR 2014): the same mask, the same numbers.

    A TPU's compiler would draw the random numbers again for every gradient that the
    mask is in, which costs more than the layer behind it: it is told to keep the mask.

    Attributes:
      rate: of the values that become zero, below 1; the others are divided by the rest.
      deterministic: returns the map as it is.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        if self.deterministic or not self.rate:
            return x
        kept = 1 - self.rate
        mask = jax.random.bernoulli(self.make_rng("dropout"), kept, x.shape)
        if platforms.traced_for() == "tpu":
            mask = jax.lax.optimization_barrier(mask)
        return jax.lax.select(mask, x / kept, jnp.zeros_like(x))
