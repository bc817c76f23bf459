"""Convolutions in numpy, one tap or location after the other, with their gradients."""

import jax
import jax.numpy as jnp
import numpy as np


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def cotangent(*shape):
    """Few values, the same in bfloat16."""
    return np.random.default_rng(2).choice([-2, -0.5, 1], shape).astype(np.float32)


def naive_conv(x, kernel, stride, padding, dilation):
    """Output, and the gradients of ``sum(output * cotangent(output's shape))``.

    In float64, one tap after the other.
    """
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    p, size = padding, kernel.shape[:2]
    padded = np.pad(x, ((0, 0), (p, p), (p, p), (0, 0)))
    height, width = (
        (n + 2 * p - dilation * (k - 1) - 1) // stride + 1
        for n, k in zip(x.shape[1:3], size)
    )
    y = np.zeros((len(x), height, width, kernel.shape[3]))
    gradient = cotangent(*y.shape)
    dx, dkernel = np.zeros_like(padded), np.zeros_like(kernel)
    for a in range(size[0]):
        for b in range(size[1]):
            window = np.s_[
                :,
                a * dilation : a * dilation + stride * (height - 1) + 1 : stride,
                b * dilation : b * dilation + stride * (width - 1) + 1 : stride,
            ]
            y += padded[window] @ kernel[a, b]
            dx[window] += gradient @ kernel[a, b].T
            dkernel[a, b] = np.tensordot(padded[window], gradient, [(0, 1, 2)] * 2)
    return y, dx[:, p : p + x.shape[1], p : p + x.shape[2]], dkernel


def naive_conv_transpose(x, kernel, stride, padding):
    """As :func:`naive_conv`, scattering one input cell after the other."""
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    (n, h, w, _), k, p = x.shape, kernel.shape[0], padding
    sides = [stride * (side - 1) + k for side in (h, w)]
    y = np.zeros((n, *sides, kernel.shape[3]))
    inside = np.s_[:, p : sides[0] - p, p : sides[1] - p]
    gradient = np.zeros_like(y)
    gradient[inside] = cotangent(*y[inside].shape)
    dx, dkernel = np.zeros_like(x), np.zeros_like(kernel)
    for i in range(h):
        for j in range(w):
            window = np.s_[:, i * stride :, j * stride :]
            target = y[window][:, :k, :k]
            target += np.einsum("ni,abio->nabo", x[:, i, j], kernel)
            g = gradient[window][:, :k, :k]
            dx[:, i, j] = np.einsum("nabo,abio->ni", g, kernel)
            dkernel += np.einsum("nabo,ni->abio", g, x[:, i, j])
    return y[inside], dx, dkernel


def with_gradients(function, x, kernel, dtype=jnp.float32):
    x, kernel = jnp.asarray(x, dtype), jnp.asarray(kernel, dtype)

    @jax.jit
    def run(x, kernel):
        y, pull = jax.vjp(function, x, kernel)
        return y, *pull(cotangent(*y.shape).astype(y.dtype))

    return run(x, kernel)


def assert_close(actual, expected, tolerance):
    for ours, reference in zip(actual, expected, strict=True):
        assert ours.shape == reference.shape
        difference = np.abs(np.asarray(ours, np.float64) - reference).max()
        assert difference <= tolerance * np.abs(reference).max()
