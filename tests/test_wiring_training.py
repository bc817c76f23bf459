"""Which field, key and statistic reaches which part of a training step.

Every field of config.loss and config.optim is varied once against a computation in
NumPy; networks are chosen so small that they can be written down by hand.
"""

import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from experiments import train
from experiments.shared import evaluation, training_run
from segjax import config, evaluators, optim, sharding, training
from segjax import workdir as workdir_lib
from segjax.errors import UserError
from segjax.inference import trained
from segjax.models import deeplab, dilation, layers
from segjax.ops import geometry
from segjax.weak import latent


def assert_trees_close(found, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
        found,
        expected,
    )


def differ(a, b):
    """Whether two trees differ by more than rounding."""
    return any(
        not np.allclose(x, y, rtol=1e-3, atol=1e-4)
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


# --- config.optim ---------------------------------------------------------------------

PARAMS = {
    "conv": {"kernel": np.array([1.0, -2.0, 0.7]), "bias": np.array([0.5])},
    "bn": {"scale": np.array([1.5])},
    "score": {"kernel": np.array([3.0]), "bias": np.array([-1.0])},
}
TOTAL_STEPS = 6


def gradients():
    """One tree per step, of a norm above 1 and unlike in every parameter."""
    rng = np.random.default_rng(0)
    return [
        jax.tree.map(lambda w: 2 * rng.normal(size=w.shape), PARAMS) for _ in range(5)
    ]


def rate_at(o, step):
    """The learning rate of a 0-based step."""
    if o["schedule"] == "poly":
        rate = o["lr"] * (1 - step / TOTAL_STEPS) ** o["power"]
    elif o["schedule"] == "cosine":
        rate = o["lr"] * (1 + np.cos(np.pi * step / TOTAL_STEPS)) / 2
    elif o["schedule"] == "step":
        rate = o["lr"] * o["step_factor"] ** (step // o["step_every"])
    else:
        rate = o["lr"]
    rate = max(rate, o["lr_floor"])
    if o["warmup_steps"]:
        rate *= min(1, (step + 1) / o["warmup_steps"])
    return rate


def optimized(o):
    """PARAMS after all `gradients`, in float64; `o` holds every field of the config."""
    names = {f"{a}/{b}": PARAMS[a][b] for a in PARAMS for b in PARAMS[a]}
    first = {name: np.zeros_like(w) for name, w in names.items()}
    second = {name: np.zeros_like(w) for name, w in names.items()}
    for t, tree in enumerate(gradients()):
        norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(tree)))
        shrink = min(1, o["clip_norm"] / norm) if o["clip_norm"] else 1
        for name in names:
            w = names[name]
            layer, _, leaf = name.partition("/")
            g = tree[layer][leaf] * shrink
            if not any(re.search(pattern, name) for pattern in o["decay_exclude"]):
                g = g + o["weight_decay"] * w
            rate, m = rate_at(o, t), o["momentum"]
            for rule in o["lr_mult"]:
                pattern, _, factor = rule.rpartition("=")
                rate *= float(factor) if re.search(pattern, name) else 1
            if o["name"] == "sgd":
                first[name] = m * first[name] + g
                move = m * first[name] + g if o["nesterov"] else first[name]
                names[name] = w - rate * move
            elif o["name"] == "caffe_sgd":
                first[name] = m * first[name] + rate * g
                move = m * first[name] + rate * g if o["nesterov"] else first[name]
                names[name] = w - move
            else:
                first[name] = m * first[name] + (1 - m) * g
                second[name] = o["b2"] * second[name] + (1 - o["b2"]) * g**2
                mean = first[name] / (1 - m ** (t + 1))
                if o["name"] == "nadam":  # Dozat: looks one step ahead
                    ahead = m * first[name] / (1 - m ** (t + 2))
                    mean = ahead + (1 - m) * g / (1 - m ** (t + 1))
                square = second[name] / (1 - o["b2"] ** (t + 1))
                names[name] = w - rate * mean / (np.sqrt(square) + 1e-8)
    return {a: {b: names[f"{a}/{b}"] for b in PARAMS[a]} for a in PARAMS}


def optimize(fields):
    options = config.make(optim=fields).optim
    optimizer = optim.create(options, PARAMS, TOTAL_STEPS)
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), PARAMS)
    state = optimizer.init(params)
    for tree in gradients():
        grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), tree)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


