"""TPU slices: what their chips can do, how many chips and hosts a topology has.

Facts of https://cloud.google.com/tpu/docs (v4, v5e, v5p, v6e, tpu7x: system
architecture and configurations) and of
https://cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus.  All are per device
of JAX: a chip, of which tpu7x has two halves that are one each.  ``hbm`` is what the
compiler (libtpu 0.0.42) lets a program use of the nominal 32, 16, 95, 32 and 96 GB.
``clock`` is not published: it is the peak over the FLOPs per cycle of the matrix units,
2 x 4 x 128^2 x 2 (v4, v5p), 4 x 128^2 x 2 (v5e), and 2^19 (v6e, tpu7x; the compiler's
estimates of large matrix products come close to it).
"""

import math
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.experimental import topologies

from segjax.errors import UserError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

TPUS = {
    "v4": {
        "hbm": 30.75,  # GiB per chip
        "hbm_bandwidth": 1200e9,  # bytes/s per chip
        "peak": 275e12,  # bfloat16 FLOP/s per chip
        "clock": 1.05e9,  # Hz
        "topologies": (),  # three dimensions; see _is_box
        "chips": 4096,  # the largest slice
        "accelerator_type": ("v4", 2),  # prefix; what it counts per chip (TensorCores)
        "runtime": "tpu-ubuntu2204-base",  # of a TPU VM
        "gke": "tpu-v4-podslice",  # node label cloud.google.com/gke-tpu-accelerator
        # Both TensorCores of a chip as one device, as on Cloud TPU.
        "compiler": {"chip_config_name": "megacore"},
    },
    "v5e": {
        "hbm": 15.75,
        "hbm_bandwidth": 819e9,
        "peak": 197e12,
        "clock": 1.5e9,
        "topologies": _FLAT,
        "chips": 256,
        "accelerator_type": ("v5litepod", 1),
        "runtime": "v2-alpha-tpuv5-lite",
        "gke": "tpu-v5-lite-podslice",
        "compiler": {},
    },
    "v5p": {
        "hbm": 95.74,
        "hbm_bandwidth": 2765e9,
        "peak": 459e12,
        "clock": 1.75e9,
        "topologies": (),
        "chips": 6144,
        "accelerator_type": ("v5p", 2),
        "runtime": "v2-alpha-tpuv5",
        "gke": "tpu-v5p-slice",
        "compiler": {},
    },
    "v6e": {
        "hbm": 31.25,
        "hbm_bandwidth": 1638e9,
        "peak": 918e12,
        "clock": 1.75e9,
        "topologies": _FLAT,
        "chips": 256,
        "accelerator_type": ("v6e", 1),
        "runtime": "v2-alpha-tpuv6e",
        "gke": "tpu-v6e-slice",
        "compiler": {},
    },
    "tpu7x": {
        "hbm": 94.75,
        "hbm_bandwidth": 3690e9,
        "peak": 1153.5e12,
        "clock": 2.2e9,
        "topologies": (),
        "chips": 9216,
        "devices": 2,  # per chip
        "accelerator_type": ("tpu7x", 2),
        "runtime": "",  # no TPU VMs but those of GKE
        "gke": "tpu7x",
        "compiler": {},
    },
}


class Slice(NamedTuple):
    """Chips that are connected by their own network, and the hosts they sit in."""

    generation: str  # a key of TPUS
    topology: str  # such as 4x4 or 2x2x4
    chips: int
    hosts: int

    @property
    def kind(self) -> dict:
        """The row of TPUS."""
        return TPUS[self.generation]

    @property
    def devices(self) -> int:
        """As JAX counts them."""
        return self.chips * self.kind.get("devices", 1)

    @property
    def chips_per_host(self) -> int:
        return self.chips // self.hosts

    @property
    def accelerator_type(self) -> str:
        """What gcloud calls it: v5litepod-16, v4-32 (32 cores of 16 chips)."""
        prefix, per_chip = self.kind["accelerator_type"]
        return f"{prefix}-{self.chips * per_chip}"


def parse(text: str) -> Slice:
    """The slice that ``--topology`` names, such as v5e:4x4 or v4:2x2x4.

    Raises:
      UserError: no such generation or topology.
    """
    generation, _, topology = text.partition(":")
    if generation not in TPUS or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)+", topology):
        raise UserError(
            f"--topology={text}: expected GENERATION:SHAPE such as v5e:4x4 or "
            f"v4:2x2x4; generations: {', '.join(TPUS)}"
        )
    sides = [int(side) for side in topology.split("x")]
    chips = math.prod(sides)
    known = TPUS[generation]["topologies"]
    if topology not in known if known else not _is_box(sides):
        expected = (
            "one of " + ", ".join(known)
            if known
            else "2x2x1, 2x2x2, 2x2x4, 2x4x4, or three multiples of 4 in rising order"
        )
        raise UserError(f"--topology={text}: {generation} has {expected}")
    if chips > TPUS[generation]["chips"]:
        raise UserError(
            f"--topology={text} has {chips} chips; the largest slice of {generation} "
            f"has {TPUS[generation]['chips']}"
        )
    # Hosts have four chips, but 2x4 is one of eight, and 1x1 a share of one.
    return Slice(generation, topology, chips, 1 if chips <= 8 and known else chips // 4)


def _is_box(sides: Sequence[int]) -> bool:
    """Whether v4, v5p and tpu7x have such a slice."""
    if sides in ([2, 2, 1], [2, 2, 2], [2, 2, 4], [2, 4, 4]):
        return True
    multiples = all(side % 4 == 0 for side in sides)
    return len(sides) == 3 and multiples and list(sides) == sorted(sides)


def compile_only_devices(found: Slice, slices: int) -> list[jax.Device]:
    """Devices to compile for, which need no TPU but its compiler, libtpu.

    Raises:
      UserError: libtpu is missing or does not know the topology.
    """
    # Without these it looks for the machine's own TPUs and complains at length.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", found.accelerator_type)
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_LOG_DIR", "disabled")
    # Its lock is for chips; several processes may compile.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    per_host = {1: [1, 1, 1], 4: [2, 2, 1], 8: [2, 4, 1]}[found.chips_per_host]
    try:
        return topologies.get_topology_desc(
            f"{found.generation}:{found.topology}",
            platform="tpu",
            num_slices=slices,
            chips_per_host_bounds=per_host,
            **found.kind["compiler"],
        ).devices
    except Exception as error:  # jaxlib has no type of its own for these
        reason = " ".join(str(error).split())
        if "not installed" in reason:
            raise UserError(
                "planning for a TPU needs its compiler, libtpu, but no TPU: install "
                "the version that fits your jax with pip install 'jax[tpu]'"
            ) from error
        raise UserError(
            f"libtpu cannot compile for {found.generation}:{found.topology}: "
            f"{reason[:300]}"
        ) from error
