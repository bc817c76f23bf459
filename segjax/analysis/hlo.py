"""Costs read from optimized HLO: estimated cycles by layer, and collectives.

XLA's compiler for TPUs writes an estimate of the cycles beside every operation that it
schedules: the longer one of its work and its traffic with the memory.  Collectives are
not counted, and an operation without an estimate counts as 0.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)
# Operations that move nothing, or whose parts are counted themselves.
_FREE = (
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"),
    *("conditional", "call", "after-all", "partition-id", "replica-id", "send"),
    *("recv", "opt-barrier"),
)
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2} | {
    "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8
}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_INSTRUCTION = re.compile(r"^  (?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][a-z\-]*)\(")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
# Scopes of loops and of code that is lowered differently for every platform.
_SCOPES = re.compile(r"while|body|closed_call|cond|branch_\d+_fun")


class Cost(NamedTuple):
    """Estimated cycles of the operations of one layer, on one device."""

    layer: str  # its path in the model, such as conv5_3
    forward: int
    backward: int

    @property
    def cycles(self) -> int:
        return self.forward + self.backward


def _computations(text: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the entry, and the instructions of each computation."""
    entry = ""
    computations: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            lines = computations.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.startswith("  "):
            lines.append(line)
    return entry, computations


def _executed(
    entry: str, computations: dict[str, list[str]]
) -> Iterator[tuple[int, str]]:
    """(times, instruction) of the entry and of its loops; none inside fusions."""
    pending = [(1, entry)]
    while pending:
        times, name = pending.pop()
        for line in computations.get(name, ()):
            yield times, line
            if loop := _LOOP.search(line):
                condition = "\n".join(computations.get(loop[1], ()))
                limits = re.findall(r"s32\[\][^=]* constant\((\d+)\)", condition)
                pending.append((times * max(map(int, limits), default=1), loop[2]))


def _inside(line: str, computations: dict[str, list[str]]) -> Iterator[str]:
    """The instructions that a fusion consists of, those of fusions in it included."""
    called = re.search(r" calls=%?([\w.\-]+)", line)
    for inner in computations.get(called[1], ()) if called else ():
        yield from _inside(inner, computations)
        yield inner


def _layer(line: str, computations: dict[str, list[str]]) -> tuple[str, bool]:
    """``layer_of`` an instruction; of a fusion, of the convolution inside.

    Without one, the last layer inside a fusion that is named after nothing but a relu
    or another operation without a layer.
    """
    inner = list(_inside(line, computations))
    products = [x for x in inner if " convolution(" in x or " dot(" in x]
    candidates = [layer_of(_op_name(x)) for x in products or [line, *reversed(inner)]]
    named = [layer for layer in candidates if not layer[0].startswith("(")]
    return (named or candidates)[0]


def _op_name(line: str) -> str:
    name = re.search(r'op_name="([^"]*)"', line)
    return name[1] if name else ""


def layer_of(op_name: str) -> tuple[str, bool]:
    """The layer that an operation belongs to, and whether to its backward pass.

    jit(step)/transpose(jvp(PSPNet))/conv4_1/conv/mul -> conv4_1/conv, True.  In
    parentheses: what has no layer, such as (relu), (concatenate), (loss), (optimizer).
    """
    if not op_name:
        return "(unnamed)", False
    *parts, last = op_name.split("/")
    for i, part in enumerate(parts):
        # Under jvp(..), the model's scope is the name of its class.
        match = re.fullmatch(r"(transpose\()?jvp\((\w*)\)\)?", part)
        if not match:
            continue
        # Grouped batch normalization is vmapped: vmap(conv1_bn).
        inner_parts = [re.sub(r"^vmap\((.+)\)$", r"\1", x) for x in parts[i + 1 :]]
        path = [
            name
            for name in inner_parts
            if re.fullmatch(r"[\w.\-]+", name) and not _SCOPES.fullmatch(name)
        ]
        inner = re.fullmatch(r"jit\((\w+)\)", parts[-1])
        unnamed = f"({inner[1] if inner else last})" if match[2] else "(loss)"
        return "/".join(path) or unnamed, bool(match[1])
    return "(optimizer)", False


def costs(text: str) -> list[Cost]:
    """Estimated cycles by layer, the costliest first; empty if there are no estimates.

    A fusion of several operations counts for one layer, that of its convolution if any.
    """
    sums: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    entry, computations = _computations(text)
    for times, line in _executed(entry, computations):
        if cycles := re.search(r'"estimated_cycles":"(\d+)"', line):
            layer, backward = _layer(line, computations)
            sums[layer][backward] += times * int(cycles[1])
    by_layer = [Cost(layer, *pair) for layer, pair in sums.items()]
    return sorted(by_layer, key=lambda cost: -cost.cycles)


def without_estimate(text: str) -> dict[str, int]:
    """Operations that run but have no estimate, by kind: they count as 0 cycles.

    Not those that do nothing, collectives, and the two ends of asynchronous ones.
    """
    found: collections.Counter[str] = collections.Counter()
    for times, line in _executed(*_computations(text)):
        match = _INSTRUCTION.match(line)
        if not match or "estimated_cycles" in line:
            continue
        kind = match[2]
        ends = kind.endswith(("-start", "-done", "-update"))
        if not (kind in _FREE or kind in COLLECTIVES or ends):
            found[kind] += times
    return dict(found.most_common())


def collectives(text: str) -> dict[str, tuple[int, int]]:
    """For each kind of collective that runs: how often, and the bytes of its results.

    Both are per device and run of the executable; how often the bytes pass a link
    depends on the algorithm.  What a device sends to other TPU slices, through its
    host, is under "between slices".
    """
    totals: dict[str, tuple[int, int]] = {}
    for times, line in _executed(*_computations(text)):
        match = _INSTRUCTION.match(line)
        if not match:
            continue
        kind = match[2].removesuffix("-start")
        if kind == "send" and "megascale" in line:
            kind = "between slices"
        elif kind not in COLLECTIVES:
            continue
        arrays = [
            _BYTES.get(dtype, 4) * math.prod(map(int, filter(None, sides.split(","))))
            for dtype, sides in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", match[1]))
        ]
        if match[2].endswith("-start") and kind != "all-reduce":
            arrays = arrays[1:2]  # (operand, result, ...)
        elif match[2] == "send":
            arrays = arrays[:1]  # (what is sent, its number, a token)
        count, size = totals.get(kind, (0, 0))
        totals[kind] = count + times, size + times * sum(arrays)
    return totals
