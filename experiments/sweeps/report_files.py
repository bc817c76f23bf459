"""The report of a sweep as Markdown and CSV, also without what is of one machine."""

import csv
import io
import math
from collections.abc import Callable, Iterable
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np

from experiments.shared import tables
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from experiments.sweeps.report_rows import Result
from experiments.sweeps.runs import Sweep
from segjax.tables import markdown_table


class Score(NamedTuple):
    """A column of scores."""

    title: str
    of: Callable[[np.ndarray], float]  # confusion matrix -> 0..1


def markdown(
    facts: str, rows: tables.Rows, *, problems: list[str], commands: Iterable[str]
) -> str:
    """The table under a line of facts, then the runs that are missing, the commands."""
    parts = [facts, "", markdown_table(rows), ""]
    parts += [f"* {problem}" for problem in problems] + [""] * bool(problems)
    parts += ["Commands of the first seeds:", "", "```", *commands, "```"]
    return "\n".join(parts) + "\n"


def table(results: list[Result], scores: list[Score], *, speed: bool = True) -> str:
    """CSV of all numbers, unrounded; scores 0..1.

    Columns that end in "_seeds" hold a number for each of "seeds", joined by spaces;
    "nan" for a run that is not finished, or has no such score.

    Args:
      results: of the rows.
      scores: of the confusion matrices.
      speed: whether to write times and memory.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    titles = ["row", "hash", "finished", "runs", "seeds", "states"]
    others = evaluated(results)
    for name in [*(score.title for score in scores), *others]:
        titles += [f"{name}_{part}" for part in ("mean", "std", "seeds")]
    titles += ["parameters", "flops", "stride", "field_min", "field_max", "sees"]
    titles += ["image_height", "erf"]
    speeds = {
        "peak_bytes": "peak_bytes",
        "train_images_per_second": "train_rate",
        "eval_images_per_second": "eval_rate",
        "compile_seconds": "compile_seconds",
    }
    writer.writerow([*titles, *(speeds if speed else ()), "command"])
    for result in results:
        numbers, runs = result.numbers, result.runs
        cells: list[Any] = [sweep_rows.title(result.row), result.row.hash]
        cells += [len(result.finished), len(runs)]
        cells.append(" ".join(str(run.seed) for run in runs))
        cells.append(" ".join(run.state.kind for run in runs))
        by_run = [[_of(score.of, run.confusion) for run in runs] for score in scores]
        by_run += [
            [run.evaluated.get(name, math.nan) for run in runs] for name in others
        ]
        for values in by_run:
            known = tables.mean_and_deviation(np.array(values))
            cells += ["" if math.isnan(value) else value for value in known]
            cells.append(" ".join(map(str, values)))
        cells += [numbers.parameters, numbers.flops, numbers.stride, *numbers.field]
        cells += [numbers.seen, numbers.image[0], result.erf]
        for key in speeds.values() if speed else ():
            cells.append(" ".join(str(getattr(run, key)) for run in runs))
        writer.writerow([*cells, result.command])
    return file.getvalue()


def _of(score: Callable[[np.ndarray], float], confusion: np.ndarray | None) -> float:
    return math.nan if confusion is None else float(score(confusion))


def evaluated(results: list[Result]) -> list[str]:
    """The scores of ``experiments.evaluate`` that any run has."""
    names = (name for r in results for run in r.runs for name in run.evaluated)
    return list(dict.fromkeys(names))


def commands(sweep: Sweep, folder: Path) -> dict[str, str]:
    """The commands of the first seeds by the hash of their row."""
    found: dict[str, str] = {}
    for run in sweep_runs.runs_of(sweep, folder):
        command = sweep_runs.shell(sweep_runs.command(sweep, run, "python"))
        found.setdefault(run.row.hash, command)
    return found


def without_paths(sweep: Sweep, folder: Path) -> Sweep:
    """The sweep as another user would run it: data are at /path/to/NAME.

    Args:
      sweep: as it ran.
      folder: where it did, for rows that have other names there.
    """

    def shown(value: Any) -> Any:
        if isinstance(value, str) and value.startswith(("/", "~")):
            return f"/path/to/{PurePath(value).name}"
        return value

    def fields(overrides: dict[str, Any]) -> dict[str, Any]:
        return {key: shown(value) for key, value in overrides.items()}

    names = {
        run.row.hash: run.folder.parent.name
        for run in sweep_runs.runs_of(sweep, folder)
    }
    path, colon, arg = sweep.config_file.partition(":")
    if PurePath(path).is_absolute() and "configs" in PurePath(path).parts:
        parts = PurePath(path).parts
        path = str(PurePath(*parts[parts.index("configs") :]))
    return sweep._replace(
        config_file=f"{path}{colon}{arg}",
        overrides=fields(sweep.overrides),
        options=[],  # of the cache and the other processes
        rows=[
            row._replace(name=names[row.hash], overrides=fields(row.overrides))
            for row in sweep.rows
        ],
    )
