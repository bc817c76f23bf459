"""The mesh: in the order of processes, one row per slice."""

from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh

from segjax import config, sharding, training
from segjax.ops import geometry


class Chip(NamedTuple):
    """What a mesh needs to know of a device."""

    id: int
    process_index: int
    slice_index: int = 0


def test_rows_of_a_batch_are_in_the_order_of_processes():
    """A v5e:4x4 lists its devices along a ring through the four hosts."""
    ring = [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
    devices = [Chip(number, process) for number, process in enumerate(ring)]
    grid = sharding.device_grid(devices[::-1])
    assert [device.process_index for device in grid] == sorted(ring)
    for process in range(4):
        ids = [device.id for device in grid if device.process_index == process]
        assert ids == [i for i, owner in enumerate(ring) if owner == process]


class Net(nn.Module):
    """Dropout, and statistics of micro-batches: both depend on the order of images."""

    num_classes = 3
    tiling = geometry.ANY_SIZE
    coarse_scores = None

    @nn.compact
    def __call__(self, images, train):
        x = nn.Conv(4, (3, 3))(images / 255)
        x = nn.BatchNorm(not train)(x)
        x = nn.Dropout(0.5)(x, deterministic=not train)
        return nn.Conv(3, (1, 1))(x), {}


def test_processes_along_a_ring_train_as_one_process_would():
    """Dropout and micro-batches meet the same images; as listed, they would not."""
    owners = dict(zip(jax.devices(), (0, 1, 1, 0)))
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (16, 5, 5, 3)).astype(np.uint8),
        "label": rng.integers(0, 3, (16, 5, 5)).astype(np.uint8),
    }

    def shares(mesh):
        """Each process loads half of the batch and puts it on its own devices."""
        whole = sharding.split(mesh)
        rows = {0: iter(range(0, 8, 4)), 1: iter(range(8, 16, 4))}
        first = {device: next(rows[owners[device]]) for device in mesh.devices}
        return {
            name: jax.make_array_from_single_device_arrays(
                x.shape,
                whole,
                [jax.device_put(x[i : i + 4], device) for device, i in first.items()],
            )
            for name, x in batch.items()
        }

    options, optimizer = config.make().loss, optax.sgd(0.1)
    step = training.make_step(
        Net(), optimizer, options=options, seed=0, grad_accum_steps=2
    )
    step = jax.jit(step)
    start = training.create_state(
        Net(), lambda _: optimizer, image_shape=(5, 5, 3), seed=0
    )

    def losses(mesh, batch):
        state = jax.device_put(start, sharding.replicated(mesh))
        found = []
        for _ in range(3):
            state, metrics = step(state, batch)
            found.append(float(metrics["loss"]))
        return found

    alone = sharding.make_mesh()
    expected = losses(alone, sharding.put(batch, alone))
    chips = {Chip(device.id, owner): device for device, owner in owners.items()}
    ordered = [chips[chip] for chip in sharding.device_grid(list(chips))]
    assert [owners[device] for device in ordered] == [0, 0, 1, 1]
    mesh = Mesh(ordered, ("data",))
    assert losses(mesh, shares(mesh)) == expected
    naive = Mesh(jax.devices(), ("data",))
    wrong = losses(naive, shares(naive))
    assert not np.allclose(wrong, expected, rtol=1e-4)


def test_slices_are_rows_of_the_mesh():
    chips = [Chip(i, i // 2, i // 4) for i in (5, 0, 7, 2, 1, 6, 3, 4)]
    for slices in (0, 2):
        grid = sharding.device_grid(chips, slices)
        assert [[device.id for device in row] for row in grid] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
        ]
    turns = [Chip(i, i, i % 2) for i in range(4)]
    assert list(sharding.device_grid(turns[::-1])) == turns
    silent = [Chip(i, 0) for i in range(6)]
    grid = sharding.device_grid(silent, 3)
    assert [[device.id for device in row] for row in grid] == [[0, 1], [2, 3], [4, 5]]
    with pytest.raises(ValueError, match="6 devices are not 4 equal slices"):
        sharding.device_grid(silent, 4)
    with pytest.raises(ValueError, match=r"slices of \[4, 3\] devices"):
        sharding.device_grid(sorted(chips)[:7])
    with pytest.raises(ValueError, match="expected 4 ones"):
        sharding.device_grid(chips, 4)


def test_the_mesh_has_all_devices_and_compiles_as_one_program():
    mesh = sharding.make_mesh()
    assert mesh.shape == {"data": 4}
    assert mesh.axis_types == (AxisType.Auto,)
    assert list(mesh.devices) == jax.devices()
    assert sharding.make_mesh(slices=2).shape == {"slice": 2, "data": 2}
