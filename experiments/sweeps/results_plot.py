"""Plots of claims: scores of the arms, those of one seed joined by a line."""

import hashlib
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from experiments.sweeps import results_page
from experiments.sweeps.claims import Claim, Data

_WIDTH = 10  # inches of panels side by side, of an inch for each arm

Panels = list[tuple[str, str, dict[str, dict[int, float]]]]
"""Title, label of the axis, and the scores by arm and seed, of each panel."""


def panels(claim: Claim, data: Sequence[Data]) -> Panels:
    """What is drawn: a panel for each data set and score that has values."""
    found = [
        (
            x.name,
            results_page.axis_title(column, unit),
            results_page.arms(pairs, list(claim.arms)),
        )
        for x in data
        for (column, unit), pairs in results_page.columns(x.pairs).items()
    ]
    return [panel for panel in found if _known(panel[2])]


def _known(scores: dict[str, dict[int, float]]) -> list[float]:
    return [x for arm in scores.values() for x in arm.values() if not math.isnan(x)]


def digest(drawn: Panels) -> str:
    """A hash of what is drawn, which the plot carries: whether it is current."""
    return hashlib.sha256(json.dumps(drawn).encode()).hexdigest()[:16]


def digest_of(path: Path) -> str:
    """The hash that a plot carries; "" if there is none, or no plot."""
    try:
        with Image.open(path) as image:
            return str(image.info.get("Description", ""))
    except (FileNotFoundError, UnidentifiedImageError):  # drawn again
        return ""


def plot(drawn: Panels) -> bytes:
    """PNG; a bar is the mean of an arm over its seeds."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    arms = max(len(scores) for _, _, scores in drawn)
    wide = min(len(drawn), max(1, int(_WIDTH / arms)))
    tall = -(-len(drawn) // wide)
    size = 1.2 + max(wide * arms, 4), 0.4 + 3 * tall
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(tall, wide, squeeze=False)
    for axes in grid.flat[len(drawn) :]:
        axes.remove()
    for axes, (title, label, scores) in zip(grid.flat, drawn):
        seeds = sorted({seed for arm in scores.values() for seed in arm})
        for i, seed in enumerate(seeds):
            values = [arm.get(seed, math.nan) for arm in scores.values()]
            axes.plot(
                range(len(scores)),
                values,
                color=colormaps["tab10"](i % 10),
                marker="o",
                markersize=5,
                linewidth=1,
                alpha=0.8,
                label=f"seed {seed}",
            )
        for i, (name, arm) in enumerate(scores.items()):
            if known := _known({name: arm}):
                axes.hlines(np.mean(known), i - 0.25, i + 0.25, color="black", lw=2)
        axes.set_xticks(range(len(scores)), list(scores))
        axes.set_xlim(-0.5, len(scores) - 0.5)
        axes.set_title(title)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3, axis="y")
    shown: dict = {}  # a panel may have fewer seeds
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(shown.values()), list(shown), loc="outside right upper", fontsize=8
    )
    buffer = io.BytesIO()
    about = {"Description": digest(drawn), "Software": None}
    figure.savefig(buffer, format="png", dpi=100, metadata=about)
    return buffer.getvalue()
