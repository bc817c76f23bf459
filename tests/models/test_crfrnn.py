"""CRF-RNN: its numbers computed by hand, its symmetries, its gradients, its base."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from segjax import models, optim
from segjax.errors import UserError
from segjax.models import crfrnn
from segjax.models.crfrnn import CRFRNN
from segjax.models.fcn import FCN
from segjax.ops import filters

UNARY = np.float32(
    [[2, 0, -1], [1, 1, 0], [0, 1, 0], [1.5, 0.5, 0], [0, 0.2, 0.1], [-1, 2, 0]]
).reshape(1, 2, 3, 3)
GREY = np.uint8([0, 0, 9, 0, 6, 9]).reshape(1, 2, 3, 1)
IMAGE = np.repeat(GREY, 3, axis=-1)
# After 1 and 5 iterations with exact Gaussians, in float64.
Q1 = """6.45202 2.49318 .05479  5.38535 3.55125 1.06340  1.88494 5.70738 1.40767
        5.93787 3.00165 1.06048  2.45998 3.83924 2.00077  .87106 6.71677 1.41217"""
Q5 = """8.59982 1.39710 -.99691  7.49136 2.50553 .00311  1.41284 7.58333 .00383
        8.07141 1.92548 .00311  1.53235 6.66065 .10700  .38443 8.61172 .00385"""


def numbers(text):
    return np.float32(text.split()).reshape(UNARY.shape)


def exact_filters(images, alpha=160.0, beta=3.0, gamma=3.0):
    size = images.shape[1:3]
    kernels = (
        filters.exact_filter(filters.smoothness_features(*size, gamma)),
        filters.exact_filter(filters.appearance_features(images, alpha, beta)),
    )
    points = size[0] * size[1]
    return tuple(
        filters.normalize(kernel, "after", batch=len(images), points=points)
        for kernel in kernels
    )


LAYER = crfrnn.MeanField(3.0, 5.0, "full", "full", untied=0, remat=True)


@functools.partial(jax.jit, static_argnames=("iterations", "layer"))
def run(params, unary, images, iterations, layer=LAYER):
    spatial, bilateral = exact_filters(images)
    return layer.apply(
        {"params": params},
        unary,
        spatial,
        bilateral=bilateral,
        iterations=iterations,
    )


def initial(layer=LAYER, classes=3, iterations=2):
    unary = jnp.zeros((1, 1, 2, classes))

    def identity(values):
        return values

    variables = layer.init(
        jax.random.key(0),
        unary,
        identity,
        bilateral=identity,
        iterations=iterations,
    )
    return variables["params"]


def random_params(seed=0):
    rng = np.random.default_rng(seed)
    return {k: jnp.float32(rng.normal(size=(3, 3))) for k in initial()}


# --- the layer ------------------------------------------------------------------------


def test_numbers():
    params = initial()
    np.testing.assert_array_equal(params["spatial_ker_weights"], 3 * np.eye(3))
    np.testing.assert_array_equal(params["bilateral_ker_weights"], 5 * np.eye(3))
    np.testing.assert_array_equal(params["compatibility_matrix"], -np.eye(3))
    kernels = exact_filters(IMAGE)
    rows = [np.asarray(k(jnp.eye(6)[None]))[0, 0] for k in kernels]
    spatial = [0.187092, 0.176982, 0.149812, 0.176982, 0.167417, 0.141716]
    np.testing.assert_allclose(rows[0], spatial, atol=1e-6)
    bilateral = [0.333062, 0.333056, 0, 0.333056, 0.000826, 0]
    np.testing.assert_allclose(rows[1], bilateral, atol=1e-6)

    q = {t: run(params, UNARY, IMAGE, t) for t in (1, 5, 10)}
    np.testing.assert_allclose(q[1], numbers(Q1), atol=2e-5)
    np.testing.assert_allclose(q[5], numbers(Q5), atol=2e-5)
    np.testing.assert_allclose(q[10], q[5], atol=3.5e-4)
    assert np.argmax(q[10], -1).ravel().tolist() == [0, 0, 1, 0, 1, 1]


def test_signs():
    """Neighbors of one label attract with mu = -I, repel with I."""
    unary = np.zeros((1, 1, 2, 3), np.float32)
    unary[0, 0, 0, 1] = 4
    images = np.zeros((1, 1, 2, 3), np.uint8)
    params = initial()
    assert run(params, unary, images, 1)[0, 0, 1].argmax() == 1
    params["compatibility_matrix"] *= -1
    assert run(params, unary, images, 1)[0, 0, 1].argmin() == 1


def test_rows_of_matrices_are_outputs():
    """W[a, b] adds the filtered probability of b to a; mu[a, b] takes it from a."""
    zero = jnp.zeros((3, 3))
    one = zero.at[0, 2].set(1.0)
    params = dict(
        spatial_ker_weights=one,
        bilateral_ker_weights=zero,
        compatibility_matrix=-jnp.eye(3),
    )
    moved = run(params, UNARY, IMAGE, 1) - UNARY
    p = jax.nn.softmax(jnp.asarray(UNARY)).reshape(1, 6, 3)
    filtered = exact_filters(IMAGE)[0](p)[..., 2].reshape(1, 2, 3)
    np.testing.assert_allclose(moved[..., 0], filtered, atol=1e-6)
    np.testing.assert_allclose(moved[..., 1:], 0, atol=1e-6)
    params = dict(
        spatial_ker_weights=jnp.eye(3),
        bilateral_ker_weights=zero,
        compatibility_matrix=one,
    )
    moved = run(params, UNARY, IMAGE, 1) - UNARY
    np.testing.assert_allclose(moved[..., 0], -filtered, atol=1e-6)


def test_properties():
    params = random_params()
    q = run(params, UNARY, IMAGE, 3)
    # Nothing to add: the scores stay.
    idle = params | {k: jnp.zeros((3, 3)) for k in params if k.endswith("ker_weights")}
    np.testing.assert_array_equal(run(idle, UNARY, IMAGE, 3), UNARY)
    # Labels have no order.
    order = np.array([2, 0, 1])
    permuted = {k: w[order][:, order] for k, w in params.items()}
    other = run(permuted, UNARY[..., order], IMAGE, 3)
    np.testing.assert_allclose(other, q[..., order], atol=1e-5)
    # A constant on all scores of a pixel stays one; subtracted means do not matter.
    shift = np.float32(np.arange(6)).reshape(1, 2, 3, 1)
    shifted = run(params, UNARY + shift, IMAGE, 3)
    np.testing.assert_allclose(shifted, q + shift, atol=1e-5)
    centered = run(params, UNARY, IMAGE.astype(np.float32) - 104.0, 3)
    np.testing.assert_allclose(centered, q, atol=1e-4)
    # Weighted means: at first the messages of all labels sum to 3 + 5.
    moved = run(initial(), UNARY, IMAGE, 1) - UNARY
    np.testing.assert_allclose(moved.sum(-1), 8, atol=1e-5)


@pytest.mark.parametrize("untied", (0, 3))
def test_forms_of_the_parameters(untied):
    shapes = {"scalar": (), "diagonal": (3,), "full": (3, 3), "symmetric": (3, 3)}
    steps = (untied,) * (untied > 0)
    q = run(initial(), UNARY, IMAGE, 3)
    for weights, mu in (
        ("scalar", "potts"),
        ("diagonal", "symmetric"),
        ("full", "full"),
    ):
        layer = LAYER.clone(kernel_weights=weights, compatibility=mu, untied=untied)
        params = initial(layer, iterations=3)
        assert params["spatial_ker_weights"].shape == (*steps, *shapes[weights])
        assert ("compatibility_matrix" in params) == (mu != "potts")
        if mu != "potts":
            assert params["compatibility_matrix"].shape == (*steps, *shapes[mu])
        np.testing.assert_allclose(run(params, UNARY, IMAGE, 3, layer), q, atol=1e-5)
    if untied:  # each iteration has its own
        tied = random_params(1)
        stacked = jax.tree.map(lambda w: jnp.stack([w] * 3), tied)
        layer = LAYER.clone(untied=3)
        same = run(stacked, UNARY, IMAGE, 3, layer)
        np.testing.assert_allclose(same, run(tied, UNARY, IMAGE, 3), atol=1e-5)
        last = jax.tree.map(lambda w: w.at[2].set(0.0), stacked)
        np.testing.assert_array_equal(run(last, UNARY, IMAGE, 3, layer), UNARY)
    else:
        layer = LAYER.clone(compatibility="symmetric")
        params = random_params(2)
        mu = params["compatibility_matrix"]
        mean = params | {"compatibility_matrix": (mu + mu.T) / 2}
        found = run(params, UNARY, IMAGE, 2, layer)
        np.testing.assert_allclose(found, run(mean, UNARY, IMAGE, 2), atol=1e-5)


def test_gradients():
    """With and without remat, against finite differences."""
    rng = np.random.default_rng(3)
    unary = jnp.float32(rng.normal(size=(2, 5, 6, 3)))
    images = rng.integers(0, 256, (2, 5, 6, 3)).astype(np.uint8)
    weight = rng.normal(size=unary.shape).astype(np.float32)
    kernels = exact_filters(images, 10.0, 60.0)

    @functools.partial(jax.jit, static_argnums=1)
    def value_and_grad(arguments, remat):
        def loss(arguments):
            params, unary = arguments
            layer = LAYER.clone(remat=remat)
            spatial, bilateral = kernels
            q = layer.apply(
                {"params": params}, unary, spatial, bilateral=bilateral, iterations=3
            )
            return jnp.mean(weight * jax.nn.log_softmax(q))

        return jax.value_and_grad(loss)(arguments)

    arguments = (random_params(4), unary)
    _, found = value_and_grad(arguments, True)
    _, kept = value_and_grad(arguments, False)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(kept)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    leaves, structure = jax.tree.flatten(arguments)
    step = 1e-2
    for i, gradient in enumerate(jax.tree.leaves(found)):
        direction = gradient / jnp.linalg.norm(gradient)
        ends = []
        for sign in (-1, 1):
            moved = list(leaves)
            moved[i] = leaves[i] + sign * step * direction
            ends.append(float(value_and_grad(structure.unflatten(moved), True)[0]))
        slope = (ends[1] - ends[0]) / (2 * step)
        np.testing.assert_allclose(slope, jnp.linalg.norm(gradient), rtol=2e-2)


# --- the network ----------------------------------------------------------------------

FCN_FIELDS = dict(widths=(2, 2, 2, 2, 2), fc_channels=3, skips=16, dropout=0.0)
FCN_OPTIONS = ("widths=2,2,2,2,2", "fc_channels=3", "skips=16", "dropout=0")
UNET = dict(base="unet", base_options=("widths=4,6", "padding=same", "norm=batch"))


def variables_of(model, shape=(1, 24, 32, 3)):
    images = jnp.zeros(shape, jnp.uint8)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    return jax.jit(lambda: model.init(keys, images, train=True))()


def images_of(*shape, seed=5):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def test_base_keeps_its_names_so_that_init_from_finds_them():
    base = FCN(num_classes=4, **FCN_FIELDS)
    model = CRFRNN(num_classes=4, base_options=FCN_OPTIONS)
    plain, joint = (
        jax.eval_shape(lambda m=m: variables_of(m))["params"] for m in (base, model)
    )
    crf = joint.pop("crfrnn")
    assert jax.tree.map(jnp.shape, joint) == jax.tree.map(jnp.shape, plain)
    assert {k: w.shape for k, w in crf.items()} == {
        "spatial_ker_weights": (4, 4),
        "bilateral_ker_weights": (4, 4),
        "compatibility_matrix": (4, 4),
    }
    options = ConfigDict(dict(lr_mult=("ker_weights=1e4", "compatibility_matrix=1e3")))
    factors = optim.multipliers(plain | {"crfrnn": crf}, options.lr_mult)
    assert factors.pop("crfrnn") == {
        "spatial_ker_weights": 1e4,
        "bilateral_ker_weights": 1e4,
        "compatibility_matrix": 1e3,
    }
    assert set(jax.tree.leaves(factors)) == {1.0}


def test_network_is_base_then_layer():
    base = models.MODELS["unet"](
        num_classes=3, widths=(4, 6), padding="same", norm="batch"
    )
    exact = dict(spatial_filter="exact", bilateral_filter="exact")
    model = CRFRNN(num_classes=3, iterations_train=1, iterations_test=3, **UNET)
    model = model.clone(**exact, unary_loss=True)
    assert model.tiling == base.tiling
    variables = variables_of(model)
    images = images_of(2, 8, 12, 3)

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def apply(images, model, train=False):
        keys = dict(rngs={"dropout": jax.random.key(0)}, mutable=["batch_stats"])
        return model.apply(variables, images, train=train, **(keys if train else {}))

    logits, endpoints = apply(images, model)
    assert logits.shape == (2, 8, 12, 3) and logits.dtype == jnp.float32
    plain = {k: dict(v) for k, v in variables.items()}
    crf = plain["params"].pop("crfrnn")
    apply_base = jax.jit(functools.partial(base.apply, train=False))
    unary, of_base = apply_base(plain, images)
    np.testing.assert_allclose(endpoints["unary"], unary, atol=1e-5)
    assert endpoints.keys() == of_base.keys() | {"unary"}
    expected = run(crf, unary, images, 3)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert np.abs(unary - expected).max() > 1

    # In training: fewer iterations, another loss.
    (logits, endpoints), _ = apply(images, model, True)
    np.testing.assert_array_equal(endpoints["aux_logits_unary"], endpoints["unary"])
    after_one = run(crf, endpoints["unary"], images, 1)
    np.testing.assert_allclose(logits, after_one, atol=1e-4)

    # The default filters give nearly the same. Too small a capacity shows.
    separable = model.clone(spatial_filter="separable")
    logits, _ = apply(images, separable)
    np.testing.assert_allclose(logits, expected, atol=1e-2)
    images[0] = images[0, :1, :1]
    expected = run(crf, apply_base(plain, images)[0], images, 3)
    default = dict(spatial_filter="lattice", bilateral_filter="lattice")
    logits, _ = apply(images, model.clone(**default, capacity=0.25))
    change = np.abs(expected[0] - apply(images, model)[1]["unary"][0])
    assert np.abs(logits[0] - expected[0]).mean() < 0.05 * change.mean()
    assert np.isnan(logits[1]).all()


def test_the_loss_on_the_base_is_optional():
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8)
    for wanted in (False, True):
        model = CRFRNN(num_classes=3, unary_loss=wanted, **UNET)
        run = functools.partial(model.init_with_output, keys, train=True)
        (_, endpoints), _ = jax.eval_shape(run, images)
        assert ("aux_logits_unary" in endpoints) == wanted


def test_each_theta_reaches_its_kernel():
    thetas = dict(alpha=7.0, beta=40.0, gamma=1.5)
    exact = dict(spatial_filter="exact", bilateral_filter="exact")
    model = CRFRNN(
        num_classes=3,
        iterations_test=2,
        **{f"theta_{name}": value for name, value in thetas.items()},
        **(exact | UNET),
    )
    variables, images = variables_of(model), images_of(1, 8, 12, 3)
    logits, endpoints = jax.jit(lambda v, x: model.apply(v, x, False))(
        variables, images
    )
    crf, unary = {"params": variables["params"]["crfrnn"]}, endpoints["unary"]

    def expected(**changes):
        spatial, bilateral = exact_filters(images, **(thetas | changes))
        return LAYER.apply(crf, unary, spatial, bilateral=bilateral, iterations=2)

    np.testing.assert_allclose(logits, expected(), atol=1e-4)
    for changes in ({"alpha": 40.0}, {"beta": 7.0}, {"gamma": 40.0}):
        assert np.abs(logits - expected(**changes)).max() > 1e-2


def test_fields_reach_the_parameters_of_the_layer():
    model = CRFRNN(
        num_classes=3,
        iterations_train=2,
        iterations_test=2,
        spatial_weight=2.0,
        bilateral_weight=4.0,
        kernel_weights="diagonal",
        compatibility="potts",
        untied=True,
        **UNET,
    )
    crf = variables_of(model, (1, 8, 8, 3))["params"]["crfrnn"]
    assert {name: array.shape for name, array in crf.items()} == {
        "spatial_ker_weights": (2, 3),
        "bilateral_ker_weights": (2, 3),
    }
    assert (crf["spatial_ker_weights"] == 2).all()
    assert (crf["bilateral_ker_weights"] == 4).all()


def test_any_base_by_options():
    model = CRFRNN(
        num_classes=2,
        base="pspnet",
        base_options=(
            "bins=1,2",
            "width=4",
            "stage_sizes=(1, 1, 1, 1)",
            "pyramid_channels=3",
            "head_channels=4",
            "aux=False",
            "dropout=0",
        ),
    )
    network = model._network(parent=None)
    assert network.bins == (1, 2) and network.aux is False and network.dropout == 0.0
    logits, _ = jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), jnp.zeros((1, 33, 41, 3)), train=False
        )[0]
    )
    assert logits.shape == (1, 33, 41, 2)


@pytest.mark.parametrize(
    "fields, message",
    [
        (dict(base="unett"), "base.*'unett'.*'unet'"),
        (dict(base="crfrnn"), "base"),
        (dict(base="unet"), "base.*loses 92 pixels"),
        (dict(base_options=("skip=8",)), "'skip=8'.*skips"),
        (dict(base_options=("skips",)), "'skips'.*expected int"),
        (dict(base_options=("skips=a",)), "'skips=a'.*expected int"),
        (dict(base_options=("skips=7",)), "skips"),
        (dict(kernel_weights="diag"), "kernel_weights.*'diagonal'"),
        (dict(compatibility="pots"), "compatibility.*'potts'"),
        (dict(spatial_filter="sep"), "spatial_filter"),
        (dict(bilateral_filter="separable"), "bilateral_filter"),
        (dict(iterations_train=-1), "iterations_train"),
        (dict(untied=True), "untied"),
        (dict(theta_beta=0.0), "theta_beta .* is 0.0"),
        (dict(capacity=2.0), "capacity .* is 2.0"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(UserError, match=message) as error:
        CRFRNN(num_classes=3, **fields)
    assert "\n" not in str(error.value)
