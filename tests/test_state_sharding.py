"""state_sharding: shares of the training state, and the same training."""

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from experiments.shared import training_run
from segjax import checkpoint, config, sharding
from segjax.models import layers
from segjax.ops import geometry


class Net(nn.Module):
    """A convolution with shares, normalization, and scores of an odd number."""

    num_classes = 3
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        x = layers.Conv(8, padding=1, name="conv")(images / 255)
        options = {"train": train, "momentum": 0.9, "dtype": "float32"}
        x = nn.relu(layers.batch_norm(x, "bn", **options))
        return layers.Conv(3, size=1, name="score")(x), {}


def test_the_largest_dimension_that_divides_is_shared():
    mesh = sharding.make_mesh()
    shapes = {
        (3, 3, 512, 4096): PartitionSpec(None, None, None, "data"),
        (3, 3, 512, 512): PartitionSpec(None, None, "data"),
        (3, 3, 512, 21): PartitionSpec(None, None, "data"),
        (2**12,): PartitionSpec("data"),
        (2**12 - 4,): PartitionSpec(),  # few values
        (135, 123): PartitionSpec(),
        (): PartitionSpec(),
    }
    for shape, spec in shapes.items():
        assert sharding.share(mesh, shape).spec == spec, shape
    # Each slice has everything.
    halves = sharding.share(sharding.make_mesh(slices=2), (2**12,))
    assert halves.shard_shape((2**12,)) == (2**11,)


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, 5, 5, 3)).astype(np.uint8),
        "label": rng.integers(0, 3, (8, 5, 5)).astype(np.uint8),
    }


def parts(kind, mesh):
    options = config.make(
        batch_size=8, total_steps=9, state_sharding=kind, optim={"name": "adam"}
    )
    init = training_run.make_init(options, Net(), image_shape=(5, 5, 3), mesh=mesh)
    abstract = training_run.abstract_state(
        options, init, image_shape=(5, 5, 3), mesh=mesh
    )
    step = training_run.make_train_step(
        options, Net(), params=abstract.params, mesh=mesh
    )
    return init, step, abstract


def on_one_device(tree):
    """Bytes."""
    return sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def trained():
    """Of each kind: losses of three steps, and the state."""
    mesh, found = sharding.make_mesh(), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "SMALL", 24)
        for kind in sharding.STATE_SHARDINGS:
            init, step, abstract = parts(kind, mesh)
            state, losses = init(), []
            for _ in range(3):
                state, metrics = step(state, sharding.put(batch(), mesh))
                losses.append(float(metrics["loss"]))
            wanted = jax.tree.map(lambda x: x.sharding, abstract)
            assert jax.tree.map(lambda x: x.sharding, state) == wanted
            found[kind] = losses, state
    return found


def test_shares_train_as_copies_do_in_less_memory(trained):
    losses, copies = trained["replicated"]
    kernels = 4 * (9 * 3 * 8 + 8 * 3)
    params, moments = on_one_device(copies.params), on_one_device(copies.opt_state)
    for kind in ("optimizer", "parameters"):
        found, state = trained[kind]
        np.testing.assert_allclose(found, losses, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            jax.device_get(state),
            jax.device_get(copies),
        )
        # Adam has two moments of every parameter.
        saved = 2 * kernels * 3 / 4
        assert on_one_device(state.opt_state) == moments - saved
    assert on_one_device(trained["optimizer"][1].params) == params
    assert on_one_device(trained["parameters"][1].params) == params - kernels * 3 / 4


def test_variables_for_evaluation_are_whole(trained):
    _, state = trained["parameters"]
    variables = training_run.whole_variables(state, sharding.make_mesh())
    assert on_one_device(variables["params"]) == on_one_device(
        trained["replicated"][1].params
    )
    np.testing.assert_array_equal(
        variables["params"]["conv"]["kernel"].addressable_data(1),
        state.params["conv"]["kernel"],
    )


@pytest.mark.parametrize(
    "saved, restored, devices",
    [
        ("parameters", "parameters", 2),
        ("parameters", "replicated", 1),
        ("replicated", "parameters", 4),
    ],
)
def test_checkpoints_are_restored_in_other_shares(
    trained, tmp_path, monkeypatch, saved, restored, devices
):
    monkeypatch.setattr(sharding, "SMALL", 24)
    _, state = trained[saved]
    manager = checkpoint.open_folder(tmp_path, 1)
    checkpoint.save(manager, state)
    checkpoint.finish(manager)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    _, step, abstract = parts(restored, mesh)
    found, _ = checkpoint.restore_latest(manager, abstract)
    manager.close()
    for wanted, array in zip(jax.tree.leaves(abstract), jax.tree.leaves(found)):
        assert array.sharding == wanted.sharding
    jax.tree.map(np.testing.assert_array_equal, found, state)
