"""bn_batch_size: batch normalization by the statistics of groups of images."""

import re

import flax.linen as nn
import jax
import numpy as np
import pytest

from segjax import sharding
from segjax.errors import UserError
from segjax.models import layers


class Layer(nn.Module):
    unbiased: bool = False

    @nn.compact
    def __call__(self, x, train):
        options = dict(momentum=0.7, dtype="float32", unbiased=self.unbiased)
        return layers.batch_norm(x, "bn", train=train, **options)


def variables():
    params = {"scale": np.array([1.0, 2.0, -1.0]), "bias": np.array([0.0, 1.0, 5.0])}
    old = {"mean": np.full(3, 0.5), "var": np.full(3, 2.0)}
    return jax.tree.map(
        np.float32, {"params": {"bn": params}, "batch_stats": {"bn": old}}
    )


@pytest.mark.parametrize("size, devices", [(1, 1), (2, 1), (4, 2), (8, 4)])
def test_each_group_has_its_statistics_and_sums_of_its_devices(size, devices):
    """Against numpy; eight images on four devices in two slices."""
    unbiased = size == 2
    x = np.random.default_rng(0).normal(2, 3, (8, 2, 5, 3)).astype(np.float32)
    x += np.arange(8, dtype=np.float32)[:, None, None, None]  # unlike groups
    run = layers.bn_batch_size(size)(
        lambda v, x: Layer(unbiased).apply(v, x, True, mutable=["batch_stats"])
    )
    mesh = sharding.make_mesh(slices=2)
    shardings = sharding.split(mesh), sharding.replicated(mesh)
    on_devices = jax.device_put(x, sharding.split(mesh))
    step = jax.jit(run, out_shardings=shardings).lower(variables(), on_devices)
    compiled = step.compile()
    y, new = compiled(variables(), on_devices)

    mean = np.float64(0.7 * np.full(3, 0.5))
    var = np.float64(0.7 * np.full(3, 2.0))
    for i in range(0, 8, size):
        group = np.float64(x[i : i + size]).reshape(-1, 3)
        normalized = (group - group.mean(0)) / np.sqrt(group.var(0) + 1e-5)
        expected = normalized * [1, 2, -1] + [0, 1, 5]
        found = np.asarray(y[i : i + size]).reshape(-1, 3)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
        mean += 0.3 * group.mean(0) * size / 8
        var += 0.3 * group.var(0, ddof=int(unbiased)) * size / 8
    running = new["batch_stats"]["bn"]
    np.testing.assert_allclose(running["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(running["var"], var, rtol=1e-4)
    for value in running.values():
        copies = [np.asarray(shard.data) for shard in value.addressable_shards]
        assert all(np.array_equal(copy, copies[0]) for copy in copies)

    # What is summed before anything is normalized: within the devices of a group.
    operations = re.findall(
        r"= .* (all-[\w-]+|\w+-permute|\w+-scatter)\(", compiled.as_text()
    )
    assert set(operations) == {"all-reduce"}
    # The running averages are summed over all devices, at the end.
    assert len(operations) == {1: 1, 2: 2, 4: 1}[devices]


def test_prediction_and_initialization_have_no_groups():
    x = np.ones((1, 2, 2, 3), np.float32)
    with layers.bn_batch_size(4):
        y = Layer().apply(variables(), x, False)
        start = Layer().init(jax.random.key(0), x, True)
    assert start["batch_stats"]["bn"]["mean"].shape == (3,)
    expected = (1 - 0.5) / np.sqrt(2 + 1e-5) * np.array([1, 2, -1]) + [0, 1, 5]
    np.testing.assert_allclose(y[0, 0, 0], expected, rtol=1e-5)


def test_groups_must_divide_the_batch():
    x = np.ones((6, 2, 2, 3), np.float32)
    run = layers.bn_batch_size(4)(Layer().apply)
    with pytest.raises(UserError, match="bn_batch_size=4 does not divide the 6 images"):
        jax.eval_shape(lambda x: run(variables(), x, True, mutable=["batch_stats"]), x)
