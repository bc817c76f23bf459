"""The class of the largest score: slices of classes against NumPy's argmax."""

import jax
import numpy as np
import pytest

from segjax.ops import classes


@pytest.mark.parametrize("count", [1, 2, 27, 28, 33, 48, 150, 300])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_largest(count, dtype):
    rng = np.random.default_rng(count)
    # Few different values: ties within slices and between them.
    scores = rng.integers(-3, 3, (2, 5, 7, count)).astype(np.float32)
    scores[0, 0] = -np.inf
    scores[0, 1, :, rng.integers(count)] = np.inf
    scores[1, 0] = rng.permuted(np.arange(7 * count) % 99).reshape(7, count)
    # The first NaN counts, whatever else there is.
    for place in np.unique([0, count // 2, count - 1]):
        scores[1, 1 + place % 3, ::2, place] = np.nan
    found = jax.jit(classes.largest)(scores.astype(jax.numpy.dtype(dtype)))
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, scores.argmax(-1))


def test_slices_are_chosen_where_the_program_runs():
    scores = jax.ShapeDtypeStruct((2, 3, 40), np.float32)
    reductions = {
        platform: jax.jit(classes.largest)
        .trace(scores)
        .lower(lowering_platforms=(platform,))
        .as_text()
        .count("stablehlo.reduce(")
        for platform in ("cpu", "tpu")
    }
    assert reductions["cpu"] > 2 > reductions["tpu"]
