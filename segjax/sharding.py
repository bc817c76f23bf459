"""The device mesh, moving batches onto it, and where the training state lies.

The batch is split over all devices of all processes, the state is replicated unless
:func:`state_shardings` says otherwise: one mesh axis, ``data``, and with several TPU
slices a second, ``slice``, so that XLA sums inside each slice before it crosses the
slower network between them.  Under ``jax.jit`` the computation is that of a single
device, so batch-norm statistics and losses are over the global batch.
"""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from segjax.errors import UserError
from segjax.labels import STEP_INPUTS


def make_mesh(
    devices: Sequence[jax.Device] | None = None, slices: int = 0
) -> jax.sharding.Mesh:
    """``devices`` (default: all, of all processes) on ``data`` or ``slice`` x ``data``.

    Devices are in the order of their processes (:func:`device_grid`).

    Args:
      devices: of one or several slices.
      slices: how many slices; 0: what the devices say. Devices that do not say are cut
        into consecutive ones of equal size.

    Raises:
      ValueError: the slices differ in size, or in number from ``slices``.
    """
    grid = device_grid(jax.devices() if devices is None else devices, slices)
    axes = ("data",) if grid.ndim == 1 else ("slice", "data")
    # Under explicit axes, jax.make_mesh's default, convolutions do not trace.
    return Mesh(grid, axes, axis_types=(AxisType.Auto,) * grid.ndim)


def device_grid(devices: Sequence[jax.Device], slices: int = 0) -> np.ndarray:
    """Devices [data] or [slice, data], in the order of processes and then of ids.

    Each process loads the n-th part of a batch. In this order the global batch has its
    rows in the order in which a single process would load them, so that dropout masks
    and micro-batches meet the same images however many processes there are.
    ``jax.make_mesh`` would follow the wiring instead: on a v5e:4x4 slice the processes
    0, 0, 1, 1, 1, 1, 0, 2, .. For collectives over all devices the order of the mesh
    does not matter. Where slices take turns in the order of processes, as hosts of GPUs
    may in a cyclic distribution of tasks, there is one axis only.

    Args:
      devices: of one or several slices, in any order.
      slices: see :func:`make_mesh`.

    Raises:
      ValueError: see :func:`make_mesh`.
    """
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    by_slice: dict[int, list[jax.Device]] = collections.defaultdict(list)
    for device in devices:
        by_slice[getattr(device, "slice_index", 0)].append(device)
    rows = list(by_slice.values())
    if [device for row in rows for device in row] != devices:
        rows = [devices]
    if len(rows) == 1 and slices > 1:
        size, remainder = divmod(len(devices), slices)
        if remainder:
            raise ValueError(f"{len(devices)} devices are not {slices} equal slices")
        rows = [devices[i : i + size] for i in range(0, len(devices), size)]
    if slices not in (0, len(rows)) or len({len(row) for row in rows}) > 1:
        sizes = [len(row) for row in rows]
        raise ValueError(
            f"slices of {sizes} devices, expected {slices or 'equal'} ones"
        )
    grid = np.empty((len(rows), len(rows[0])), object)
    grid[:] = rows
    return grid[0] if len(rows) == 1 else grid


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(mesh.axis_names))


STATE_SHARDINGS = ("replicated", "optimizer", "parameters")
SMALL = 2**12  # values: of smaller arrays all devices have a copy


def share(mesh: jax.sharding.Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """An equal share of an array on every device of a slice, or a copy.

    Along the largest dimension that the devices divide; a copy if there is none, or
    fewer values than :data:`SMALL`. Every slice has all shares, so that nothing is
    gathered between slices.
    """
    parts = mesh.shape["data"]
    divisible = [size if size % parts == 0 else 0 for size in shape]
    if parts == 1 or math.prod(shape) < SMALL or not any(divisible):
        return replicated(mesh)
    axis = divisible.index(max(divisible))
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def state_shardings(state: Any, mesh: jax.sharding.Mesh, kind: str) -> Any:
    """Where the arrays of a training state lie, as a tree of the same structure.

    Args:
      state: a ``training.TrainState`` of arrays or shapes.
      mesh: from :func:`make_mesh`.
      kind: ``config.state_sharding``, of :data:`STATE_SHARDINGS`. "optimizer" shares
        out the optimizer's state (stage 1 of ZeRO, Rajbhandari et al., SC 2020),
        "parameters" the parameters, too (stage 3 of ZeRO, or FSDP).
    """

    def shares(tree: Any) -> Any:
        return jax.tree.map(lambda x: share(mesh, x.shape), tree)

    where = jax.tree.map(lambda _: replicated(mesh), state)
    if kind != "replicated":
        where = where.replace(opt_state=shares(state.opt_state))
    if kind == "parameters":
        where = where.replace(params=shares(state.params))
    return where


def check_batch_size(
    batch_size: int, field: str, *, grad_accum_steps: int = 1, devices: int = 0
) -> None:
    """Checks that a batch splits evenly over the devices, and over micro-batches.

    Args:
      batch_size: of the global batch.
      field: of the config that holds it, for the message: "batch_size".
      grad_accum_steps: number of micro-batches.
      devices: number of devices; 0: all of this program.

    Raises:
      UserError: it does not; names the nearest batch size that does.
    """
    devices = devices or jax.device_count()
    parts = devices * grad_accum_steps
    if batch_size % parts:
        nearest = max(parts, batch_size // parts * parts)
        micro = f" in {grad_accum_steps} micro-batches" if grad_accum_steps > 1 else ""
        raise UserError(
            f"--config.{field}={batch_size} does not split evenly over {devices} "
            f"devices{micro}; use a multiple of {parts}, such as {nearest}"
        )


def put(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """What steps need of a batch of this process, as global device arrays."""
    sharding = split(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, batch[key])
        for key in STEP_INPUTS
        if key in batch
    }


def prefetch(
    batches: Iterable[dict], mesh: jax.sharding.Mesh, ahead: int = 2
) -> Iterator[tuple[dict, dict]]:
    """Yields (host batch, device batch) with ``ahead`` transfers in flight."""
    queue: collections.deque[tuple[dict, dict]] = collections.deque()
    for batch in batches:
        queue.append((batch, put(batch, mesh)))
        if len(queue) > ahead:
            yield queue.popleft()
    while queue:
        yield queue.popleft()
