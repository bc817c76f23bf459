"""Plans as text, and what pads badly."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segjax import tables
from segjax.analysis.summary import Layer

LANES, SUBLANES = 128, 8  # of the TPU's vector registers, and of its matrix units


_PACKED = {
    None: "",
    False: "; --config.model.packed=True fills them in the layers of 64 channels",
    True: "; without regard to --config.model.packed, which fills some",
}


def padding_warnings(
    layers: Sequence[Layer], per_chip: int, *, packed: bool | None = None
) -> list[str]:
    """What pads badly, if channels lie on the lanes and the batch on the sublanes.

    The compiler may lay arrays out differently; a rule of thumb.

    Args:
      layers: of the plain form.
      per_chip: images.
      packed: the field of the model, None if it has none.
    """
    warnings = []
    if per_chip % SUBLANES:
        padded = math.ceil(per_chip / SUBLANES) * SUBLANES
        warnings.append(
            f"{per_chip} per chip is not a multiple of {SUBLANES} sublanes: where the "
            f"batch lies on them, {padded / per_chip:.3g} x the memory and work"
        )

    def factor(layer: Layer) -> float:
        sizes = layer.kernel[-2:]
        return math.prod(math.ceil(c / LANES) * LANES / c for c in sizes)

    counted = [layer for layer in layers if layer.macs and len(layer.kernel) == 4]
    total = sum(layer.macs for layer in counted)
    after = sum(layer.macs * factor(layer) for layer in counted)
    bad = [x for x in counted if factor(x) >= 2 and x.macs * factor(x) > after / 100]
    bad.sort(key=lambda layer: -layer.macs * factor(layer))
    if bad:
        names = ", ".join(
            f"{x.name} ({x.kernel[-2]} to {x.kernel[-1]})" for x in bad[:6]
        )
        more = f" and {len(bad) - 6} more" if len(bad) > 6 else ""
        warnings.append(
            f"channels fill {LANES} lanes badly in {names}{more}: all layers together "
            f"do {after / total:.2f} x their multiply-adds" + _PACKED[packed]
        )
    return warnings


def lines(report: Mapping[str, Any]) -> list[str]:
    """A report as text."""
    rows = [
        (
            "step",
            f"{report['network']}, {report['image']}, batch {report['batch']} on "
            f"{report['chips']} chips ({report['target']}): {report['batch_per_chip']} "
            "per chip",
        )
    ]
    flops = report["model_flops"]
    state = f"{report['parameters']:,} parameters, state {report['state_gib']:.3f} GiB"
    if "fits" not in report:
        rows += [
            ("analytic only", "no compiler for these devices on this machine"),
            (
                "memory",
                f"{state}; activations about {report['activations_gib']:.2f} GiB",
            ),
            ("FLOPs", f"{flops / 1e9:,.1f} G (3 x forward)"),
            ("all-reduce", f"{4 * report['parameters'] / 1e6:,.1f} MB of gradients"),
        ]
        return _aligned(rows, report)
    verdict = "yes" if report["fits"] else "NO"
    limit = report["available_gib"]
    of = f" of {limit:.2f}" if limit else ""
    least = "" if report["fits"] else "at least "
    needed = f"{verdict}: {least}{report['needed_gib']:.2f}{of} GiB per chip"
    rows.append(("fits", needed))
    if report["fits"]:
        parts = report["memory_gib"].items()
        xla = report["xla_flops"]
        once = ", loops once" if report["loops"] else ""
        rows += [
            ("memory", ", ".join(f"{key} {size:.3f}" for key, size in parts) + " GiB"),
            ("state", state),
            (
                "FLOPs",
                f"{flops / 1e9:,.1f} G (3 x forward); XLA {xla / 1e9:,.1f} G{once}",
            ),
        ]
        for kind, (count, size) in report["collectives"].items():
            rows.append((kind, f"{count} times, {size / 1e6:,.1f} MB"))
    if "cycles" in report:
        speed = report["batch"] / report["seconds"]
        rows += [
            (
                "estimate",
                f"{report['cycles']:,} cycles, {report['seconds'] * 1e3:,.1f} ms, "
                f"{speed:,.0f} images/s: {report['utilisation']:.1%} of the peak",
            ),
            (
                "bounds",
                f"peak FLOPs {report['flops_seconds'] * 1e3:,.1f} ms, memory traffic "
                f"of all operations{once} {report['memory_seconds'] * 1e3:,.1f} ms",
            ),
        ]
        rows += [
            ("collectives", f"about {report['network_seconds'] * 1e3:,.1f} ms"),
            (
                "step",
                " to ".join(
                    f"{report[f'seconds_{how}_overlap'] * 1e3:,.1f} ms "
                    f"({report[f'images_{how}_overlap']:,.0f} images/s)"
                    for how in ("with", "without")
                )
                + ": collectives all behind the work, or after it",
            ),
        ]
        if missing := report["without_estimate"]:
            names = ", ".join(f"{n} {kind}" for kind, n in list(missing.items())[:5])
            rows.append(("no estimate of", f"{names}: counted as 0"))
    rows.append(("compiled in", f"{report['compile_seconds']:.0f} s"))
    if "largest_batch" in report:
        low, high = report["largest_batch"], report["too_large_batch"]
        known = f"; {high} does not fit" if high else "; no larger one was tried"
        per_chip = f"{low // report['chips']} per chip"
        rows.append(("largest batch", f"{low}, {per_chip}{known}" if low else "none"))
    return _aligned(rows, report)


def _aligned(rows: list[tuple[str, str]], report: Mapping[str, Any]) -> list[str]:
    rows += [("warning", text) for text in report["warnings"]]
    out = tables.text_table(rows, titles=False).splitlines()
    if "costliest" in report:
        table = [("costliest by layer", "forward", "backward")]
        table += [(x, f"{a:.1%}", f"{b:.1%}") for x, a, b in report["costliest"]]
        out += ["", tables.text_table(table)]
    return out


def sweep_table(reports: Mapping[str, Mapping]) -> str:
    """One row per row of a sweep."""
    titles = "row fits GiB FLOPs estimate peak compiled"
    rows: tables.Rows = [tuple(titles.split())]
    for name, report in reports.items():
        if "error" in report:
            rows.append((name, "error", *["-"] * 5))
            continue
        cells = ["-"] * 5
        if "fits" in report:
            cells[0] = "yes" if report["fits"] else "NO"
            cells[1] = f"{report['needed_gib']:.2f}"
            cells[4] = f"{report['compile_seconds']:.0f} s"
        if "seconds" in report:
            cells[2] = f"{report['seconds'] * 1e3:,.1f} ms"
            cells[3] = f"{report['utilisation']:.1%}"
        flops = f"{report['model_flops'] / 1e9:,.1f} G"
        rows.append((name, *cells[:2], flops, *cells[2:]))
    return tables.text_table(rows)
