"""Pooling with switches, unpooling, and DeconvNet's published sizes and counts."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.errors import UserError
from segjax.models.deconvnet import DeconvNet
from segjax.ops import unpool

TINY = dict(widths=(3, 3, 4, 4, 5), fc_channels=5)


def flat(switches, kernel, width):
    """Caffe's switches: the index row * width + column in the pooled map."""
    switches = np.asarray(switches).astype(int)
    h, w = switches.shape[1:3]
    rows = np.arange(h).reshape(1, h, 1, 1) * kernel + switches // kernel
    columns = np.arange(w).reshape(1, 1, w, 1) * kernel + switches % kernel
    return rows * width + columns


# --- operators ------------------------------------------------------------------------


def test_unpool_oracle():
    x = jnp.array([[1, 5, 2], [7, 3, 7], [4, 6, 6]], jnp.float32).reshape(1, 3, 3, 1)
    pooled, switches = unpool.max_pool_switches(x, 2)
    assert pooled[0, :, :, 0].tolist() == [[7, 7], [6, 6]]
    assert flat(switches, 2, 3)[0, :, :, 0].tolist() == [[3, 5], [7, 8]]
    back = unpool.unpool(pooled, switches, kernel=2, size=(3, 3))
    assert back[0, :, :, 0].tolist() == [[0, 0, 0], [7, 0, 7], [0, 6, 6]]
    half = unpool.unpool(pooled.astype(jnp.bfloat16), switches, kernel=2, size=(3, 3))
    assert half.dtype == jnp.bfloat16


@pytest.mark.parametrize("kernel, height, width", [(2, 6, 8), (2, 5, 7), (3, 7, 4)])
def test_switches_and_gradients_like_loops(kernel, height, width):
    """Against Caffe's loops, on small negative integers: many ties, no zeros."""
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 0, (2, height, width, 3)).astype(np.float32)
    out = (2, -(height // -kernel), -(width // -kernel), 3)
    pooled, index = np.full(out, -np.inf, np.float32), np.zeros(out, int)
    for n, i, j, c in np.ndindex(*out):
        for row in range(i * kernel, min(i * kernel + kernel, height)):
            for column in range(j * kernel, min(j * kernel + kernel, width)):
                if x[n, row, column, c] > pooled[n, i, j, c]:
                    pooled[n, i, j, c] = x[n, row, column, c]
                    index[n, i, j, c] = row * width + column

    def loop_unpool(values):
        plane = np.zeros((2, height * width, 3), np.float32)
        for n, i, j, c in np.ndindex(*out):
            plane[n, index[n, i, j, c], c] = values[n, i, j, c]
        return plane.reshape(x.shape)

    @jax.jit
    def run(x, values, canvas):
        (pooled, switches), pull = jax.vjp(
            lambda x: unpool.max_pool_switches(x, kernel), x
        )
        none = np.zeros(switches.shape, jax.dtypes.float0)
        back, pull_back = jax.vjp(
            lambda v: unpool.unpool(v, switches, kernel=kernel, size=(height, width)),
            values,
        )
        return pooled, switches, pull((values, none))[0], back, pull_back(canvas)[0]

    values = rng.normal(size=out).astype(np.float32)
    canvas = rng.normal(size=x.shape).astype(np.float32)
    found, switches, pool_gradient, back, unpool_gradient = run(x, values, canvas)
    assert switches.dtype == jnp.uint8
    np.testing.assert_array_equal(found, pooled)
    np.testing.assert_array_equal(flat(switches, kernel, width), index)
    np.testing.assert_array_equal(back, loop_unpool(values))
    # Both gradients follow the switches: the first maximum gets all of it.
    np.testing.assert_array_equal(pool_gradient, loop_unpool(values))
    gathered = np.take_along_axis(
        canvas.reshape(2, -1, 3), index.reshape(2, -1, 3), axis=1
    )
    np.testing.assert_array_equal(unpool_gradient, gathered.reshape(out))


def test_unpool_properties():
    x = np.random.default_rng(1).normal(size=(2, 9, 12, 4)).astype(np.float32)
    pooled, switches = unpool.max_pool_switches(jnp.asarray(x), 2)
    positive = np.abs(np.asarray(pooled))
    back = unpool.unpool(jnp.asarray(positive), switches, kernel=2, size=(9, 12))
    np.testing.assert_array_equal(unpool.max_pool_switches(back, 2)[0], positive)
    assert np.count_nonzero(back) == pooled.size
    for size in ((8, 12), (9, 14)):
        with pytest.raises(ValueError, match="expected equal shapes"):
            unpool.unpool(pooled, switches, kernel=2, size=size)
    with pytest.raises(ValueError, match="expected equal shapes with 5 x 6"):
        unpool.unpool(pooled[..., :1], switches, kernel=2, size=(9, 12))


# --- the network ----------------------------------------------------------------------


@functools.cache
def abstract_variables(model, side=224):
    images = jnp.zeros((1, side, side, 3), jnp.uint8)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=True))


