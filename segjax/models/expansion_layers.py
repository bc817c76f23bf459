"""1x1 convolutions to more channels whose batch normalization is part of them.

See ops/expansion.py. The parameters, running statistics and numbers are those of
layers.py.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from flax import linen as nn

from segjax.models import layers, moments
from segjax.ops import conv_forms, expansion, platforms


class Expansion(NamedTuple):
    """The factors of a 1x1 convolution, for :func:`batch_norm`."""

    x: jax.Array  # [N, H, W, I], in the compute type
    kernel: jax.Array  # [I, O], float32


class Conv(nn.Module):
    """``layers.Conv`` of size 1 without a bias, not computed yet.

    Attributes: see layers.Conv.
    """

    features: int
    size: int = 1
    stride: int = 1
    use_bias: bool = False
    kernel_init: Callable[..., jax.Array] = layers.he_normal
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> Expansion:
        shape = (1, 1, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        x = x[:, :: self.stride, :: self.stride].astype(self.dtype)
        return Expansion(x, kernel[0, 0])


class BatchNorm(nn.Module):
    """Flax's BatchNorm in training, of the products of an :class:`Expansion`.

    Attributes: see layers.batch_norm.
    """

    momentum: float
    unbiased: bool
    epsilon: float = 1e-5
    train: bool = True

    @nn.compact
    def __call__(self, factors: Expansion) -> jax.Array:
        x, kernel = factors
        running, scale, bias = moments.parameters(self, kernel.shape[1])
        y, mean, variance = expansion.normalized_expansion(
            x, kernel, scale, bias, self.epsilon
        )
        moments.follow(self, running, (mean, variance, x.size // x.shape[-1]))
        return y


def batch_norm(
    x: Expansion, name: str, *, train: bool, momentum: float, dtype: str, unbiased: bool
) -> jax.Array:
    """``layers.batch_norm`` of the products, in training and not by groups."""
    del train, dtype  # in training only, in the type of the map
    return BatchNorm(momentum=momentum, unbiased=unbiased, name=name)(x)


def form(x: jax.Array, features: int, *, train: bool) -> dict[str, Any]:
    """What layers.conv_bn_relu is told for a 1x1 convolution of `x` to `features`.

    Nothing where the plain layers are as good: not on a TPU, not in training, by groups
    of images, too few features for what the covariance of `x` costs.
    """
    gains = train and not layers.in_groups(len(x)) and 2 * x.shape[-1] <= features
    native = conv_forms.is_native_only() or platforms.traced_for() != "tpu"
    if native or not gains:
        return {}
    return {"layer": Conv, "normalize": batch_norm}
