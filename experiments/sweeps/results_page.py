"""docs/results.md: claims of papers beside what was measured, as Markdown."""

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from experiments.sweeps import costs, paired
from experiments.sweeps.claims import Claim, Data, Pair
from segjax.errors import UserError
from segjax.tables import markdown_table

HEAD = """\
# Results

Claims of papers about the order of design choices, tested here on other data and with
smaller networks. `make results` writes this page from [results/](../results), which has
the reports of the sweeps with the scores of every seed, and a claim.toml for each row
([ablate.md](ablate.md#claims-of-papers)).

A claim is a pair of arms, A < B. Their scores at the last step, on the validation
split, are compared seed by seed, because runs of one seed share the order of their
data. The 95 % interval of the mean difference B - A is that of a paired t-test. If it
lies above zero, the claim is **reproduced**; if it lies below zero, or within a margin
where one is given, it is **not reproduced**; otherwise it is undecided. Every pair is
judged alone: of twenty pairs without any effect, about one would be decided by chance.
± is the sample standard deviation over seeds.

Scenes are drawn so that each class asks for one ability: [scenes.md](scenes.md) says
what they cannot tell. [Cost of the full size](#cost-of-the-full-size) has the hours
that the same comparisons would take with the published networks.
"""

COSTS = f"""\
## Cost of the full size

The same comparisons with the published widths, counted from the configs and not run:
{costs.SEEDS} seeds, 3 x the forward pass (2 x MACs) for every image of every step.
The hours are those of training at {costs.SHARE:.0%} of the peak in bfloat16 of an
H100 (989 TFLOP/s) and of a v5e slice of 4 chips (788 TFLOP/s). This share is an
assumption: at 8 images per chip, `experiments.plan` estimates 43, 37 and 27 % for
PSPNet-50, FCN-8s and U-Net on v5e, and nothing was measured on an H100. Evaluation and
starts are not included.
`python -m experiments.results --costs` counts again.
"""


def page(
    found: Sequence[tuple[Claim, Sequence[Data]]],
    counted: Mapping[str, costs.Cost] | None = None,
) -> str:
    """The page.

    Args:
      found: claims in the order of the table, each with its data.
      counted: costs of the full size by config file.

    Raises:
      UserError: a claim names a config file that was not counted.
    """
    titles = ("row", "claim", "published", "here", "verdict", "cost", "command")
    rows = [titles] + [_table_row(claim, data) for claim, data in found]
    parts = [HEAD, markdown_table(rows), ""]
    for claim, data in found:
        parts += section(claim, data)
    full = [claim for claim, _ in found if claim.full]
    parts += cost_section(full, counted or {}) if full else []
    return "\n".join(parts).rstrip() + "\n"


def image_name(claim: Claim) -> str:
    """Path of the plot of a claim, from the page."""
    return f"images/results/{claim.name}.png"


def arms(pairs: Sequence[Pair], order: Sequence[str]) -> dict[str, dict[int, float]]:
    """Scores by seed of the arms of pairs of one column, in the order given."""
    scores = {pair.low: pair.lower for pair in pairs}
    scores |= {pair.high: pair.higher for pair in pairs}
    return {name: scores[name] for name in order if name in scores}


def columns(pairs: Sequence[Pair]) -> dict[tuple[str, str], list[Pair]]:
    """The pairs by their column and unit."""
    found: dict[tuple[str, str], list[Pair]] = {}
    for pair in pairs:
        found.setdefault((pair.column, pair.unit), []).append(pair)
    return found


def axis_title(column: str, unit: str) -> str:
    """ "mIoU, %"."""
    return f"{column}, {unit}" if unit else column


# The table


def _table_row(claim: Claim, data: Sequence[Data]) -> tuple[str, ...]:
    command = f"[{claim.name}](#{anchor(claim.title)})" if claim.commands else ""
    cells = (
        f"[{claim.title}](#{anchor(claim.title)})",
        claim.claim,
        f"{claim.published} ({claim.source})",
        "<br>".join(_scores_line(claim, x) for x in data if x.pairs) or "-",
        "<br>".join(_verdict_line(x) for x in data) or paired.NOT_RUN,
        claim.cost or "-",
        command or "-",
    )
    return tuple(" ".join(cell.replace("|", "\\|").split()) for cell in cells)


