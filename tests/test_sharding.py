"""The mesh: in the order of processes, one row per slice."""

from typing import NamedTuple

import jax
import pytest
from jax.sharding import AxisType

from segjax import sharding


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


def test_slices_are_rows_of_the_mesh():
    chips = [Chip(i, i // 2, i // 4) for i in (5, 0, 7, 2, 1, 6, 3, 4)]
    for slices in (0, 2):
        grid = sharding.device_grid(chips, slices)
        assert [[device.id for device in row] for row in grid] == [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
        ]
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
