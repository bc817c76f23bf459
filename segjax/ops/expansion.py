"""A 1x1 convolution to more channels and its batch normalization, in one pass.

The mean and the variance of the products x W follow from those of their input, mean m
and covariance C: m W and the diagonal of W^T C W. With few input channels C costs
little, and the statistics are known before the products are: these are normalized as
they are computed and never stored. The gradients need them neither: their sums are in
the gradient of W, and what they add to the gradient of x is a product of x again.

On a TPU such layers wait for memory: the second convolution of a ResNet's bottleneck
has a quarter of the channels of the third one, whose products are written once and read
five times otherwise (docs/benchmark.md).
"""

import functools

import jax
import jax.numpy as jnp

from segjax.ops import strided

_EXACT = jax.lax.Precision.HIGHEST
# Channels are what is left, and everything else is summed.
_OUTER = jax.lax.ConvDimensionNumbers((3, 0, 1, 2), (3, 0, 1, 2), (2, 3, 0, 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def normalized_expansion(
    x: jax.Array,
    kernel: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    epsilon: float = 1e-5,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Batch normalization of ``conv.conv2d`` with a 1x1 `kernel`.

    Ioffe and Szegedy, ICML 2015, with the statistics of all N H W products.

    Args:
      x: [N, H, W, I].
      kernel: [I, O], float32; rounded to the type of `x`.
      scale, bias: [O], float32.
      epsilon: added to the variance.

    Returns:
      [N, H, W, O] in the type of `x`, and the mean and variance [O] of the products,
      which have no gradients.
    """
    return _forward(x, kernel, scale, bias, epsilon)[0]


def _forward(x, kernel, scale, bias, epsilon):
    rounded = _rounded(kernel, x)
    # A product with ones, which a TPU sums faster than its vectors do.
    mean = _outer(jnp.ones_like(x[..., :1]), x)[0] / _count(x)
    # Of differences from the mean, so that the variance is no difference of large sums.
    spread = _outer(x, x) / _count(x) - mean[:, None] * mean
    spread = jnp.dot(spread, rounded, precision=_EXACT)
    variance = jnp.maximum((spread * rounded).sum(0), 0)
    center = jnp.dot(mean, rounded, precision=_EXACT)
    inverse = jax.lax.rsqrt(variance + epsilon)
    y = (_product(x, rounded) - center) * (inverse * scale) + bias
    saved = x, kernel, scale, mean, spread, center, inverse
    return (y.astype(x.dtype), center, variance), saved


def _backward(epsilon, saved, gradients):
    del epsilon
    x, kernel, scale, mean, spread, center, inverse = saved
    dy, *_ = gradients
    rounded, count = _rounded(kernel, x), _count(x)
    dbias = dy.astype(jnp.float32).sum((0, 1, 2))
    # x^T dy, x less its mean.
    pulled = _outer(x, dy) - mean[:, None] * dbias
    dscale = inverse * (pulled * rounded).sum(0)
    # The gradient of the products is factor dy + slope products + offset.
    factor = inverse * scale
    slope = -factor * inverse * dscale / count
    offset = -factor * dbias / count - slope * center
    dkernel = factor * pulled + count * slope * spread
    back = jnp.dot(rounded * slope, rounded.T, precision=_EXACT)
    dx = _product(dy, (rounded * factor).T) + _product(x, back)
    dx = dx + jnp.dot(offset, rounded.T, precision=_EXACT)
    return dx.astype(x.dtype), dkernel.astype(kernel.dtype), dscale, dbias


normalized_expansion.defvjp(_forward, _backward)


def _rounded(kernel: jax.Array, x: jax.Array) -> jax.Array:
    """The values that `kernel` has in the type of `x`, float32."""
    return kernel.astype(x.dtype).astype(jnp.float32)


def _count(x: jax.Array) -> int:
    return x.size // x.shape[-1]


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """[N, H, W, I], [I, O] -> float32 [N, H, W, O]."""
    # A convolution, as everywhere on TPUs: see conv.channel_product.
    return jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype)[None, None],
        (1, 1),
        "VALID",
        dimension_numbers=strided.LAYOUT,
        preferred_element_type=jnp.float32,
    )


def _outer(x: jax.Array, y: jax.Array) -> jax.Array:
    """[N, H, W, I], [N, H, W, O] -> float32 [I, O]: x^T y, summed over the pixels."""
    product = jax.lax.conv_general_dilated(
        x,
        y,
        (1, 1),
        "VALID",
        dimension_numbers=_OUTER,
        preferred_element_type=jnp.float32,
        precision=_EXACT,
    )
    return product[0, 0]