# A base where everything is on, so that the order of the parts shows, and one change.
OPTIM = dict(config.DEFAULTS["optim"]) | {
    "lr": 0.1,
    "weight_decay": 0.05,
    "clip_norm": 1.5,
}
STEPWISE = {"schedule": "step", "step_every": 2, "step_factor": 0.5}
OPTIM_CASES = [
    {},
    {"name": "caffe_sgd"},
    {"name": "adam"},
    {"lr": 0.2},
    {"momentum": 0.5},
    {"momentum": 0.0},
    {"nesterov": True},
    {"name": "caffe_sgd", "nesterov": True},
    {"name": "nadam"},
    {"name": "nadam", "momentum": 0.3},
    {"name": "nadam", "b2": 0.7},
    {"name": "adam", "momentum": 0.3},
    {"name": "adam", "b2": 0.7},
    {"name": "adam", "weight_decay": 0.5},
    {"name": "adam", "clip_norm": 0.3},
    {"name": "adam", "lr_mult": ("score=10", "bias=2")},
    {"schedule": "constant"},
    STEPWISE,
    STEPWISE | {"step_every": 3},
    STEPWISE | {"step_factor": 0.2},
    {"schedule": "cosine"},
    {"power": 2.0},
    {"lr_floor": 0.04},
    {"warmup_steps": 3},
    {"weight_decay": 0.5},
    {"decay_exclude": ()},
    {"decay_exclude": ("score",)},
    {"lr_mult": ("score=10", "bias=2")},
    {"name": "caffe_sgd", "lr_mult": ("score=10", "bias=2")},
    {"clip_norm": 0.0},
    {"clip_norm": 0.3},
]


def test_every_field_of_optim_against_numpy():
    results = []
    for change in OPTIM_CASES:
        fields = OPTIM | change
        expected = optimized(fields)
        assert all(differ(expected, other) for other in results), change
        results.append(expected)
        try:
            assert_trees_close(optimize(fields), expected, rtol=1e-4, atol=1e-5)
        except AssertionError as error:
            raise AssertionError(f"{change}: {error}") from error
    varied = {field for change in OPTIM_CASES for field in change}
    assert varied == set(config.DEFAULTS["optim"])


def test_defaults_are_those_of_pspnet():
    """Zhao et al. 2017, and Kingma and Ba's decay of the second moment.

    Poly of power 0.9 from 0.01, momentum 0.9, decay 0.0001, an auxiliary loss of 0.4.
    """
    optimizer, loss = config.DEFAULTS["optim"], config.DEFAULTS["loss"]
    assert (optimizer["name"], optimizer["schedule"]) == ("sgd", "poly")
    assert (optimizer["lr"], optimizer["power"]) == (0.01, 0.9)
    assert (optimizer["momentum"], optimizer["nesterov"]) == (0.9, False)
    assert (optimizer["weight_decay"], optimizer["b2"]) == (1e-4, 0.999)
    assert optimizer["clip_norm"] == optimizer["warmup_steps"] == 0
    assert (loss["aux_weight"], loss["aux_factor"]) == (0.4, 1.0)
    assert (loss["normalize"], loss["resolution"]) == ("pixels", "full")
    assert (loss["name"], loss["class_weights"]) == ("cross_entropy", ())
    assert loss["hard_pixels"] == 512 * 64  # FRRN's


# --- config.loss ----------------------------------------------------------------------


class Linear(nn.Module):
    """Scores of a pixel that are linear in its three channels, twice."""

    num_classes = 4
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32) / 255
        start = nn.initializers.normal(2.0)
        main = self.param("main", start, (3, 4))
        aux = self.param("aux", start, (3, 4))
        return x @ main, {"aux_logits": x @ aux}


def random_batch(n=4, height=3, width=5, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, (n, height, width)).astype(np.uint8)
    label[0] = 255
    label[1, 1:] = 255
    image = rng.integers(0, 256, (n, height, width, 3)).astype(np.uint8)
    return {"image": image, "label": label}


