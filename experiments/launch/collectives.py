"""How long collectives take: estimates from published bandwidths, nothing measured.

Sources: the bandwidth of a link, which axes are rings, and 1 us per hop: "How to Scale
Your Model" (jax-ml.github.io/scaling-book, chapters on TPUs and on sharding); tpu7x,
and the data center's network: docs.cloud.google.com/tpu/docs (v5e 6.4 Tbit/s and v6e
25.6 Tbit/s per pod of 256 chips, v5p 50 and tpu7x 100 Gbit/s per chip; v4: 25 GB/s per
host, the number of the book for any).  A round trip between slices is not published;
``ROUND_TRIP`` is an assumption.
"""

from collections.abc import Mapping
from typing import Any

from experiments.launch import tpus

# Bytes/s in one direction: of a link between chips; of a chip to other slices.
BANDWIDTH = {
    "v4": (45e9, 6.25e9),
    "v5e": (45e9, 3.125e9),
    "v5p": (90e9, 6.25e9),
    "v6e": (90e9, 12.5e9),
    "tpu7x": (100e9, 12.5e9),
}
HOP = 1e-6  # s
ROUND_TRIP = 50e-6  # s, between slices; assumed
_SCALING = {True: ("2x2", "4x4", "8x8", "16x16"), False: ("2x2x1", "2x2x4", "4x4x4")}


def _axes(found: tpus.Slice) -> list[tuple[int, bool]]:
    """(side, whether it is a ring) of every axis of more than one chip."""
    sides = [int(side) for side in found.topology.split("x")]
    flat = bool(found.kind["topologies"])
    rings = not flat and all(side % 4 == 0 for side in sides)
    return [(side, side == 16 if flat else rings) for side in sides if side > 1]


def seconds(
    counted: Mapping[str, tuple[int, int]], found: tpus.Slice, slices: int = 1
) -> float:
    """Time of the collectives of a step if nothing else runs meanwhile.

    Args:
      counted: of ``segjax.analysis.hlo.collectives``: for each kind, how many, and
        bytes of their results per chip.
      found: each slice.
      slices: if ``counted`` has no "between slices" although there are several, each
        all-reduce is taken to be summed within the slices first, so that a chip sends
        its share of the bytes to the others.
    """
    link, outside = BANDWIDTH[found.generation]
    axes = _axes(found)
    chips = found.chips
    # Both directions of a ring are of use; the ends of a row have one neighbour.
    width = link * sum(2 if ring else 1 for _, ring in axes)
    hops = sum(side // 2 if ring else side - 1 for side, ring in axes)
    total = 0.0
    for kind, (count, size) in counted.items():
        if kind == "between slices":
            total += size / outside + count * ROUND_TRIP
            continue
        passes = 2 if kind == "all-reduce" else 1  # reduce-scatter and all-gather
        if width:
            share = passes * size * (chips - 1) / chips
            total += share / width + count * passes * hops * HOP
        if slices > 1 and kind == "all-reduce" and "between slices" not in counted:
            sent = 2 * size / chips * (slices - 1) / slices
            total += sent / outside + count * ROUND_TRIP
    return total


def speeds(compute: float, network: float, images: int) -> dict[str, float]:
    """Step times in s and images/s: collectives after the work, and all behind it."""
    return {
        "network_seconds": network,
        "seconds_without_overlap": compute + network,
        "seconds_with_overlap": max(compute, network),
        "images_without_overlap": images / (compute + network),
        "images_with_overlap": images / max(compute, network),
    }


def weak_scaling(report: Mapping[str, Any], generation: str) -> list[dict]:
    """Speeds from 4 to 256 chips and 4 slices at the batch per chip of a plan.

    The program of a chip is the same at any number of chips, so one plan is enough; the
    collectives are timed anew for every topology.

    Args:
      report: a plan of one slice of several chips, with "seconds" and "collectives".
      generation: a key of ``tpus.TPUS``.
    """
    known = _SCALING[bool(tpus.TPUS[generation]["topologies"])]
    cases = [(name, 1) for name in known]
    if len(known) == 3:
        cases.append(("4x8x8", 1))
    cases += [(known[2], 2), (known[2], 4)]
    rows = []
    for topology, slices in cases:
        found = tpus.parse(f"{generation}:{topology}")
        network = seconds(report["collectives"], found, slices)
        images = report["batch_per_chip"] * found.devices * slices
        row = {"topology": topology, "slices": slices, "chips": found.chips * slices}
        rows.append(row | speeds(report["seconds"], network, images))
        rows[-1]["efficiency"] = report["seconds"] / (report["seconds"] + network)
    return rows
