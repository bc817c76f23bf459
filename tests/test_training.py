"""The step and checkpoints, on a network small enough to run."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.signal
import scipy.special
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from experiments import train
from experiments.shared import initialization
from segjax import checkpoint, config, models, optim, sharding, training
from segjax import workdir as workdir_lib
from segjax.errors import UserError
from segjax.inference.trained import load_model
from segjax.models import deeplab, dilation
from segjax.ops import geometry


class Net(nn.Module):
    """One convolution, one batch normalization, an auxiliary head."""

    norm: bool = True
    num_classes = 3
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        x = images.astype(jnp.float32) / 127.5 - 1
        x = nn.Conv(4, (3, 3), padding=1, name="conv")(x)
        if self.norm:
            x = nn.BatchNorm(not train, name="bn")(x)
        logits = nn.Conv(3, (1, 1), name="score")(x)
        return logits, {
            "aux_logits": nn.Conv(3, (1, 1), name="aux")(x)
        } if train else {}


def batch_of(n=8, side=6, seed=0):
    """Random images; the void pixels are spread unevenly over the batch."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, (n, side, side)).astype(np.uint8)
    label[0] = 255
    label[1, 1:] = 255
    return {
        "image": rng.integers(0, 256, (n, side, side, 3)).astype(np.uint8),
        "label": label,
        "id": np.array([f"example{i}" for i in range(n)]),
    }


def mesh_of(devices):
    return jax.make_mesh(
        (devices,), ("data",), (AxisType.Auto,), devices=jax.devices()[:devices]
    )


OPTIONS = config.make(optim={"lr": 0.1, "weight_decay": 1e-3})


def run(steps=3, devices=4, grad_accum_steps=1, norm=True, options=OPTIONS):
    """Trains ``Net`` on one batch per step; the losses and the final state."""
    model = Net(norm)

    def optimizer_of(params):
        return optim.create(options.optim, params, 10)

    mesh = mesh_of(devices)
    state = training.create_state(model, optimizer_of, image_shape=(6, 6, 3), seed=0)
    state = jax.device_put(state, sharding.replicated(mesh))
    step = jax.jit(
        training.make_step(
            model,
            optimizer_of(state.params),
            options=options.loss,
            seed=0,
            grad_accum_steps=grad_accum_steps,
        ),
        out_shardings=sharding.replicated(mesh),
    )
    losses = []
    for i in range(steps):
        state, metrics = step(state, sharding.put(batch_of(seed=i), mesh))
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def trained():
    return run()


def nll(logits, labels):
    """The loss of every pixel [N, h, w] in float64; 0 for void."""
    log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), -1)
    valid = labels != 255
    chosen = np.where(valid, labels, 0)[..., None]
    return np.where(valid, -np.take_along_axis(log_p, chosen, -1)[..., 0], 0)


def mean_loss(logits, labels):
    return nll(logits, labels).sum() / (labels != 255).sum()


def test_loss_is_the_global_mean_over_valid_pixels(trained):
    """Unevenly spread void: per-device means, averaged, would give another number."""
    model, batch = Net(), batch_of()
    state = training.create_state(
        model, lambda _: optax.identity(), image_shape=(6, 6, 3), seed=0
    )
    (logits, ends), _ = model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        batch["image"],
        train=True,
        mutable=["batch_stats"],
    )
    labels = batch["label"]
    expected = mean_loss(logits, labels) + 0.4 * mean_loss(ends["aux_logits"], labels)
    assert trained[0][0] == pytest.approx(expected, rel=1e-5)


