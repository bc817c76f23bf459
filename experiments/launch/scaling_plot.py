"""Weak scaling as a table and as a plot."""

from collections.abc import Sequence
from pathlib import Path

from segjax import tables


def table(rows: Sequence[dict]) -> str:
    """One row per topology; see ``collectives.weak_scaling``."""
    titles = (
        "slices",
        "chips",
        "collectives",
        "images/s, without overlap",
        "with",
        "of ideal",
    )
    out: tables.Rows = [titles]
    for row in rows:
        slices = f"{row['slices']} x " if row["slices"] > 1 else ""
        out.append(
            (
                f"{slices}{row['topology']}",
                f"{row['chips']}",
                f"{row['network_seconds'] * 1e3:.1f} ms",
                f"{row['images_without_overlap']:,.0f}",
                f"{row['images_with_overlap']:,.0f}",
                f"{row['efficiency']:.0%}",
            )
        )
    return tables.text_table(out)


def plot(rows: Sequence[dict], title: str, path: Path) -> None:
    """Images/s per chip against chips, with and without overlap."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    one = [row for row in rows if row["slices"] == 1]
    several = [row for row in rows if row["slices"] > 1]
    chips = [row["chips"] for row in one]
    for key, label, color in (
        ("images_with_overlap", "collectives behind the work", "C0"),
        ("images_without_overlap", "collectives after the work", "C3"),
    ):
        axes.plot(
            chips,
            [row[key] / row["chips"] for row in one],
            "o-",
            color=color,
            label=label,
        )
        x = [row["chips"] for row in several]
        y = [row[key] / row["chips"] for row in several]
        axes.plot(x, y, "s", color=color, mfc="white")
    for row in several:
        axes.annotate(
            f"{row['slices']} x {row['topology']}",
            (row["chips"], row["images_without_overlap"] / row["chips"]),
            xytext=(-8, -12),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({row["chips"] for row in rows}))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.minorticks_off()
    axes.set_ylim(
        0, 1.1 * max(row["images_with_overlap"] / row["chips"] for row in rows)
    )
    axes.set_xlabel("chips (squares: several slices)")
    axes.set_ylabel("images/s per chip, estimated")
    axes.set_title(title, fontsize=10)
    axes.legend()
    figure.savefig(path, dpi=120)
