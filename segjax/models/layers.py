"""The few parameterised layers all the networks are made of.

Parameters are float32 ("kernel" HWIO, "bias"); the computation runs in `dtype`.
"""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.errors import UserError
from segjax.ops import conv

# He et al. 2015: Gaussian of variance 2 / fan-in, for layers followed by a ReLU.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
# Without the ReLU (variance 1 / fan-in), for class scores.
score_normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# He's for a transposed convolution whose kernel side is its stride: an output has
# one incoming cell, so the fan-in is the number of channels, not k * k times that.
he_normal_transposed = nn.initializers.variance_scaling(
    2.0, "fan_in", "normal", batch_axis=(0, 1)
)


class Conv(nn.Module):
    """Convolution of [N, H, W, C] with explicit symmetric padding (zeros)."""

    features: int
    size: int = 3
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = he_normal
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = conv.conv2d(
            x.astype(self.dtype), kernel, self.stride, self.padding, self.dilation
        )
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


class ConvTranspose(nn.Module):
    """Transposed convolution, Caffe/PyTorch semantics, output side s(n-1) + k - 2p."""

    features: int
    size: int
    stride: int
    padding: int = 0
    use_bias: bool = True
    kernel_init: Callable[..., jax.Array] = he_normal_transposed
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(self.dtype)
        x = conv.conv_transpose(x.astype(self.dtype), kernel, self.stride, self.padding)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            x = x + bias.astype(self.dtype).reshape(1, 1, 1, -1)
        return x


def batch_norm(
    x: jax.Array, train: bool, momentum: float, dtype: str, name: str
) -> jax.Array:
    """Batch normalisation, eps 1e-5; float32 statistics, of the global batch under jit.

    `momentum` is Flax's: the fraction of the old running value that is kept.
    """
    layer = nn.BatchNorm(
        use_running_average=not train,
        momentum=momentum,
        epsilon=1e-5,
        dtype=jnp.dtype(dtype),
        name=name,
    )
    return layer(x)


def check_choice(model: nn.Module, field: str, choices: Sequence[Any]) -> None:
    """Raises a UserError if the value of `field` is not one of `choices`."""
    value = getattr(model, field)
    if value not in choices:
        names = {str(choice): choice for choice in choices}
        near = difflib.get_close_matches(str(value), names, n=1)
        hint = f"; did you mean {names[near[0]]!r}?" if near else ""
        raise UserError(
            f"{type(model).__name__}.{field}: unknown value {value!r}, expected one of "
            f"{', '.join(map(repr, choices))}{hint}"
        )


def check_positive(
    model: nn.Module, field: str, length: int = 0, minimum: int = 0
) -> None:
    """Raises a UserError unless `field` holds positive integers.

    Args:
      length: how many there must be; 0 for any number from `minimum` up.
    """
    value = tuple(getattr(model, field))
    if any(not isinstance(v, int) or v < 1 for v in value):
        expected = "positive integers"
    elif length and len(value) != length:
        expected = f"{length} values"
    elif len(value) < minimum:
        expected = f"at least {minimum} value"
    else:
        return
    raise UserError(f"{type(model).__name__}.{field} is {value}, expected {expected}")