def values(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def random_variables(model, side):
    rng = np.random.default_rng(0)

    def fill(path, leaf):
        if path[-1].key == "kernel":
            scale = 2 / math.prod(leaf.shape[:-1]) ** 0.5
            return rng.normal(size=leaf.shape, scale=scale).astype(np.float32)
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return rng.normal(size=leaf.shape, scale=0.2).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, abstract_variables(model, side))


def test_parameter_counts():
    variables = abstract_variables(DeconvNet(21))
    params = variables["params"]
    norms = {name for name in params if name.endswith("_bn")}
    assert len(norms) == 29
    assert values({name: params[name] for name in norms}) == 33_408
    assert values(variables["batch_stats"]) == 33_408
    encoder = {n for n in params if n[:4] == "conv" or n in ("fc6", "fc7")} - norms
    decoder = set(params) - encoder - norms
    assert values({name: params[name] for name in encoder}) == 134_260_544
    assert values({name: params[name] for name in decoder}) == 117_511_701
    assert values(params) == 251_805_653
    expected = dict(
        conv1_1=1_792,
        conv1_2=36_928,
        conv2_1=73_856,
        conv2_2=147_584,
        conv3_1=295_168,
        conv3_2=590_080,
        conv3_3=590_080,
        conv4_1=1_180_160,
        conv4_2=2_359_808,
        conv4_3=2_359_808,
        **{f"conv5_{i}": 2_359_808 for i in (1, 2, 3)},
        fc6=102_764_544,
        fc7=16_781_312,
        fc6_deconv=102_760_960,
        **{f"deconv5_{i}": 2_359_808 for i in (1, 2, 3)},
        deconv4_1=2_359_808,
        deconv4_2=2_359_808,
        deconv4_3=1_179_904,
        deconv3_1=590_080,
        deconv3_2=590_080,
        deconv3_3=295_040,
        deconv2_1=147_584,
        deconv2_2=73_792,
        deconv1_1=36_928,
        deconv1_2=36_928,
        seg_score=1_365,
    )
    assert {n: values(params[n]) for n in params if n not in norms} == expected


def test_sizes():
    model = DeconvNet(21)

    def run(variables, shape):
        return model.apply(variables, jnp.zeros(shape, jnp.uint8), train=False)

    for height, fc in ((224, 1), (256, 2)):
        shape = (1, height, 224, 3)
        logits, ends = jax.eval_shape(
            functools.partial(run, shape=shape), abstract_variables(model)
        )
        assert logits.shape == (1, height, 224, 21)
        sides = {f"pool{i}": (height >> i, 224 >> i) for i in range(1, 6)}
        sides |= {f"unpool{i}": (height >> i - 1, 224 >> i - 1) for i in range(1, 6)}
        sides |= {"fc6": (fc, 1), "fc7": (fc, 1), "fc6_deconv": (height >> 5, 7)}
        assert {name: ends[name].shape[1:3] for name in sides} == sides
        channels = dict(
            fc6_deconv=512,
            deconv5_3=512,
            deconv4_3=256,
            deconv3_3=128,
            deconv2_2=64,
            deconv1_2=64,
        )
        assert {name: ends[name].shape[3] for name in channels} == channels


def test_contract_and_bad_fields():
    for dtype in ("float32", "bfloat16"):
        model = DeconvNet(5, **TINY, fc6_kernel=1, dtype=dtype)
        variables = abstract_variables(model, 32)
        assert set(variables) == {"params", "batch_stats"}
        assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.float32.dtype}

        def train(variables, model=model):
            images = jnp.zeros((2, 64, 32, 3), jnp.uint8)
            return model.apply(variables, images, train=True, mutable=["batch_stats"])

        (logits, ends), updated = jax.eval_shape(train, variables)
        assert logits.shape == (2, 64, 32, 5) and logits.dtype == jnp.float32
        assert ends["unpool1"].dtype == ends["fc7"].dtype == jnp.dtype(dtype)
        assert jax.tree.structure(updated) == jax.tree.structure(
            {"batch_stats": variables["batch_stats"]}
        )
    for side, nearest in ((223, "224"), (250, "224 or 256"), (96, "224")):
        with pytest.raises(UserError, match=f"DeconvNet.* nearest .* is {nearest}"):
            abstract_variables(DeconvNet(2, **TINY), side)
    assert DeconvNet(2, fc6_kernel=3).tiling.minimum == 96
    with pytest.raises(
        UserError, match=r"model.widths \(DeconvNet\) .* expected 5 values"
    ):
        DeconvNet(2, widths=(2, 3))
    with pytest.raises(
        UserError, match="fc6_kernel .* is 0, expected an integer of at"
    ):
        DeconvNet(2, fc6_kernel=0)
    with pytest.raises(
        UserError, match="bn_epsilon .* is -1, expected a number from 0"
    ):
        DeconvNet(2, bn_epsilon=-1)