def test_one_device_equals_four(trained):
    losses, state = run(devices=1)
    np.testing.assert_allclose(losses, trained[0], rtol=1e-5)
    for a, b in zip(
        jax.tree.leaves(jax.device_get(state)),
        jax.tree.leaves(jax.device_get(trained[1])),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_accumulation_equals_the_whole_batch():
    whole, _ = run(norm=False)
    parts, _ = run(norm=False, grad_accum_steps=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_loss_per_image_is_the_unnormalized_sum_of_fcn():
    options = config.make(loss={"normalize": "images"}, optim={"lr": 0.0})
    per_image = run(steps=1, options=options)[0][0]
    per_pixel = run(steps=1)[0][0]
    valid = (batch_of()["label"] != 255).sum()
    assert per_image == pytest.approx(per_pixel * valid / 8, rel=1e-5)


def test_loss_falls(trained):
    losses, _ = run(steps=8)
    assert losses[:3] == trained[0]
    assert losses[-1] < losses[0]


def test_hard_pixels_are_the_worst_of_each_image(plain_net):
    """Whatever the devices and parts; void pixels are the best ones."""
    (logits, _), batch = plain_net
    ordered = np.sort(nll(logits, batch["label"]).reshape(8, -1))
    options = config.make(
        loss={"name": "hard_pixels", "hard_pixels": 10, "aux_weight": 0.0}
    )
    expected = ordered[:, -10:].mean()
    for parts, devices in ((1, 4), (2, 4), (1, 1)):
        found = run(1, devices, parts, norm=False, options=options)[0][0]
        assert found == pytest.approx(expected, rel=1e-5), (parts, devices)


@pytest.fixture(scope="module")
def plain_net():
    """What `run(norm=False)` computes at first, and from what."""
    model, batch = Net(norm=False), batch_of()
    batch.pop("id")
    state = training.create_state(
        model, lambda _: optax.identity(), image_shape=(6, 6, 3), seed=0
    )
    return model.apply({"params": state.params}, batch["image"], train=True), batch


def test_auxiliary_weight_follows_the_step(plain_net):
    """1, 0.1 and 0.01, then the floor; from the step in the state, as on resuming."""
    (logits, ends), batch = plain_net
    main = mean_loss(logits, batch["label"])
    aux = mean_loss(ends["aux_logits"], batch["label"])
    schedule = {"aux_weight": 1.0, "aux_factor": 0.1, "aux_every": 2, "aux_floor": 0.05}
    options = config.make(loss=schedule)
    model = Net(norm=False)
    state = training.create_state(
        model, lambda _: optax.identity(), image_shape=(6, 6, 3), seed=0
    )
    step = jax.jit(
        training.make_step(model, optax.set_to_zero(), options=options.loss, seed=0)
    )
    for i, weight in ((0, 1), (1, 1), (2, 0.1), (3, 0.1), (4, 0.05), (9, 0.05)):
        _, metrics = step(state.replace(step=jnp.int32(i)), batch)
        assert metrics["loss"] == pytest.approx(main + weight * aux, rel=1e-5), i
        assert metrics["main_loss"] == pytest.approx(main, rel=1e-5)


# Coarse scores


def narrow(**fields):
    widths, channels = (2, 2, 2, 4, 4), 4
    if fields.pop("name") == "deeplab":
        fields = {"fc6_channels": channels, "backbone": "vgg16", **fields}
        return deeplab.DeepLab(3, widths=widths, dropout=0.0, **fields)
    fields = {"fc_channels": channels, "context": "none", **fields}
    return dilation.Dilation(3, widths=widths, dropout=0.0, **fields)


def coarse_loss(model, side, grad_accum_steps):
    """Of two images with unlike numbers of void pixels: our loss on the cells, and
    what goes into it (logits, endpoints, labels)."""
    options = config.make(loss={"resolution": "output_stride"}).loss
    batch = batch_of(4, side, seed=3)
    batch = {key: batch[key][1:3] for key in ("image", "label")}
    state = jax.eval_shape(
        lambda: training.create_state(
            model, lambda _: optax.identity(), image_shape=(side, side, 3), seed=0
        )
    )
    rng = np.random.default_rng(0)
    # Twice He's, so that scores differ from pixel to pixel.
    state = jax.tree.map(
        lambda x: rng.normal(0, 2 / np.sqrt(np.prod(x.shape[:-1])), x.shape).astype(
            x.dtype
        ),
        state,
    )
    step = training.make_step(
        model,
        optax.set_to_zero(),
        options=options,
        seed=0,
        grad_accum_steps=grad_accum_steps,
    )
    loss = jax.jit(lambda state, batch: step(state, batch)[1]["loss"])(state, batch)
    outputs = jax.jit(lambda p, x: model.apply({"params": p}, x, train=True))
    return loss, (*outputs(state.params, batch["image"]), batch["label"])


def enlarge(scores, stride, side):
    """Bilinear, cell i on pixel i * stride."""
    cells = np.arange(scores.shape[1])
    for axis in (1, 2):
        scores = np.apply_along_axis(
            lambda row: np.interp(np.arange(side) / stride, cells, row), axis, scores
        )
    return scores


def test_deeplab_trains_every_scale_on_its_cells_or_on_all_pixels():
    """Four losses of weight 1; scale 0.5 on 16-pixel cells (papers' networks)."""
    model = narrow(name="deeplab", rates=(2,), scales=(1.0, 0.75, 0.5))
    found, (logits, ends, labels) = coarse_loss(model, 49, grad_accum_steps=2)
    one, other, half = ends["scale_logits"]
    assert (one.shape, other.shape, half.shape) == ((2, 7, 7, 3),) * 2 + ((2, 4, 4, 3),)
    eighth = [mean_loss(x, labels[:, ::8, ::8]) for x in (ends["scores"], one, other)]
    sixteenth = mean_loss(half, labels[:, ::16, ::16])
    assert found == pytest.approx(sum(eighth) + sixteenth, rel=1e-5)

    options = config.make(loss={"resolution": "full"}).loss
    terms = training.loss_terms(model, logits, ends, options=options, step=0)
    scales = [enlarge(x, s, 49) for x, s in ((one, 8), (other, 8), (half, 16))]
    for term, scores in zip(terms, (logits, *scales), strict=True):
        assert (term.stride, term.weight) == (1, 1)
        np.testing.assert_allclose(term.scores, scores, rtol=1e-4, atol=1e-5)


def test_dilation_trains_on_the_pixels_8i_of_the_predicted_part():
    """As its data layer samples: from 186 in steps of 8 (the authors' code)."""
    model = narrow(name="dilation", padding="valid", upsampling="interp")
    found, (_, ends, labels) = coarse_loss(model, 396, grad_accum_steps=1)
    sampled = labels[:, 186:-186:8, 186:-186:8]
    assert sampled.shape == ends["scores"].shape[:3] == (2, 3, 3)
    assert found == pytest.approx(mean_loss(ends["scores"], sampled), rel=1e-5)


def test_which_label_belongs_to_the_first_location():
    """DeepLab's 2x2 poolings drop the first row; the others sample 8i."""
    cases = {
        (("name", "deeplab"),): 0,
        (("name", "deeplab"), ("pool_kernel", 2)): 1,
        (("name", "dilation"), ("upsampling", "interp")): 0,
        (("name", "dilation"), ("upsampling", "deconv")): 4,
    }
    for fields, first in cases.items():
        assert narrow(**dict(fields)).coarse_scores.label_offset == first, fields
    unet = models.UNet(2)
    with pytest.raises(UserError, match="'output_stride', but UNet has no scores"):
        training.make_step(
            unet,
            optax.identity(),
            options=config.make(loss={"resolution": "output_stride"}).loss,
            seed=0,
        )


# Starting from another run


def small_fcn(folder, **fields):
    model = {"widths": (4, 4, 4, 8, 8), "fc_channels": 8}
    return config.make(
        model_name="fcn",
        model=model | fields.pop("model"),
        data={
            "scenes_size": (48, 48),
            "scenes_train": 4,
            "scenes_validation": 2,
            "data_dir": str(folder / "data"),
        },
        optim={"name": "adam", "weight_decay": 0.0, **fields.pop("optim", {})},
        batch_size=4,
        eval_batch_size=4,
        eval_images=0,
        threads=1,
        **fields,
    )


@pytest.fixture(scope="module")
def fcn32s(tmp_path_factory):
    """The folder of a short run, and its config; read only."""
    folder = tmp_path_factory.mktemp("staged")
    options = small_fcn(folder, model={"skips": 32}, optim={"lr": 0.01}, total_steps=2)
    assert train.train(options, folder / "32s") == 0
    return folder


def variables_of(workdir):
    info = workdir_lib.read_dataset(workdir)
    options = config.load(workdir / "config.json")
    mesh = sharding.make_mesh()
    return load_model(options, workdir, info=info, which="best", mesh=mesh)[:2]


def test_fcn16s_starts_with_the_prediction_of_fcn32s(fcn32s, capsys):
    """CVPR section 4.2: new skips start at zero; the upsampling has one step more."""
    options = small_fcn(
        fcn32s,
        model={"skips": 16},
        optim={"lr": 0.0},
        total_steps=1,
        init_from=str(fcn32s / "32s"),
    )
    assert train.train(options, fcn32s / "16s") == 0
    log = capsys.readouterr().err
    assert (
        f"initialized 16 layers from {fcn32s}/32s (fcn trained on scenes, step 2)"
        in log
    )
    assert "newly initialized: score_pool4 (the weights do not have it)" in log
    images = np.random.default_rng(0).integers(0, 256, (1, 96, 80, 3), np.uint8)
    (coarse, before), (fine, after) = map(
        variables_of, (fcn32s / "32s", fcn32s / "16s")
    )
    logits, ends = jax.jit(lambda v, x: coarse.apply(v, x, train=False))(before, images)
    new, new_ends = jax.jit(lambda v, x: fine.apply(v, x, train=False))(after, images)
    assert np.ptp(ends["score_fr"], axis=(0, 1, 2)).min() > 1e-4
    np.testing.assert_array_equal(new_ends["score_fr"], ends["score_fr"])
    scores = np.float64(ends["score_fr"][0])
    full = interpolate(scores, (32,), 19)[:96, :80]
    np.testing.assert_allclose(logits[0], full, rtol=0, atol=1e-5)
    full = interpolate(scores, (2, 16), 27)[:96, :80]
    np.testing.assert_allclose(new[0], full, rtol=0, atol=1e-5)


def interpolate(scores, strides, crop):
    """Caffe's bilinear deconvolutions of kernel 2 * stride [h, w, K], and its crop."""
    for stride in strides:
        wide = np.zeros((*(stride * n for n in scores.shape[:2]), scores.shape[2]))
        wide[::stride, ::stride] = scores
        taps = 1 - np.abs(np.arange(2 * stride) - (stride - 0.5)) / stride
        kernel = np.multiply.outer(taps, taps)[..., None]
        scores = scipy.signal.fftconvolve(wide, kernel, axes=(0, 1))
    return scores[crop:, crop:]


def test_other_classes_are_new_and_other_shapes_an_error(fcn32s):
    run = fcn32s / "32s"
    model, variables = variables_of(run)
    mesh = sharding.make_mesh()
    options = config.load(run / "config.json")
    zeros = jax.tree.map(np.zeros_like, jax.device_get(variables["params"]))
    zeros["score_fr"] = {
        "kernel": np.ones((1, 1, 8, 5), np.float32),
        "bias": np.ones(5, np.float32),
    }

    def start(params, classes="abcde"):
        tree = {"params": params, "batch_stats": {}}
        return initialization.start(
            str(run), options, classes=tuple(classes), variables=tree, mesh=mesh
        )

    new, report = start(zeros)
    assert new["batch_stats"] == {} and (new["params"]["score_fr"]["kernel"] == 1).all()
    trunk = new["params"]["backbone"]["conv1_1"]["kernel"]
    assert (trunk == variables["params"]["backbone"]["conv1_1"]["kernel"]).all()
    why = f"the weights are for {model.num_classes} classes"
    assert report.new == {"score_fr": why}
    assert len(report.loaded) == 15 and not report.unused

    # As many classes, but the names of two are exchanged.
    zeros["score_fr"] = jax.tree.map(np.ones_like, variables["params"]["score_fr"])
    names = workdir_lib.read_dataset(run).classes
    new, report = start(zeros, names)
    assert report.new == {} and not np.ptp(zeros["score_fr"]["kernel"])
    loaded = new["params"]["score_fr"]["kernel"]
    np.testing.assert_array_equal(loaded, variables["params"]["score_fr"]["kernel"])
    new, report = start(zeros, (names[1], names[0], *names[2:]))
    assert (new["params"]["score_fr"]["kernel"] == 1).all()
    why = f"class 0 of the weights is {names[0]!r}, of the data {names[1]!r}"
    assert report.new == {"score_fr": why}

    zeros["backbone"]["fc7"]["kernel"] = np.ones((1, 1, 8, 9), np.float32)
    expected = r"fc7/kernel has shape \(1, 1, 8, 8\), the model needs \(1, 1, 8, 9\)"
    with pytest.raises(UserError, match=expected):
        start(zeros)
    head = {"head": {"kernel": np.ones((1, 1, 8, 5), np.float32)}}
    with pytest.raises(UserError, match="unexpected: params/backbone/conv1_1"):
        start(head)


def test_non_finite_names_the_first_bad_step():
    good = {"loss": np.float32(1)}
    assert training.non_finite([good, good]) is None
    assert training.non_finite([good, {"loss": np.float32("nan")}, good]) == 1


# Checkpoints


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def abstract(state, devices=4):
    place = NamedSharding(mesh_of(devices), PartitionSpec())
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state
    )


@pytest.fixture
def folder(tmp_path, trained):
    """Checkpoints of step 3 and 4."""
    with checkpoint.open_folder(tmp_path, keep=2) as manager:
        checkpoint.save(manager, trained[1], {"best_miou": 0.25})
        newer = trained[1].replace(step=trained[1].step + 1)
        checkpoint.save(manager, newer, {"best_miou": 0.5})
        checkpoint.finish(manager)
    return tmp_path


def restore(folder, state, devices=4):
    with checkpoint.open_folder(folder, keep=2) as manager:
        return checkpoint.restore_latest(manager, abstract(state, devices))


@pytest.mark.parametrize("devices", [4, 1])
def test_restore_has_the_same_bits_on_any_number_of_devices(folder, trained, devices):
    state, extra = restore(folder, trained[1], devices)
    assert int(state.step) == 4 and extra == {"best_miou": 0.5}
    assert type(state.opt_state) is type(trained[1].opt_state)
    for a, b in zip(leaves(state)[1:], leaves(trained[1])[1:], strict=True):
        assert a.tobytes() == b.tobytes() and a.dtype == b.dtype
    assert len(jax.tree.leaves(state)[1].sharding.device_set) == devices


def test_nothing_to_restore(tmp_path, trained):
    assert restore(tmp_path, trained[1]) is None


def truncate(path):
    for data in path.rglob("d/*"):
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])


