"""What a compiled training step tells of itself: cycles, collectives, speeds."""

import math
from typing import Any, NamedTuple

import jax

from experiments.launch import collectives, tpus
from segjax import sharding, training
from segjax.analysis import hlo


class Target(NamedTuple):
    """What is planned for."""

    name: str  # "v5e:4x4", "2 x v5e:4x4" or "gpu:8"
    chips: int  # in all slices; of tpu7x: halves of chips, each a device
    devices: list[jax.Device] | None  # to compile for; None: analytic only
    available: float  # GiB for a program on each chip; 0: unknown
    kind: dict  # a row of tpus.TPUS; {} for GPUs
    tpu_slice: tpus.Slice | None = None
    slices: int = 1


def state_bytes(state: training.TrainState, to: Target, kind: str) -> int:
    """Bytes on a chip of parameters, statistics and optimizer.

    Args:
      state: shapes.
      to: what it is planned for.
      kind: ``config.state_sharding``.
    """
    mesh = jax.sharding.AbstractMesh((to.chips // to.slices,), ("data",))
    where = sharding.state_shardings(state, mesh, kind)

    def size(x: jax.ShapeDtypeStruct, at: jax.sharding.NamedSharding) -> int:
        return math.prod(at.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(size, state, where)))


def costs(compiled: Any, to: Target, *, model_flops: int, images: int) -> dict:
    """What a compiled step tells of itself, per chip.

    Args:
      compiled: the step.
      to: what it was compiled for.
      model_flops: of a chip and step.
      images: of a step, on all chips.
    """
    text, cost = compiled.as_text(), compiled.cost_analysis()
    numbers = {
        "xla_flops": cost["flops"],
        "loops": " while(" in text,
        "collectives": hlo.collectives(text),
        "without_estimate": hlo.without_estimate(text),
    }
    by_layer = hlo.costs(text)
    cycles = sum(row.cycles for row in by_layer)
    if not (to.kind and cycles):
        return numbers
    seconds = cycles / to.kind["clock"]
    flops_seconds = model_flops / to.kind["peak"]
    network = collectives.seconds(numbers["collectives"], to.tpu_slice, to.slices)
    numbers |= collectives.speeds(seconds, network, images)
    return numbers | {
        "cycles": cycles,
        "seconds": seconds,
        "utilisation": flops_seconds / seconds,
        "flops_seconds": flops_seconds,
        "memory_seconds": cost["bytes accessed"] / to.kind["hbm_bandwidth"],
        "costliest": [
            (row.layer, row.forward / cycles, row.backward / cycles)
            for row in by_layer[:10]
        ],
    }
