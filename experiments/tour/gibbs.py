"""Exact sampling from small random fields: pairs of pixels, and Robust P^n segments.

    E(x) = sum_i U_i(x_i) + 1/2 sum_ij w_ij [x_i != x_j] + sum_c psi_c(x_c)
    psi_c(x_c) = gamma |c| min(1, (|c| - max_k n_k) / (q |c|))

The first sum over pairs is that of a fully connected CRF, for which Krähenbühl and
Koltun (NIPS 2011) compare mean field with sampling. The segments are the Robust P^n
potentials of Kohli, Ladicky and Torr (CVPR 2008): a segment pays in proportion to the
pixels that differ from its most frequent label, n_k being how often it has label k, and
no more than gamma |c| once a share q of its pixels differs.

Everything is dense and one site is drawn after the other, so images must be small.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Field(NamedTuple):
    """A random field of N sites with K labels."""

    unary: jax.Array
    """U, energies, float32 [N, K]."""
    pairs: jax.Array
    """w, what different labels cost, float32 [N, N], symmetric with a zero diagonal."""
    segments: jax.Array
    """The segment of each site, int32 [N], from 0 to N - 1."""
    gamma: float = 0.0
    """The most that a segment costs, per site; 0: no segments."""
    share: float = 0.3
    """q, the share of differing sites from which a segment costs no more."""


def energy(field: Field, x: jax.Array) -> jax.Array:
    """E of labels int32 [N], a scalar."""
    sites, classes = field.unary.shape
    one_hot = jax.nn.one_hot(x, classes)
    differ = 1 - one_hot @ one_hot.T
    sizes, counts = _counts(field, one_hot)
    unary = (field.unary * one_hot).sum()
    return unary + (field.pairs * differ).sum() / 2 + _psi(field, sizes, counts).sum()


def _counts(field: Field, one_hot: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sites of each segment [N], and how many of them have each label [N, K]."""
    counts = jnp.zeros_like(one_hot).at[field.segments].add(one_hot)
    return counts.sum(1), counts


def _psi(field: Field, sizes: jax.Array, counts: jax.Array) -> jax.Array:
    differing = sizes - counts.max(-1)
    part = differing / jnp.maximum(field.share * sizes, 1e-6)
    return field.gamma * sizes * jnp.minimum(1.0, part)


@jax.jit
def sample(
    key: jax.Array, field: Field, x: jax.Array, temperatures: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Gibbs sampling: each sweep draws every site once, given all others.

    Args:
      key: a random key.
      field: see above.
      x: the first labels, int32 [N].
      temperatures: float32 [T], of the sweeps. With ones, the samples are in the long
        run those of exp(-E); falling to 0, they settle in a low minimum of E.

    Returns:
      The labels after each sweep, int32 [T, N], and their energies [T].
    """
    sites, classes = field.unary.shape
    labels = jnp.eye(classes)

    def draw(state, site_and_noise):
        one_hot, sizes, counts = state
        site, noise, temperature = site_and_noise
        segment = field.segments[site]
        others = counts[segment] - one_hot[site]
        reward = field.pairs[site] @ one_hot
        size = jnp.broadcast_to(sizes[segment], classes)
        cost = field.unary[site] - reward + _psi(field, size, others + labels)
        # The largest of scores with Gumbel noise is a draw from their softmax.
        new = labels[jnp.argmax(noise - cost / temperature)]
        counts = counts.at[segment].add(new - one_hot[site])
        return (one_hot.at[site].set(new), sizes, counts), None

    def sweep(one_hot, key_and_temperature):
        key, temperature = key_and_temperature
        noise = jax.random.gumbel(key, (sites, classes))
        steps = jnp.arange(sites), noise, jnp.full(sites, temperature)
        start = one_hot, *_counts(field, one_hot)
        (one_hot, *_), _ = jax.lax.scan(draw, start, steps)
        x = one_hot.argmax(1).astype(jnp.int32)
        return one_hot, (x, energy(field, x))

    keys = jax.random.split(key, len(temperatures))
    start = jax.nn.one_hot(x, classes)
    return jax.lax.scan(sweep, start, (keys, temperatures))[1]


def enumerate_labels(sites: int, classes: int) -> np.ndarray:
    """All labellings of a few sites, int32 [K^N, N]."""
    return np.array(list(itertools.product(range(classes), repeat=sites)), np.int32)