LOSS = dict(config.DEFAULTS["loss"])
HARD = {"name": "hard_pixels"}
FADING = {"aux_weight": 0.9, "aux_factor": 0.5, "aux_every": 2}
LOSS_CASES = [  # fields, what the auxiliary loss weighs at step 5
    ({}, 0.4),
    ({"normalize": "images"}, 0.4),
    ({"class_weights": (1.0, 0.0, 2.5, 0.5)}, 0.4),
    ({"class_weights": (1.0, 0.0, 2.5, 0.5), "normalize": "images"}, 0.4),
    ({"name": "absolute_error"}, 0.4),
    ({"name": "absolute_error", "class_weights": (1.0, 0.0, 2.5, 0.5)}, 0.4),
    ({"name": "absolute_error", "normalize": "images"}, 0.4),
    (HARD | {"hard_pixels": 4}, 0.4),
    (HARD | {"hard_pixels": 3, "normalize": "images"}, 0.4),
    ({"aux_weight": 0.8}, 0.8),
    ({"aux_weight": 0.0}, 0.0),
    (FADING, 0.225),
    (FADING | {"aux_factor": 0.25}, 0.05625),
    (FADING | {"aux_every": 4}, 0.45),
    (FADING | {"aux_floor": 0.3}, 0.3),
]


def weighed_loss(weights, batch, fields):
    """Loss and gradient of linear scores in float64, by the definition of softmax."""
    x, labels = batch["image"] / 255, batch["label"]
    scores = x @ weights.astype(np.float64)
    p = scipy.special.softmax(scores, axis=-1)
    truth = np.eye(256)[labels][..., : scores.shape[-1]]  # zeros for void
    nll = -(truth * np.log(p)).sum(-1)
    pixel_weights = (labels != 255).astype(float)
    if fields["class_weights"]:
        pixel_weights = truth @ np.array(fields["class_weights"])
    count = pixel_weights.sum()
    if fields["name"] == "hard_pixels":
        flat = nll.reshape(len(nll), -1)
        worst = np.argsort(-flat, axis=1)[:, : fields["hard_pixels"]]
        kept = np.zeros_like(flat)
        np.put_along_axis(kept, worst, 1.0, axis=1)
        pixel_weights = pixel_weights * kept.reshape(nll.shape)
        count = kept.sum()
    if fields["normalize"] == "images":
        count = len(labels)
    slopes = p - truth
    if fields["name"] == "absolute_error":
        right = (truth * p).sum(-1)
        nll = 1 - right
        slopes = right[..., None] * slopes
    slopes = slopes * pixel_weights[..., None] / count
    gradient = np.einsum("nhwc,nhwk->ck", x, slopes)
    return (nll * pixel_weights).sum() / count, gradient


@pytest.mark.parametrize("grad_accum_steps", [1, 2])
def test_every_field_of_loss_against_numpy(grad_accum_steps):
    model, batch = Linear(), random_batch()
    state = training.create_state(
        model, lambda _: optax.identity(), image_shape=(3, 5, 3), seed=0
    )
    state = state.replace(step=jnp.int32(5))
    before = jax.device_get(state.params)
    seen = set()
    for change, weight in LOSS_CASES:
        fields = LOSS | change
        main, main_slope = weighed_loss(before["main"], batch, fields)
        aux, aux_slope = weighed_loss(before["aux"], batch, fields)
        options = config.make(loss=change).loss
        step = training.make_step(
            model,
            optax.scale(-1.0),
            options=options,
            seed=0,
            grad_accum_steps=grad_accum_steps,
        )
        after, values = step(state, batch)
        assert values["main_loss"] == pytest.approx(main, rel=1e-5), change
        assert values["loss"] == pytest.approx(main + weight * aux, rel=1e-5), change
        expected = {"main": main_slope, "aux": weight * aux_slope}
        moved = jax.tree.map(lambda a, b: np.asarray(a - b), before, after.params)
        assert_trees_close(moved, expected, rtol=1e-3, atol=1e-5)
        norm = np.sqrt(sum((g**2).sum() for g in expected.values()))
        assert values["grad_norm"] == pytest.approx(norm, rel=1e-4), change
        assert after.step == 6
        seen.add(round(main + weight * aux, 6))
    assert len(seen) == len(LOSS_CASES)
    varied = {field for change, _ in LOSS_CASES for field in change}
    # The next test varies the resolution, those of losses the regions,
    # test_border_weights.py the weights between instances, tests/weak/ weak labels.
    others = {"resolution", "per_image", "border_weight", "border_sigma"}
    others |= {"weak_weight", *latent.Options._fields}
    assert varied == set(LOSS) - others


