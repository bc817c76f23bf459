"""Batch normalization whose mean and variance are not those of one array."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

# Mean and variance of the channels [C], and the number of values behind them.
Moments = tuple[jax.Array, jax.Array, int]


def parameters(
    layer: Any, channels: int
) -> tuple[dict[str, Any], jax.Array, jax.Array]:
    """The running statistics, scale and bias [C] of Flax's BatchNorm.

    Made in the compact method of `layer`.
    """
    zeros, ones = nn.initializers.zeros, nn.initializers.ones
    shape = (channels,)
    running = {
        name: layer.variable("batch_stats", name, start, None, shape)
        for name, start in (("mean", zeros), ("var", ones))
    }
    return running, layer.param("scale", ones, shape), layer.param("bias", zeros, shape)


def follow(layer: Any, running: dict[str, Any], moments: Moments) -> None:
    """The running statistics of `layer` follow the moments of a training step."""
    mean, variance, count = moments
    kept = variance * (count / max(count - 1, 1)) if layer.unbiased else variance
    if not layer.is_initializing():
        for name, new in (("mean", mean), ("var", kept)):
            old = layer.momentum * running[name].value
            running[name].value = old + (1 - layer.momentum) * new


def normalization(
    layer: Any, channels: int, moments: Callable[[], Moments]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean, factor and bias [C]: y = (x - mean) * factor + bias.

    Makes the parameters and running statistics of Flax's BatchNorm in the compact
    method of `layer`, whose fields are train, momentum, unbiased and epsilon (see
    layers.batch_norm). In training the running statistics follow the moments.
    """
    running, scale, bias = parameters(layer, channels)
    mean, variance = running["mean"].value, running["var"].value
    if layer.train:
        mean, variance, count = moments()
        follow(layer, running, (mean, variance, count))
    return mean, jax.lax.rsqrt(variance + layer.epsilon) * scale, bias
