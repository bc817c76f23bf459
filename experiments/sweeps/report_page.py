"""The report of a sweep as one HTML page with everything in it."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from experiments.shared import tables
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps.report_rows import Result
from segjax import viz
from segjax import workdir as workdir_lib

_PICTURES = 2  # per row

_STYLE = """
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em auto; max-width: 90em;
       padding: 0 1em; color: #222; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35em .5em; text-align: right; white-space: nowrap;
         border-bottom: 1px solid #ddd; }
th { background: #f3f3f3; }
th:first-child, td:first-child, td:nth-child(2) { text-align: left; }
tr.bad td { background: #fff0e8; }
td.best { font-weight: bold; }
code, pre { font: 12px/1.5 ui-monospace, monospace; }
pre { background: #f6f6f6; padding: .7em; overflow-x: auto; }
img { max-width: 100%; }
.pictures img { max-width: 48%; margin-right: 1%; image-rendering: pixelated; }
"""


def page(
    facts: str,
    rows: tables.Rows,
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
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(facts.partition(':')[0])}</title>",
        f"<style>{_STYLE}</style>",
        f"<h1>{html.escape(facts.partition(':')[0])}</h1><p>{html.escape(facts)}</p>",
        _table(rows, results, scores),
    ]
    if problems:
        items = "".join(f"<li>{html.escape(problem)}</li>" for problem in problems)
        parts.append(f"<h2>Runs that are not finished</h2><ul>{items}</ul>")
    if plots:
        parts += ["<h2>Scores over costs</h2>", _image(plots)]
    if any(result.finished for result in results):
        parts += ["<h2>Validation: image, truth, prediction</h2>", _legend(results)]
        parts += [_pictures(result) for result in results]
    parts.append("<h2>Commands of the first seeds</h2>")
    for name, command in commands.items():
        parts.append(f"<p>{html.escape(name)}</p><pre>{html.escape(command)}</pre>")
    parts.append(_versions(results))
    return "\n".join(parts) + "</html>\n"


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
        f"rows seen of {numbers[0].image[0]}, in theory": [n.seen for n in numbers],
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


def _table(rows: tables.Rows, results: Sequence[Result], scores: int) -> str:
    head, *body = rows
    means = [
        [
            float(text.split()[0]) if text != "-" else -1.0
            for text in row[2 : 2 + scores]
        ]
        for row in body
    ]
    best = np.max(means, axis=0)
    lines = ["".join(f"<th>{html.escape(title)}</th>" for title in head)]
    for row, values in zip(body, means, strict=True):
        cells = []
        for column, text in enumerate(row):
            score = column - 2
            wins = 0 <= score < scores and values[score] == best[score] >= 0
            kind = " class=best" if wins else ""
            cells.append(f"<td{kind}>{html.escape(text)}</td>")
        lines.append("".join(cells))
    kinds = [""] + [
        "" if len(result.finished) == len(result.runs) else " class=bad"
        for result in results
    ]
    return (
        "<div class=wide><table>"
        + "".join(f"<tr{kind}>{line}</tr>" for kind, line in zip(kinds, lines))
        + "</table></div>"
    )


def _image(png: bytes) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def _legend(results: Sequence[Result]) -> str:
    folder = next(r.finished[0].folder for r in results if r.finished)
    info = workdir_lib.read_dataset(folder)
    picture = viz.legend(info.classes, info.palette)
    return _image(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())


def _pictures(result: Result) -> str:
    """Predictions of the first finished run at its last step."""
    if not result.finished:
        return ""
    run = result.finished[0]
    paths = sorted(run.folder.glob(f"pictures/{run.state.step:08d}_*.png"))[:_PICTURES]
    images = "".join(_image(path.read_bytes()) for path in paths)
    name = html.escape(sweep_rows.title(result.row))
    return f"<h3>{name}, seed {run.seed}</h3><div class=pictures>{images}</div>"


def _versions(results: Sequence[Result]) -> str:
    """Packages, devices and commit of the first run that has started."""
    for run in (run for result in results for run in result.runs):
        path = run.folder / "versions.json"
        if path.is_file():
            values = json.loads(path.read_text())
            values.pop("command")
            text = ", ".join(f"{key} {value}" for key, value in values.items())
            return f"<p><small>{html.escape(text)}</small></p>"
    return ""