VGG = dict(widths=(2, 2, 2, 4, 4), dropout=0.0)


@pytest.mark.parametrize(
    "model, side, first",
    [
        # Two 2x2 poolings in a row put the cells on pixels 8i + 1/2.
        (
            deeplab.DeepLab(
                4, backbone="vgg16", pool_kernel=2, fc6_channels=4, rates=(1,), **VGG
            ),
            34,
            1,
        ),
        # Deconvolutions put cell i in the middle of the pixels 8i .. 8i + 7.
        (
            dilation.Dilation(
                4, context="none", fc_channels=4, upsampling="deconv", **VGG
            ),
            40,
            4,
        ),
    ],
    ids=["deeplab", "dilation"],
)
def test_cells_are_compared_with_the_labels_under_their_centers(model, side, first):
    batch = random_batch(3, side, side)
    options = config.make(loss={"resolution": "output_stride"}).loss

    def init():
        shape = (side, side, 3)
        return training.create_state(
            model, lambda _: optax.identity(), image_shape=shape, seed=0
        )

    rng = np.random.default_rng(0)
    # Twice He's variance, so that scores differ from cell to cell.
    state = jax.tree.map(
        lambda x: rng.normal(0, 2 / np.sqrt(np.prod(x.shape[:-1])), x.shape).astype(
            x.dtype
        ),
        jax.eval_shape(init),
    )
    step = training.make_step(model, optax.set_to_zero(), options=options, seed=0)

    @jax.jit
    def run(state, batch):
        outputs = model.apply({"params": state.params}, batch["image"], train=False)
        return step(state, batch)[1]["loss"], outputs[1]["scores"]

    loss, scores = run(state, batch)
    labels = batch["label"][:, first::8, first::8]
    log_p = scipy.special.log_softmax(np.float64(scores), -1)
    log_p = log_p[:, : labels.shape[1], : labels.shape[2]]
    chosen = np.take_along_axis(log_p, np.minimum(labels, 3)[..., None], -1)[..., 0]
    expected = -chosen[labels != 255].mean()
    assert np.std(scores) > 0.1
    assert loss == pytest.approx(expected, rel=1e-4)


# --- dropout and statistics -----------------------------------------------------------


class Remembering(nn.Module):
    """Keeps the last four dropout masks that it drew, newest last."""

    num_classes = 4
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        mask = nn.Dropout(0.5, deterministic=not train)(jnp.ones(256)) > 0
        seen = self.variable("batch_stats", "masks", jnp.zeros, (4, 256), bool)
        if train:
            seen.value = jnp.concatenate([seen.value[1:], mask[None]])
        bias = self.param("bias", nn.initializers.zeros, (4,))
        return images[..., :1] * 0.0 + bias, {}


def masks(steps, grad_accum_steps, seed, first=0):
    """The masks of so many steps [steps * grad_accum_steps, 256]."""
    model, batch = Remembering(), random_batch()
    state = training.create_state(
        model, lambda _: optax.identity(), image_shape=(3, 5, 3), seed=0
    )
    state = state.replace(step=jnp.int32(first))
    options = config.make().loss
    step = training.make_step(
        model,
        optax.identity(),
        options=options,
        seed=seed,
        grad_accum_steps=grad_accum_steps,
    )
    for _ in range(steps):
        state, _ = step(state, batch)
    return np.asarray(state.batch_stats["masks"][-steps * grad_accum_steps :])


def test_every_part_step_and_seed_has_its_own_dropout_mask():
    drawn = np.concatenate(
        [masks(2, 2, seed=0), masks(2, 2, seed=1), masks(2, 1, seed=2)]
    )
    assert len(drawn) == 10
    for mask in drawn:
        assert 0.35 < mask.mean() < 0.65
    # Two independent masks agree in half of 256 places, give or take 8.
    agreement = (drawn[:, None] == drawn[None]).mean(-1)
    assert agreement[np.triu_indices(10, 1)].max() < 0.7


def test_dropout_masks_depend_on_seed_and_step_only():
    """So a resumed run draws the masks of one that was never stopped."""
    np.testing.assert_array_equal(masks(2, 2, seed=0), masks(2, 2, seed=0))
    np.testing.assert_array_equal(masks(2, 2, seed=0)[2:], masks(1, 2, seed=0, first=1))


