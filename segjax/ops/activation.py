"""ReLU: on TPUs with a gradient that needs its output only, on CPUs behind a sum."""

import jax
import jax.numpy as jnp

from segjax.ops import platforms


def relu(x: jax.Array) -> jax.Array:
    """``jax.nn.relu``: max(x, 0), with the gradient 0 at 0.

    On a TPU, the gradient reads the output. That of ``jax.nn.relu`` reads the input
    there, so that a convolution in front of it writes two maps. Not for use behind a
    normalization, whose output is computed again anyway.
    """
    return _by_output(x) if platforms.traced_for() == "tpu" else jax.nn.relu(x)


@jax.custom_vjp
def _by_output(x):
    return jnp.maximum(x, 0)


def _forward(x):
    # Without the barrier XLA sees that y > 0 where x > 0, and keeps x as well.
    y = jax.lax.optimization_barrier(jnp.maximum(x, 0))
    return y, y


_by_output.defvjp(_forward, lambda y, gradient: (jnp.where(y > 0, gradient, 0),))


def relu_of_sum(x: jax.Array) -> jax.Array:
    """``jax.nn.relu`` of a sum along a shortcut.

    On a CPU as a selection. XLA would compute a maximum again for every operation that
    reads it, and with it all sums along the shortcuts before this one.
    """
    return _selected(x) if platforms.traced_for() == "cpu" else jax.nn.relu(x)


@jax.custom_jvp
def _selected(x):
    return jnp.where(x <= 0, 0, x)  # NaN stays NaN


# As of jax.nn.relu, so that the gradient needs what its needs.
_selected.defjvps(
    lambda tangent, y, x: jax.lax.select(x > 0, tangent, jnp.zeros_like(tangent))
)
