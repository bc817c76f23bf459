"""The step, checkpoints and the pipeline, on a network small enough to run."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from segjax import checkpoint, config, optim, sharding, training
from segjax.data import pipeline, transforms
from segjax.errors import UserError


class Net(nn.Module):
    """One convolution, one batch normalisation, an auxiliary head."""

    norm: bool = True

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


def run(steps=3, devices=4, accumulate=1, norm=True, options=OPTIONS):
    """Trains ``Net`` on one batch per step; the losses and the final state."""
    model = Net(norm)

    def optimizer_of(params):
        return optim.create(options.optim, params, 10)

    mesh = mesh_of(devices)
    state = training.create_state(model, optimizer_of, (6, 6, 3), 0)
    state = jax.device_put(state, sharding.replicated(mesh))
    step = jax.jit(
        training.make_step(
            model, optimizer_of(state.params), options.loss, 0, accumulate
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


def test_loss_is_the_global_mean_over_valid_pixels(trained):
    """Unevenly spread void: per-device means, averaged, would give another number."""
    model, batch = Net(), batch_of()
    state = training.create_state(model, lambda _: optax.identity(), (6, 6, 3), 0)
    (logits, ends), _ = model.apply(
        {"params": state.params, "batch_stats": state.batch_stats},
        batch["image"],
        train=True,
        mutable=["batch_stats"],
    )
    valid = batch["label"] != 255

    def mean_loss(logits):
        log_p = scipy.special.log_softmax(np.asarray(logits, np.float64), -1)
        return -np.take_along_axis(
            log_p[valid], batch["label"][valid][:, None], 1
        ).mean()

    expected = mean_loss(logits) + 0.4 * mean_loss(ends["aux_logits"])
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
    parts, _ = run(norm=False, accumulate=2)
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


def test_loss_per_image_is_the_unnormalised_sum_of_fcn():
    options = config.make(loss={"normalize": "images"}, optim={"lr": 0.0})
    per_image = run(steps=1, options=options)[0][0]
    per_pixel = run(steps=1)[0][0]
    valid = (batch_of()["label"] != 255).sum()
    assert per_image == pytest.approx(per_pixel * valid / 8, rel=1e-5)


def test_loss_falls(trained):
    losses, _ = run(steps=8)
    assert losses[:3] == trained[0]
    assert losses[-1] < losses[0]


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


def change_checksum(path):
    """As if an array had changed where the file format does not notice."""
    meta = path / "meta" / "metadata"
    values = json.loads(meta.read_text())
    next(iter(values["arrays"].values()))[2] ^= 1
    meta.write_text(json.dumps(values))


def lose_meta(path):
    (path / "meta" / "metadata").unlink()


# Orbax leaves its other reads of the damaged files to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [truncate, flip_bits, change_checksum, lose_meta])
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


# Pipeline


class Source:
    """Twelve 8x8 images that hold their own index."""

    sizes = [(8, 8)] * 12

    def __len__(self):
        return 12

    def __getitem__(self, i):
        image = np.full((8, 8, 3), i, np.uint8)
        return {"image": image, "label": image[..., 0], "id": f"im{i}"}


AUGMENT = transforms.Options(crop=(6, 6), scale=(0.5, 2), flip=0.5, noise=3)


def take(n, **options):
    stream = pipeline.train_batches(Source(), AUGMENT, batch_size=4, seed=1, **options)
    return [next(stream) for _ in range(n)]


@pytest.fixture(scope="module")
def stream():
    return take(7)


def same(a, b):
    return all((a[key] == b[key]).all() for key in ("image", "label", "id"))


def test_batches_depend_on_seed_and_index_only(stream):
    assert all(map(same, stream, take(7, threads=1)))
    assert all(map(same, stream[3:], take(4, start=3)))
    assert not same(stream[0], stream[3])


def test_processes_split_each_batch(stream):
    shares = [take(7, process=(i, 2)) for i in range(2)]
    for whole, first, second in zip(stream, *shares, strict=True):
        for key in ("image", "label", "id"):
            joined = np.concatenate([first[key], second[key]])
            assert (joined == whole[key]).all()


def test_every_epoch_visits_every_image_once_in_a_new_order(stream):
    ids = np.concatenate([batch["id"] for batch in stream[:6]])
    assert sorted(ids[:12]) == sorted(ids[12:]) == sorted(f"im{i}" for i in range(12))
    assert list(ids[:12]) != list(ids[12:])


def test_worker_processes_change_nothing(stream):
    assert all(map(same, stream[:4], take(4, workers=2)))


def test_evaluation_counts_every_image_once():
    source = Source()
    for count in (1, 2):
        seen = []
        for i in range(count):
            batches = list(
                pipeline.eval_batches(source, source.sizes, 8, 3, (i, count))
            )
            assert {len(batch["id"]) for batch in batches} == {8 // count}
            for batch in batches:
                for name, label in zip(batch["id"], batch["label"], strict=True):
                    assert (label == 255).all() == (name == "")
                    seen += [name] if name else []
        assert sorted(seen) == sorted(f"im{i}" for i in range(12))


def test_mixed_sizes_share_padded_shapes():
    sizes = [(h, 50) for h in range(40, 52)]
    plan = pipeline.eval_plan(sizes, 8)
    assert {bucket for bucket, _ in plan} == {(64, 64)}
    assert sorted(i for _, indices in plan for i in indices) == list(range(12))
    few = pipeline.eval_plan([(8, 8), (9, 8), (8, 8)], 8)
    assert few == [((8, 8), [0, 2]), ((9, 8), [1])]
