"""Normalizations without parameters of [N, H, W, C] maps."""

import jax
import jax.numpy as jnp


def local_response_norm(
    x: jax.Array,
    *,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
) -> jax.Array:
    """Local response normalization across channels (Krizhevsky et al., NIPS 2012).

    x_c (k + alpha / size * sum of x^2 over the `size` channels around c) ^ -beta, with
    zeros beyond the first and last channel. `alpha` is divided by `size`, as in Caffe
    and PyTorch (not in the paper nor in TensorFlow). Float32 inside, type kept.

    Raises:
      ValueError: `size` is even.
    """
    if size % 2 == 0:
        raise ValueError(f"local_response_norm: size is {size}, expected an odd number")
    wide = x.astype(jnp.float32)
    channels, reach = x.shape[-1], size // 2
    square = jnp.pad(wide * wide, ((0, 0), (0, 0), (0, 0), (reach, reach)))
    total = sum(square[..., i : i + channels] for i in range(size))
    return (wide * (k + alpha / size * total) ** -beta).astype(x.dtype)