def flip_bits(path):
    for file in path.rglob("d/*"):
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)


def change_array(path):
    """As if one had changed where the file format does not notice.

    Earlier versions wrote no checksum of the description.
    """
    meta = path / "meta" / "metadata"
    values = json.loads(meta.read_text())
    del values["crc"]
    next(iter(values["arrays"].values()))[2] ^= 1
    meta.write_text(json.dumps(values))


def change_description(path):
    meta = path / "meta" / "metadata"
    values = json.loads(meta.read_text())
    values["extra"]["best_miou"] = 0.75
    meta.write_text(json.dumps(values))


def lose_meta(path):
    (path / "meta" / "metadata").unlink()


# Orbax leaves its other reads of the damaged files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage", [truncate, flip_bits, change_array, change_description, lose_meta]
)
def test_damaged_checkpoint_falls_back_and_says_so(folder, trained, caplog, damage):
    damage(folder / "4")
    state, extra = restore(folder, trained[1])
    assert int(state.step) == 3 and extra == {"best_miou": 0.25}
    assert f"{folder}/4 is damaged" in caplog.text
    assert (folder / "4.corrupt").is_dir() and not (folder / "4").exists()
    truncate(folder / "3")
    with pytest.raises(UserError, match="none of the checkpoints"):
        restore(folder, trained[1])


def test_checkpoint_of_another_model_is_not_damage(folder, trained):
    state = trained[1]
    wider = state.replace(
        params=state.params | {"score": {"kernel": jnp.zeros((1, 1, 4, 5))}}
    )
    with pytest.raises(UserError, match=r"params/score/bias|shape \(1, 1, 4, 3\)"):
        restore(folder, wider)
    assert (folder / "4").is_dir()


def test_full_disk(tmp_path, trained, monkeypatch):
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="GB free"):
        checkpoint.check_space(tmp_path, trained[1], copies=4)
    usage.free = 4 * sum(array.nbytes for array in leaves(trained[1]))
    checkpoint.check_space(tmp_path, trained[1], copies=4)
    with pytest.raises(UserError, match="GB free; 5 checkpoints"):
        checkpoint.check_space(tmp_path, trained[1], copies=5)
