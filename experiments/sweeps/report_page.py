"""The report of a sweep as one HTML page with everything in it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.shared import html, tables
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps.report_rows import Numbers, Result
from segjax import viz
from segjax import workdir as workdir_lib

_PICTURES = 2  # per row of the sweep


def page(
    facts: str,
    rows: tables.Rows,
    *,
    problems: Sequence[str],
    commands: Mapping[str, str],
    results: Sequence[Result],
    scores: int,
    plots: bytes,
) -> str:
    """The page.

    Args:
      facts: one line over the table.
      rows: of the table, the titles first.
      problems: one line per run that is not finished.
      commands: by name of the row.
      results: of the rows.
      scores: number of columns of scores, from the third one on.
      plots: PNG, or b"".
    """
    parts = [html.paragraph(facts, "lead"), _table(rows, results, scores)]
    if problems:
        parts += [html.heading("Runs that are not finished"), html.items(problems)]
    if plots:
        parts += [html.heading("Scores over costs"), html.image(plots)]
    finished = [result for result in results if result.finished]
    if finished:
        parts.append(html.heading("Validation: image, truth, prediction"))
        legend = ""
        for result in finished:
            info = workdir_lib.read_dataset(result.finished[0].folder)
            before, legend = legend, html.legend(info.classes, info.palette)
            parts += ([legend] if legend != before else []) + _pictures(result)
    parts.append(html.heading("Commands of the first seeds"))
    for name, command in commands.items():
        parts += [html.paragraph(name), html.commands(command)]
    if versions := _versions(results):
        parts += [html.heading("Versions"), html.paragraph(versions, "lead")]
    return html.page(facts.partition(":")[0], parts)


def plot(results: Sequence[Result], scores: Sequence[Any]) -> bytes:
    """PNG: scores over FLOPs, over the rows seen and over the effective field.

    Args:
      scores: of report.Score.

    Returns:
      b"" if there is nothing to plot.
    """
    numbers = [result.numbers for result in results]
    costs = {
        "GFLOPs per image": [n.flops / 1e9 for n in numbers],
        _seen_title(numbers): [n.seen for n in numbers],
        "effective receptive field, px": [result.erf for result in results],
    }
    known = {
        title: values
        for title, values in costs.items()
        if not np.isnan(np.array(values, np.float64)).all()
    }
    if not known or not any(result.finished for result in results):
        return b""
    return viz.tradeoff_figure(
        [sweep_rows.title(result.row) for result in results],
        known,
        {
            f"{score.title}, %": [100 * result.scores(score.of) for result in results]
            for score in scores
        },
    )


def _seen_title(numbers: Sequence[Numbers]) -> str:
    heights = {n.image[0] for n in numbers}
    return "rows seen" + f" of {max(heights)}" * (len(heights) == 1) + ", in theory"


def _table(rows: tables.Rows, results: Sequence[Result], scores: int) -> html.Markup:
    columns = range(2, 2 + scores)
    means = np.array(
        [
            [float(row[i].split()[0]) if row[i] != "-" else -1 for i in columns]
            for row in rows[1:]
        ]
    )
    highest = means.max(axis=0)
    best = [(i, j + 2) for i, j in np.argwhere((means == highest) & (means >= 0))]
    incomplete = [
        i for i, result in enumerate(results) if len(result.finished) < len(result.runs)
    ]
    numbers = [column >= 2 for column in range(len(rows[0]))]
    return html.table(rows, numbers=numbers, best=best, bad=incomplete)


def _pictures(result: Result) -> list[html.Markup]:
    """Predictions of the first finished run at its last step."""
    run = result.finished[0]
    paths = sorted(run.folder.glob(f"pictures/{run.state.step:08d}_*.png"))[:_PICTURES]
    title = f"{sweep_rows.title(result.row)}, seed {run.seed}"
    images = [html.image_file(path, zoom=1) for path in paths]
    return [html.heading(title, 3), html.pictures(images)]


def _versions(results: Sequence[Result]) -> str:
    """Packages, devices and commit of the first run that has started."""
    for run in (run for result in results for run in result.runs):
        if values := workdir_lib.read_versions(run.folder):
            values.pop("command", None)
            return ", ".join(f"{key} {value}" for key, value in values.items())
    return ""