class Normalized(nn.Module):
    """Batch normalization of the image itself."""

    num_classes = 4
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        x = nn.BatchNorm(not train, momentum=0.8, name="bn")(images / 255)
        bias = self.param("bias", nn.initializers.zeros, (4,))
        return x[..., :1] + bias, {}


@pytest.mark.parametrize("grad_accum_steps", [1, 2, 4])
def test_accumulation_updates_statistics_by_every_part(grad_accum_steps):
    """Part k of n holds the images k, k + n ..; each moves the running values."""
    model, batch = Normalized(), random_batch(8)
    state = training.create_state(
        model, lambda _: optax.identity(), image_shape=(3, 5, 3), seed=0
    )
    old = {"mean": np.array([0.3, 0.1, 0.9]), "var": np.array([0.5, 2.0, 1.0])}
    state = state.replace(batch_stats={"bn": jax.tree.map(jnp.float32, old)})
    options = config.make().loss
    step = training.make_step(
        model,
        optax.identity(),
        options=options,
        seed=0,
        grad_accum_steps=grad_accum_steps,
    )
    found = step(state, batch)[0].batch_stats["bn"]
    mean, var = old["mean"], old["var"]
    for part in range(grad_accum_steps):
        x = batch["image"][part::grad_accum_steps] / 255
        mean = 0.8 * mean + 0.2 * x.mean((0, 1, 2))
        var = 0.8 * var + 0.2 * x.var((0, 1, 2))
    assert_trees_close(dict(found), {"mean": mean, "var": var}, rtol=1e-4)


def test_seed_changes_the_first_parameters():
    def first(seed):
        state = training.create_state(
            Linear(), lambda _: optax.identity(), image_shape=(3, 5, 3), seed=seed
        )
        return jax.device_get(state.params)

    assert not differ(first(0), first(0))
    assert not np.allclose(first(0)["main"], first(1)["main"])
    assert not np.allclose(first(0)["main"], first(0)["aux"])


class MaskedLinear(nn.Module):
    """:class:`Linear`'s main scores, and :class:`Remembering`'s masks."""

    num_classes = 4
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        logits, _ = Linear(name="linear")(images, train)
        return logits + 0.0 * Remembering(name="masks")(images, train)[0], {}


def two_steps(**fields):
    """The parameters before, between and after two steps of a run, and its masks."""
    options = config.make(batch_size=4, total_steps=4, **fields)
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    model = MaskedLinear()
    init = training_run.make_init(options, model, image_shape=(3, 5, 3), mesh=mesh)
    state, weights = init(), []
    step = training_run.make_train_step(options, model, params=state.params, mesh=mesh)
    for _ in range(2):
        weights.append(np.asarray(state.params["linear"]["main"]))
        state, _ = step(state, random_batch())
    weights.append(np.asarray(state.params["linear"]["main"]))
    return weights, np.asarray(state.batch_stats["masks"]["masks"])


def test_fields_of_a_run_reach_its_programs():
    """seed, grad_accum_steps, loss, optim, total_steps: each shows in the result."""
    plain = {"momentum": 0.0, "weight_decay": 0.0, "lr": 2.0, "power": 0.5}
    per_image = {"normalize": "images"}
    weights, masks = two_steps(optim=plain, loss=per_image)
    for step in (0, 1):
        slope = weighed_loss(weights[step], random_batch(), LOSS | per_image)[1]
        move = 2 * (1 - step / 4) ** 0.5 * slope
        found = weights[step] - weights[step + 1]
        np.testing.assert_allclose(found, move, rtol=1e-3, atol=1e-5)

    other, other_masks = two_steps(seed=1)
    assert not np.allclose(other[0], weights[0])
    assert ((other_masks != masks).mean(1)[-2:] > 0.3).all()
    parts, part_masks = two_steps(grad_accum_steps=2, optim=plain, loss=per_image)
    for a, b in zip(parts, weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    # One mask of the initialization, and one for every part of the two steps.
    assert [row.any() for row in masks] == [False, True, True, True]
    assert [row.any() for row in part_masks] == [True] * 4


class Half(nn.Module):
    """A convolution in bfloat16."""

    num_classes = 4
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.bfloat16) / 255
        return layers.Conv(4, padding=1, dtype="bfloat16", name="conv")(x), {}


