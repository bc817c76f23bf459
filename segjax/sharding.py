"""The device mesh, and moving batches onto it.

One mesh axis, ``data``: the batch is split over all devices of all processes, the
state is replicated.  Under ``jax.jit`` the program is the single-device one, so
batch-norm statistics and losses are over the global batch.
"""

import collections
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from segjax.errors import UserError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """``devices`` (default: all, of all processes) on the axis ``data``."""
    devices = jax.devices() if devices is None else devices
    # make_mesh defaults to Explicit axes, under which convolutions do not trace.
    return jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Leading axis over ``data``."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(batch_size: int, field: str, accumulate: int = 1) -> None:
    """Raises UserError unless ``batch_size`` splits evenly over the devices."""
    devices = jax.device_count()
    parts = devices * accumulate
    if batch_size % parts:
        nearest = max(parts, batch_size // parts * parts)
        raise UserError(
            f"config.{field}={batch_size} does not split evenly over {devices} devices"
            + (f" in {accumulate} accumulated parts" if accumulate > 1 else "")
            + f"; use a multiple of {parts}, such as {nearest}"
        )


def put(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """The arrays ``image`` and ``label`` of this process as global device arrays."""
    sharding = split(mesh)
    return {
        key: jax.make_array_from_process_local_data(sharding, batch[key])
        for key in ("image", "label")
    }


def prefetch(
    batches: Iterable[dict], mesh: jax.sharding.Mesh, ahead: int = 2
) -> Iterator[tuple[dict, dict]]:
    """Yields (host batch, device batch) with ``ahead`` transfers in flight."""
    queue = collections.deque()
    for batch in batches:
        queue.append((batch, put(batch, mesh)))
        if len(queue) > ahead:
            yield queue.popleft()
    while queue:
        yield queue.popleft()
