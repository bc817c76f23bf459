"""Dropout: the mask and numbers of Flax's."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from segjax.models.dropout import Dropout
from segjax.ops import platforms


class Net(nn.Module):
    layer: type

    @nn.compact
    def __call__(self, x, train):
        for rate in (0.3, 0.0, 0.6):
            x = self.layer(rate, deterministic=not train)(nn.tanh(x))
        return x


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_flax(dtype, platform, monkeypatch):
    monkeypatch.setattr(platforms, "traced_for", lambda: platform)
    x = jax.random.normal(jax.random.key(0), (2, 5, 6, 3), dtype)

    def both(layer, train):
        def run(x):
            rngs = {"dropout": jax.random.key(7)}
            return Net(layer).apply({}, x, train, rngs=rngs)

        y, pull = jax.vjp(run, x)
        return y, pull(x)[0]

    for train in (True, False):
        for found, expected in zip(both(Dropout, train), both(nn.Dropout, train)):
            assert found.dtype == expected.dtype == x.dtype
            np.testing.assert_array_equal(found, expected)
    assert (both(Dropout, True)[0] == 0).any()


def test_the_mask_is_kept_on_a_tpu(monkeypatch):
    def text():
        layer = Dropout(0.5, deterministic=False)
        rngs = {"dropout": jax.random.key(0)}
        return str(jax.make_jaxpr(lambda x: layer.apply({}, x, rngs=rngs))(1.0))

    assert "optimization_barrier" not in text()
    monkeypatch.setattr(platforms, "traced_for", lambda: "tpu")
    assert "optimization_barrier" in text()