def test_type_of_gradient_sums_and_precision_reach_the_step():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])

    def convolutions(**fields):
        """The text of the step's convolutions: forward, and gradient of the kernel."""
        options = config.make(batch_size=4, **fields)
        how = dict(image_shape=(3, 5, 3), mesh=mesh)
        state = jax.eval_shape(training_run.make_init(options, Half(), **how))
        step = training_run.make_train_step(
            options, Half(), params=state.params, mesh=mesh
        )
        text = step.lower(state, random_batch()).as_text()
        return [line for line in text.splitlines() if "stablehlo.convolution" in line]

    def types(lines):
        return sorted(line[-7:].split("x")[-1] for line in lines)

    plain = convolutions()
    assert types(plain) == ["bf16>", "bf16>"]
    assert "HIGHEST" not in str(plain)
    assert types(convolutions(float32_gradient_sums=True)) == ["bf16>", "f32>"]
    assert str(convolutions(precision="float32")).count("HIGHEST") == 4  # two factors


class GhostNormalized(nn.Module):
    """A convolution and a batch normalization."""

    num_classes = 4
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        x = layers.Conv(4, padding=1, name="conv")(images / 255)
        options = {"train": train, "momentum": 0.9, "dtype": "float32"}
        return layers.batch_norm(x, "bn", **options), {}


def test_groups_of_batch_normalization_are_those_of_micro_batches():
    """The same losses as micro-batches of the same images, which the config reaches."""
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    batch = random_batch(8)

    def losses(batch, **fields):
        options = config.make(batch_size=8, total_steps=4, **fields)
        how = dict(image_shape=(3, 5, 3), mesh=mesh)
        state = training_run.make_init(options, GhostNormalized(), **how)()
        step = training_run.make_train_step(
            options, GhostNormalized(), params=state.params, mesh=mesh
        )
        found = []
        for _ in range(3):
            state, metrics = step(state, batch)
            found += [float(metrics["loss"]), float(metrics["grad_norm"])]
        return found

    order = [0, 2, 4, 6, 1, 3, 5, 7]  # a micro-batch holds every other image
    grouped = losses({key: x[order] for key, x in batch.items()}, bn_batch_size=4)
    np.testing.assert_allclose(losses(batch, grad_accum_steps=2), grouped, rtol=1e-5)
    assert not np.allclose(losses(batch), grouped, rtol=1e-4)
    with pytest.raises(UserError, match="bn_batch_size is 4; expected 0 or a divisor"):
        config.check(config.make(batch_size=8, bn_batch_size=4, grad_accum_steps=4))


def test_the_state_is_donated_and_the_batch_is_not():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    options = config.make(batch_size=4)
    how = dict(image_shape=(3, 5, 3), mesh=mesh)
    state = jax.eval_shape(training_run.make_init(options, Half(), **how))
    step = training_run.make_train_step(options, Half(), params=state.params, mesh=mesh)
    (of_state, of_batch), _ = step.lower(state, random_batch()).args_info
    assert all(leaf.donated for leaf in jax.tree.leaves(of_state))
    assert not any(leaf.donated for leaf in jax.tree.leaves(of_batch))


def test_precision_and_tile_reach_the_evaluation_of_training():
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    image = jax.ShapeDtypeStruct((4, 3, 5, 3), np.uint8)
    label = jax.ShapeDtypeStruct((4, 3, 5), np.uint8)
    variables = jax.eval_shape(
        lambda x: Half().init(jax.random.key(0), x, train=True), image
    )

    def convolution(**fields):
        step = evaluation.make_eval_step(config.make(**fields), Half(), 4, mesh)
        text = step.lower(variables, {"image": image, "label": label}).as_text()
        (line,) = [x for x in text.splitlines() if "stablehlo.convolution" in x]
        return line

    assert "HIGHEST" not in convolution()
    assert convolution(precision="float32").count("HIGHEST") == 2  # two factors
    with pytest.raises(UserError, match="--tile"):  # Half has no margin
        convolution(tile=36)