def anchor(title: str) -> str:
    """GitHub's name of a heading: "FCN: 32s < 16s" -> "fcn-32s--16s"."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def _scores_line(claim: Claim, data: Data) -> str:
    """ "scenes, mIoU, %: 32s 60.1 ± 0.3, 16s 62.0 ± 0.1"."""
    lines = []
    for (column, unit), pairs in columns(data.pairs).items():
        scores = arms(pairs, list(claim.arms))
        cells = [f"{name} {_mean_text(scores[name], unit)}" for name in scores]
        lines.append(f"{data.name}, {axis_title(column, unit)}: {', '.join(cells)}")
    return "<br>".join(lines)


def _verdict_line(data: Data) -> str:
    if not data.pairs:
        return f"{data.name}: {paired.NOT_RUN}"
    several = len(columns(data.pairs)) > 1
    texts = [
        f"{pair.low} < {pair.high}"
        + f" ({pair.column})" * several
        + f" {_emphasized(pair.verdict)}"
        for pair in data.pairs
    ]
    return f"{data.name}: {', '.join(texts)}"


def _emphasized(verdict: str) -> str:
    decided = verdict in (paired.REPRODUCED, paired.NOT_REPRODUCED)
    return f"**{verdict}**" if decided else verdict


# Sections


def section(claim: Claim, data: Sequence[Data]) -> list[str]:
    """A heading, what it says, a table of the pairs, a plot and the commands."""
    lines = [f"## {claim.title}", ""]
    lines += [f"Claim: {claim.claim}. Published: {claim.published} ({claim.source})."]
    lines += [""]
    lines += [claim.says.strip(), ""] if claim.says.strip() else []
    if claim.cause.strip():
        lines += [f"Likeliest cause: {claim.cause.strip()}", ""]
    measured = [x for x in data if x.pairs]
    if measured:
        lines += [markdown_table(pair_rows(measured)), ""]
        lines += [f"![Scores by seed]({image_name(claim)})", ""]
        links = [
            f"[{x.name}](../results/{claim.name}/{x.name}/report.md)" for x in measured
        ]
        lines += [f"Reports: {', '.join(links)}.", ""]
    notes = [f"* {x.name}: {note}" for x in data for note in x.notes]
    if notes:
        lines += ["Runs that are not finished:", "", *notes, ""]
    if claim.margin:
        lines += [f"Margin within which there is no effect: {claim.margin:g}.", ""]
    if claim.commands:
        lines += ["```", *claim.commands, "```", ""]
    return lines


def cost_section(
    claims: Sequence[Claim], counted: Mapping[str, costs.Cost]
) -> list[str]:
    """What the full-size forms of the claims cost, as a heading and a table.

    Raises:
      UserError: as ``page``.
    """
    titles = ("row", "config", "networks", "runs", "steps", "training FLOPs")
    rows = [(*titles, *(f"hours, {name}" for name in costs.PEAKS))]
    for claim in claims:
        for file in claim.full:
            if file not in counted:
                raise UserError(
                    f"{claim.name}/claim.toml: full: the costs of {file!r} are not "
                    "counted; expected them in costs.json, from experiments.results "
                    "--costs"
                )
            cost = counted[file]
            cells = [f"[{claim.title}](#{anchor(claim.title)})", f"`{file}`"]
            cells += [", ".join(cost.networks), str(costs.SEEDS * cost.runs)]
            cells += [f"{costs.SEEDS * cost.steps:,}"]
            cells += [f"{costs.SEEDS * cost.flops:.1e}"]
            cells += [f"{costs.hours(cost, x):.2f}" for x in costs.PEAKS.values()]
            rows.append(tuple(cells))
    return [COSTS, markdown_table(rows), ""]


def pair_rows(data: Sequence[Data]) -> list[tuple[str, ...]]:
    """A row for every pair and data set; scores of the seeds that both arms know."""
    titles = "data, score, A < B, A, B, B - A, 95 % interval, seeds, verdict"
    rows = [tuple(titles.split(", "))]
    for x in data:
        for pair in x.pairs:
            found = pair.difference
            lower, higher = (
                {seed: scores[seed] for seed in found.seeds}
                for scores in (pair.lower, pair.higher)
            )
            interval = f"{_signed(found.low, pair)} to {_signed(found.high, pair)}"
            rows.append(
                (
                    x.name,
                    axis_title(pair.column, pair.unit),
                    f"{pair.low} < {pair.high}",
                    _mean_text(lower, pair.unit),
                    _mean_text(higher, pair.unit),
                    _signed(found.mean, pair),
                    "-" if math.isnan(found.low) else interval,
                    str(len(found.seeds)),
                    _emphasized(pair.verdict),
                )
            )
    return rows


def _signed(value: float, pair: Pair) -> str:
    digits = _digits([*pair.lower.values(), *pair.higher.values()], pair.unit) + 1
    return "-" if math.isnan(value) else f"{value:+.{digits}f}"


def _mean_text(scores: dict[int, float], unit: str) -> str:
    """ "81.7 ± 0.4"; one seed has no deviation."""
    known = np.array([x for x in scores.values() if not math.isnan(x)])
    if not len(known):
        return "-"
    digits = _digits(list(known), unit)
    text = f"{known.mean():.{digits}f}"
    return f"{text} ± {known.std(ddof=1):.{digits}f}" if len(known) > 1 else text


def _digits(values: Sequence[float], unit: str) -> int:
    """Behind the point: of percentages and counts one, of shares three."""
    largest = max((abs(x) for x in values if not math.isnan(x)), default=0)
    return 1 if unit == "%" or largest > 10 else 3
