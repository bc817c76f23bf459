"""A convolution of resized maps on the small maps: the plain form is its oracle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import conv, resize, resized_conv

FEATURES = 5


def plain(maps, kernel, *, size, align_corners=True, **how):
    """Resizing, concatenation, convolution."""
    resized = [resize.resize_bilinear(x, size, align_corners) for x in maps]
    return conv.conv2d(jnp.concatenate(resized, axis=-1), kernel, **how)


def arrays(sides, taps, dtype="float32", channels=3):
    rng = np.random.default_rng(0)
    maps = [
        jnp.asarray(rng.standard_normal((2, *side, channels + i)), dtype)
        for i, side in enumerate(sides)
    ]
    total = sum(x.shape[-1] for x in maps)
    return maps, jnp.float32(rng.standard_normal((*taps, total, FEATURES)))


def outputs_and_gradients(function, maps, kernel):
    """The result, and the gradients of a sum of it with weights of its own."""

    @jax.jit
    def run(maps, kernel):
        y, pull = jax.vjp(function, maps, kernel)
        weights = np.random.default_rng(1).standard_normal(y.shape)
        return y, *pull(jnp.asarray(weights, y.dtype))

    return run(maps, kernel)


CASES = {
    "PSPNet": dict(sides=[(7, 9), (1, 1), (2, 2), (3, 3), (6, 6)], padding=1),
    "odd": dict(sides=[(5, 8), (3, 1), (1, 2), (4, 7)], padding=1),
    "half pixels": dict(sides=[(8, 6), (4, 3)], padding=1, align_corners=False),
    "bins beyond the map": dict(sides=[(3, 2), (1, 1), (6, 6)], padding=1),
    "all small": dict(sides=[(2, 3)], size=(9, 4), padding=1),
    "all large": dict(sides=[(9, 4), (8, 8)], size=(9, 4), padding=1),
    "dilated": dict(sides=[(9, 8), (3, 3)], padding=2, dilation=2),
    "valid": dict(sides=[(9, 8), (3, 3)]),
    "wide padding": dict(sides=[(3, 4), (2, 2)], padding=4),
    "one pixel": dict(sides=[(1, 1), (1, 1)], padding=1),
    "pointwise": dict(sides=[(6, 5), (2, 2)], taps=(1, 1)),
    "not square": dict(sides=[(6, 5), (2, 2)], taps=(1, 3), padding=1),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_form(case):
    how = dict(CASES[case])
    sides = how.pop("sides")
    maps, kernel = arrays(sides, how.pop("taps", (3, 3)))
    how.setdefault("size", sides[0])
    expected, found = (
        outputs_and_gradients(functools.partial(form, **how), maps, kernel)
        for form in (plain, resized_conv.conv_of_resized)
    )
    for x, y in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        assert x.shape == y.shape and x.dtype == y.dtype
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-5 * np.abs(x).max())


@pytest.mark.parametrize("wide_sums", [False, True])
def test_bfloat16_is_as_exact_as_the_plain_form(wide_sums):
    sides = CASES["PSPNet"]["sides"]
    maps, kernel = arrays(sides, (3, 3), "bfloat16", channels=16)
    kernel = kernel.astype("bfloat16").astype("float32")  # no rounding of its own
    how = dict(size=sides[0], padding=1)
    wide = [x.astype("float32") for x in maps]
    exact = outputs_and_gradients(functools.partial(plain, **how), wide, kernel)
    errors = []
    for form in (plain, resized_conv.conv_of_resized):
        run = conv.float32_gradient_sums(wide_sums)(functools.partial(form, **how))
        found = outputs_and_gradients(run, maps, kernel)
        assert found[0].dtype == found[1][0].dtype == jnp.bfloat16
        assert found[2].dtype == jnp.float32
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
        errors.append(
            [np.abs(np.float32(x) - y).max() / np.abs(y).max() for x, y in pairs]
        )
    assert max(errors[1]) < 0.02
    np.testing.assert_array_less(errors[1], 2 * np.array(errors[0]) + 0.005)


def test_fewer_operations_and_no_large_concatenation():
    sides = [(30, 30), (1, 1), (2, 2), (3, 3), (6, 6)]
    maps, kernel = arrays(sides, (3, 3), channels=64)

    def costs(form):
        run = jax.jit(functools.partial(form, size=sides[0], padding=1))
        return run.lower(maps, kernel).cost_analysis()

    ours, theirs = costs(resized_conv.conv_of_resized), costs(plain)
    assert ours["flops"] < 0.4 * theirs["flops"]


def test_channels_that_do_not_fit():
    maps, kernel = arrays([(4, 4), (2, 2)], (3, 3))
    with pytest.raises(ValueError, match=r"maps of \[3\] channels, expected 7"):
        resized_conv.conv_of_resized(maps[:1], kernel, size=(4, 4))