def test_pictures_of_an_evaluation_are_of_real_images():
    """Batches are filled up with examples that have no name."""
    ids = [["a", "b", "", ""], ["c", "", "", ""]]
    batches = [
        {"image": np.full((4, 2, 2, 3), i, np.uint8)}
        | {"label": np.zeros((4, 2, 2), np.uint8), "id": np.array(names)}
        for i, names in enumerate(ids)
    ]

    def eval_step(variables, batch):
        return np.eye(2, dtype=np.int32), jnp.asarray(batch["label"]) + 1

    how = dict(batches=batches, mesh=sharding.make_mesh(), pictures=9)
    total, shown = evaluators.evaluate(eval_step, {}, **how)
    np.testing.assert_array_equal(total, 2 * np.eye(2))
    assert [row["id"] for row in shown] == ["a", "b", "c"]
    assert [row["image"][0, 0, 0] for row in shown] == [0, 0, 1]
    assert all((row["prediction"] == 1).all() for row in shown)


# --- the choice of checkpoints --------------------------------------------------------

# Confusion matrices (rows: truth) of validations. By mIoU the second is best, by
# pixel and mean accuracy and by frequency weighted IoU others are.
BY_STEP = {
    1: [[90, 0, 0], [5, 0, 0], [5, 0, 0]],  # pixel accuracy 0.90, mIoU 0.30
    2: [[64, 18, 8], [0, 5, 0], [0, 0, 5]],  # 0.74, 0.44
    3: [[50, 30, 10], [0, 5, 0], [0, 0, 5]],  # 0.60, 0.35
    4: [[60, 20, 10], [0, 5, 0], [0, 0, 5]],  # between the second and the third
}


def miou(h):
    h = np.array(h, float)
    return np.mean(np.diag(h) / (h.sum(0) + h.sum(1) - np.diag(h)))


def saved_steps(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_best_is_the_highest_miou_and_remembered_on_resume(tmp_path, monkeypatch):
    accuracy = {step: np.trace(h) / np.sum(h) for step, h in BY_STEP.items()}
    assert max(BY_STEP, key=lambda step: miou(BY_STEP[step])) == 2
    assert max(accuracy, key=accuracy.get) == 1
    assert miou(BY_STEP[3]) < miou(BY_STEP[4]) < miou(BY_STEP[2])
    evaluations = iter(BY_STEP.values())
    monkeypatch.setattr(
        evaluators, "evaluate", lambda *_, **__: (np.array(next(evaluations)), [])
    )

    def options(total_steps):
        return config.make(
            model={"widths": (2,), "padding": "same", "dropout": 0.0},
            data={
                "scenes_size": (32, 32),
                "scenes_train": 4,
                "scenes_validation": 2,
                "data_dir": str(tmp_path / "data"),
            },
            optim={"lr": 0.02, "power": 0.5},
            batch_size=4,
            eval_batch_size=4,
            eval_images=0,
            eval_every=1,
            save_every=1,
            keep=1,
            threads=1,
            total_steps=total_steps,
        )

    run = tmp_path / "run"
    assert train.train(options(3), run) == 0
    assert saved_steps(run / "checkpoints") == [2, 3]  # the best and the latest
    assert train.train(options(4), run) == 0
    assert saved_steps(run / "checkpoints") == [2, 4]
    rows = [
        json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    logged = {row["step"]: row["val_miou"] for row in rows if "val_miou" in row}
    assert logged == pytest.approx({step: miou(h) for step, h in BY_STEP.items()})
    pixels = {
        row["step"]: row["val_pixel_accuracy"]
        for row in rows
        if "val_pixel_accuracy" in row
    }
    assert pixels == pytest.approx(accuracy)

    rates = {row["step"]: row["lr"] for row in rows if "lr" in row}
    expected = {step: 0.02 * (1 - (step - 1) / 3) ** 0.5 for step in (1, 2, 3)}
    expected[4] = 0.02 * (1 / 4) ** 0.5  # with the longer run's total_steps
    assert rates == pytest.approx(expected)

    info = workdir_lib.read_dataset(run)
    saved = config.load(run / "config.json")
    loaded = {
        which: trained.load_model(
            saved, run, info=info, which=which, mesh=sharding.make_mesh()
        )
        for which in ("best", "latest")
    }
    assert {which: step for which, (_, _, step) in loaded.items()} == {
        "best": 2,
        "latest": 4,
    }
    assert differ(loaded["best"][1]["params"], loaded["latest"][1]["params"])
