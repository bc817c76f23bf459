"""fc6 and fc7 of DeepLab from a part of VGG16's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import Maker, run_import, vgg_caffe

from segjax.errors import UserError
from segjax.weights import sources, thinning

WIDTHS = (2, 2, 2, 2, 3)
VGG = dict(backbone="vgg16", widths=WIDTHS)


def vgg16(channels=8, program="caffe"):
    maker = Maker()
    vgg_caffe(maker, WIDTHS, channels)
    return maker.arrays


def subset(count, kept, draw):
    """The rule of docs/weights.md."""
    return sorted(np.random.RandomState(draw).permutation(count)[:kept])


@pytest.mark.parametrize(
    "kernel, rows", [(3, [0, 3, 6]), (4, [0, 2, 4, 6]), (7, list(range(7))), (1, [3])]
)
def test_taps_and_filters_that_are_kept(kernel, rows):
    arrays = vgg16()
    rates = (4,) if kernel in (4, 7) else (12,)
    fields = VGG | dict(fc6_channels=5, fc6_kernel=kernel, rates=rates)
    found = run_import(arrays, "deeplab", sources.VGG, **fields).result
    fc6, fc7 = (np.array(arrays[f"{name}[0]"]) for name in ("fc6", "fc7"))
    fc6 = fc6.reshape(8, 3, 7, 7).transpose(2, 3, 1, 0)
    fc7 = fc7.reshape(8, 8).T
    first, second = subset(8, 5, 6), subset(8, 5, 7)
    assert first != second
    expected = fc6[np.ix_(rows, rows, range(3), first)]
    np.testing.assert_array_equal(found.arrays["params/head/fc6/kernel"], expected)
    np.testing.assert_array_equal(
        found.arrays["params/head/fc7/kernel"][0, 0], fc7[np.ix_(first, second)]
    )
    biases = {"fc6": first, "fc7": second}
    for name, kept in biases.items():
        np.testing.assert_array_equal(
            found.arrays[f"params/head/{name}/bias"], arrays[f"{name}[1]"][kept]
        )
    assert found.missing == ("head/fc8",)


def test_all_filters_keep_their_order_and_every_branch_is_the_same():
    fields = VGG | dict(fc6_channels=8, rates=(6, 12))
    found = run_import(vgg16(), "deeplab", sources.VGG, **fields).result.arrays
    fc7 = np.array(vgg16()["fc7[0]"]).reshape(8, 8).T
    np.testing.assert_array_equal(found["params/head/fc7_1/kernel"][0, 0], fc7)
    for name in ("fc6", "fc7"):
        one, other = (found[f"params/head/{name}_{i}/kernel"] for i in (1, 2))
        np.testing.assert_array_equal(one, other)


def test_kept_taps_see_the_same_places_at_the_rates_of_the_papers():
    """7x7 at rate 4 is 4x4 at rate 8 and 3x3 at rate 12 where other taps are zero."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(1, 9, 9, 2)), jnp.float32)
    kernel = rng.normal(size=(7, 7, 2, 3)).astype(np.float32)

    def conv(kernel, rate):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (1, 1),
            ((12, 12), (12, 12)),
            rhs_dilation=(rate, rate),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )

    for side, rate in ((4, 8), (3, 12)):
        rows = thinning.taps(7, side)
        sparse = np.zeros_like(kernel)
        sparse[np.ix_(rows, rows)] = kernel[np.ix_(rows, rows)]
        np.testing.assert_allclose(
            conv(kernel[np.ix_(rows, rows)], rate), conv(sparse, 4), atol=1e-4
        )


def test_what_cannot_be_thinned_is_newly_initialized_or_refused():
    fields = VGG | dict(fc6_channels=5, rates=(12,))
    uneven = run_import(vgg16(), "deeplab", sources.VGG, **fields | {"fc6_kernel": 5})
    assert uneven.result.missing == ("head/fc6", "head/fc7", "head/fc8")
    whole = run_import(vgg16(), "deeplab", sources.VGG, **fields | {"fc6_channels": 0})
    assert whole.result.missing == ("head/fc1",)
    with pytest.raises(UserError, match=r"fc6\[0\] has shape .* our head/fc6/kernel"):
        run_import(vgg16(4), "deeplab", sources.VGG, **fields)
    assert thinning.taps(7, 5) == thinning.taps(7, 8) == thinning.taps(4, 1) == []