def test_initialization():
    model = DeconvNet(3, widths=(2, 2, 2, 16, 16), fc_channels=4, fc6_kernel=1)
    names = "deconv5_1", "deconv5_1_bn", "conv5_1", "conv5_1_bn"
    images = jnp.zeros((1, 32, 32, 3), jnp.uint8)

    @jax.jit
    def fresh():
        params = model.init(jax.random.key(0), images, train=True)["params"]
        return {name: params[name] for name in names}

    params = fresh()
    for name in ("deconv5_1_bn", "conv5_1_bn"):
        np.testing.assert_array_equal(params[name]["scale"], 1)
        np.testing.assert_allclose(params[name]["bias"], 0.001)
    assert float(params["deconv5_1"]["kernel"].std()) == pytest.approx(0.01, rel=0.1)
    he = (2 / (9 * 16)) ** 0.5
    assert float(params["conv5_1"]["kernel"].std()) == pytest.approx(he, rel=0.1)


def test_unpooling_follows_the_switches():
    """Where values reappear, that they are sparse, and that nothing shifts.

    With mirror-symmetric kernels the mirrored image gives the mirrored logits, if no
    two maxima tie: batch normalization keeps the encoder's maps above zero here.
    """
    model = DeconvNet(2, **TINY, fc6_kernel=1)
    variables = random_variables(model, 32)
    params = jax.tree.map(
        lambda x: (x + x[::-1] + x[:, ::-1] + x[::-1, ::-1]) / 4 if x.ndim == 4 else x,
        variables["params"],
    )
    for name in params:
        if name.startswith("conv") and name.endswith("_bn"):
            params[name]["scale"][:], params[name]["bias"][:] = 1, 8

    @jax.jit
    def run(x):
        variables_of_step = {**variables, "params": params}
        return model.apply(variables_of_step, x, train=True, mutable=["batch_stats"])[0]

    x = np.random.default_rng(0).integers(0, 256, (1, 64, 32, 3)).astype(np.uint8)
    logits, ends = run(x)
    for stage, last in ((5, "conv5_3"), (3, "conv3_3"), (1, "conv1_2")):
        assert np.min(ends[last]) > 0
        pooled = np.asarray(ends[f"pool{stage}"])
        above = np.repeat(np.repeat(pooled, 2, axis=1), 2, axis=2)
        placed = np.asarray(ends[f"unpool{stage}"]) != 0
        assert 0 < placed.mean() <= 0.25
        # Not exactly: the compiler may compute a map twice, once fused with its use.
        assert np.all(np.isclose(above, ends[last], rtol=1e-5)[placed])
    spread = float(logits.std())
    assert spread > 1e-3
    mirrored, _ = run(x[:, ::-1, ::-1])
    # The median: rounding flips a switch here and there, which moves a value.
    error = np.median(np.abs(mirrored[:, ::-1, ::-1] - logits))
    assert error < 2e-3 * spread


def test_single_cell():
    """One 224-px image: the transposed fc6 of one cell, and training with it."""
    model = DeconvNet(2, **TINY)
    variables = random_variables(model, 224)
    x = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3)).astype(np.uint8)

    @jax.jit
    def run(variables, x):
        _, ends = model.apply(variables, x, train=False)
        (logits, _), updated = model.apply(
            variables, x, train=True, mutable=["batch_stats"]
        )
        stats = updated["batch_stats"]
        names = "fc6_bn", "fc7_bn", "conv5_3_bn", "fc6_deconv_bn"
        return (
            ends["fc7"],
            ends["fc6_deconv"],
            logits,
            {n: stats[n]["mean"] for n in names},
        )

    fc7, up, logits, means = run(variables, x)
    params, stats = variables["params"], variables["batch_stats"]
    assert fc7.shape == (1, 1, 1, 5) and np.any(fc7)
    # out[y, x, o] = sum_i in[i] W[y, x, i, o] + b[o], normalized.
    y = np.einsum("i,yxio->yxo", fc7[0, 0, 0], params["fc6_deconv"]["kernel"])
    y = y + params["fc6_deconv"]["bias"]
    norm, running = params["fc6_deconv_bn"], stats["fc6_deconv_bn"]
    y = (y - running["mean"]) / np.sqrt(running["var"] + 1e-9)
    y = np.maximum(y * norm["scale"] + norm["bias"], 0)
    np.testing.assert_allclose(up[0], y, rtol=1e-5, atol=1e-5 * float(y.std()))

    assert np.all(np.isfinite(logits))
    for name, changed in (
        ("fc6_bn", False),
        ("fc7_bn", False),
        ("conv5_3_bn", True),
        ("fc6_deconv_bn", True),
    ):
        assert np.any(means[name] != stats[name]["mean"]) == changed, name
