"""Sampling from random fields against all 512 labellings of 3x3 binary images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.tour import gibbs

SEGMENTS = np.array([0, 0, 1, 0, 0, 1, 2, 2, 1])


def field(gamma):
    rng = np.random.default_rng(3)
    pairs = rng.uniform(0, 0.5, (9, 9))
    pairs = np.triu(pairs, 1) + np.triu(pairs, 1).T
    return gibbs.Field(
        unary=jnp.array(rng.normal(0, 1, (9, 2)), jnp.float32),
        pairs=jnp.array(pairs, jnp.float32),
        segments=jnp.array(SEGMENTS),
        gamma=gamma,
        share=0.4,
    )


def by_hand(field, x):
    """The energy by its definition, one term after the other."""
    unary, pairs = np.array(field.unary), np.array(field.pairs)
    total = sum(unary[i, x[i]] for i in range(9))
    for i in range(9):
        total += sum(pairs[i, j] for j in range(i) if x[i] != x[j])
    for segment in range(3):
        inside = [x[i] for i in range(9) if SEGMENTS[i] == segment]
        size = len(inside)
        differing = min(size - inside.count(label) for label in (0, 1))
        total += field.gamma * min(size, differing / field.share)
    return total


@pytest.fixture(scope="module")
def all_labels():
    return gibbs.enumerate_labels(9, 2)


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_samples_are_those_of_all_labellings(all_labels, gamma):
    model = field(gamma)
    energies = np.array([by_hand(model, x) for x in all_labels])
    found = jax.vmap(lambda x: gibbs.energy(model, x))(all_labels)
    np.testing.assert_allclose(found, energies, rtol=1e-4, atol=1e-4)

    probabilities = np.exp(-energies) / np.exp(-energies).sum()
    start = jnp.zeros(9, jnp.int32)
    samples, logged = gibbs.sample(jax.random.key(0), model, start, jnp.ones(4000))
    np.testing.assert_allclose(
        np.mean(samples, 0), probabilities @ all_labels, atol=0.04
    )
    # Pairs of sites, too: marginals alone would not see a missing pairwise term.
    together = np.einsum("ti,tj->ij", samples, samples) / len(samples)
    exact = np.einsum("t,ti,tj->ij", probabilities, all_labels, all_labels)
    np.testing.assert_allclose(together, exact, atol=0.04)
    assert abs(np.mean(logged) - probabilities @ energies) < 0.12
    assert abs(float(logged[7]) - by_hand(model, np.array(samples[7]))) < 1e-4


@pytest.mark.parametrize("gamma", [0.0, 0.7])
def test_annealing_finds_the_lowest_of_all_energies(all_labels, gamma):
    model = field(gamma)
    lowest = min(by_hand(model, x) for x in all_labels)
    temperatures = jnp.array(np.geomspace(3, 0.01, 4000), jnp.float32)
    start = jnp.ones(9, jnp.int32)
    _, energies = gibbs.sample(jax.random.key(1), model, start, temperatures)
    assert abs(float(energies[-1]) - lowest) < 1e-4
