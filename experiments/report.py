"""Makes the table of a sweep, finished or not: text, Markdown, CSV and one HTML page.

    python -m experiments.report runs/bins
    python -m experiments.report runs/bins --classes=all
    python -m experiments.report runs/bins --classes=wire,tree --pair=tent_red,tent_blue
    python -m experiments.report runs/fcn_skips --results=results/fcn_skips/scenes

Prints the table and writes report.md, report.csv, report.html, a page with plots and
pictures in it, and report.png, the plots alone, into the folder of the sweep or into
--output.  A folder of several sweeps gets one table for each.

A column shows the mIoU with a CRF where runs were evaluated so at their last step
(experiments.evaluate --workdir RUN --checkpoint=latest --crf=..).

mIoU is that of the last step on the validation split, mean and sample standard
deviation over the seeds.  --classes adds IoUs of classes.  --pair=A,B adds how well two
look-alike classes are told apart: of the pixels of each predicted as either, the share
that is right, mean of both; guessing has 50 %.  docs/ablate.md explains the columns.

--results writes report.csv, report.md and report.png of one sweep into another folder,
too, without times, memory and paths of this machine: what experiments.results reads.

Exit codes: 0; 1 if a run failed, is missing or has not finished; 2 bad input.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tqdm
from absl import flags

from experiments.shared import cli, tables
from experiments.sweeps import (
    report_evaluations,
    report_files,
    report_page,
    report_rows,
)
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from experiments.sweeps.report_files import Score
from experiments.sweeps.report_rows import Result, Run
from segjax import files
from segjax import workdir as workdir_lib
from segjax.analysis.receptive_field import Field
from segjax.data import datasets
from segjax.errors import UserError
from segjax.tables import text_table


def report(
    folder: Path,
    output: Path,
    *,
    classes: list[str],
    pair: list[str],
    erf: bool,
    kept: Path | None = None,
) -> bool:
    """Prints and writes the table of one sweep; whether all its runs are finished.

    Args:
      folder: of the sweep.
      output: folder of the report.
      classes: whose IoUs get columns; ["all"].
      pair: two look-alike classes, or [].
      erf: whether to measure effective receptive fields.
      kept: folder that gets the files that are kept with the code.
    """
    sweep = sweep_runs.load(folder)
    results = _results(sweep, folder, erf)
    scores = _scores(sweep.rows[0].config, results, classes=classes, pair=pair)
    rows = _table(results, scores)
    problems = _problems(results)
    _note_options(results)
    facts = _facts(sweep, results)
    print("\n".join([facts, "", text_table(rows), *problems]))
    commands = {result.row.name: result.command for result in results}
    # One plotted score besides the mIoU.
    plot = report_page.plot(results, scores[:2])
    page = report_page.page(
        facts,
        rows,
        problems=problems,
        commands=commands,
        results=results,
        scores=len(scores) + (_CRF in report_files.evaluated(results)),
        plots=plot,
    )
    files = {
        "report.md": report_files.markdown(
            facts, rows, problems=problems, commands=commands.values()
        ).encode(),
        "report.csv": report_files.table(results, scores).encode(),
        "report.html": page.encode(),
    } | ({"report.png": plot} if plot else {})
    _write(output, files)
    if kept:
        shown = report_files.without_paths(sweep, folder)
        lines = report_files.commands(shown, Path("runs") / folder.name)
        told = [result._replace(command=lines[result.row.hash]) for result in results]
        text = report_files.markdown(
            _facts(shown, results),
            _table(told, scores, speed=False),
            problems=_problems(results, log=False),
            commands=lines.values(),
        )
        files = {"report.md": text.encode()} | ({"report.png": plot} if plot else {})
        files["report.csv"] = report_files.table(told, scores, speed=False).encode()
        _write(kept, files)
    return not problems


def _write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    print(f"written to {folder}: {', '.join(files)}")


def _results(sweep: sweep_runs.Sweep, folder: Path, erf: bool) -> list[Result]:
    def progress(items: list, text: str = "tracing models", unit: str = "row"):
        return tqdm.tqdm(items, text, unit=unit, disable=not items)

    numbers = report_rows.numbers(sweep.rows, folder, progress)
    runs: dict[str, list[Run]] = {}
    for run in sweep_runs.runs_of(sweep, folder):
        read = report_rows.read_run(run.folder, run.seed, run.row.config)
        runs.setdefault(run.row.hash, []).append(read)
    commands = report_files.commands(sweep, folder)
    results = [
        Result(
            row, commands[row.hash], tuple(runs[row.hash]), numbers[row.hash], math.nan
        )
        for row in sweep.rows
    ]
    if not erf:
        return results
    with_fields = []
    for result in progress(results, "effective receptive fields"):
        if result.finished:
            side = report_rows.effective_field(result.row, result.finished[0])
            result = result._replace(erf=side)
        with_fields.append(result)
    return with_fields


def _scores(
    config: Any, results: list[Result], *, classes: list[str], pair: list[str]
) -> list[Score]:
    info = datasets.describe(config.data)
    for result in results if classes or pair else ():
        for run in result.finished:
            workdir_lib.check_same_classes(
                workdir_lib.read_dataset(run.folder), info, where=str(run.folder)
            )
    known = list(info.classes)
    classes = known if classes == ["all"] else classes
    for flag, names in (("classes", classes), ("pair", pair)):
        for name in names:
            if name not in known:
                raise UserError(
                    f"--{flag}: no class {name!r} in {info.name}; its classes are "
                    + ", ".join(known)
                )
    if len(pair) not in (0, 2):
        raise UserError(f"--pair={','.join(pair)}: expected two classes, as A,B")
    scores = [Score("mIoU", report_evaluations.miou)]
    if pair:
        both = [known.index(name) for name in pair]
        scores.append(Score("/".join(pair), lambda h: report_rows.told_apart(h, both)))
    for name in classes:
        index = known.index(name)
        scores.append(Score(name, lambda h, i=index: report_rows.class_iou(h, i)))
    return scores


# The table


_CRF = "mIoU_with_crf"
_SPEED = 4  # columns of what depends on what else the machine does


def _table(
    results: list[Result], scores: list[Score], *, speed: bool = True
) -> tables.Rows:
    of = max({run.peak_of for r in results for run in r.runs}, default="")
    titles = ["row", "runs", *(f"{score.title} %" for score in scores)]
    crf = _CRF in report_files.evaluated(results)
    titles += ["mIoU with CRF %"] * crf
    titles += ["parameters", "GFLOPs", "stride", "field", "sees", "ERF"]
    titles += [f"MB of {of or 'memory'}", "train img/s", "eval img/s", "compile s"]
    rows = [titles] + [_cells(result, scores, crf) for result in results]
    ends = ["hash"] + [result.row.hash for result in results]
    shown = len(titles) - (0 if speed else _SPEED)
    return [(*row[:shown], end) for row, end in zip(rows, ends, strict=True)]


def _score_cell(values: np.ndarray, runs: int) -> str:
    """Mean and deviation in percent, and of how many of the runs if not of all."""
    known = np.count_nonzero(~np.isnan(values))
    count = f" ({known} of {runs})" if 0 < known < runs else ""
    return tables.mean_text(100 * values) + count


def _cells(result: Result, scores: list[Score], crf: bool) -> list[str]:
    runs, numbers = result.runs, result.numbers
    kinds = [run.state.kind for run in runs]
    done = f"{kinds.count('finished')} of {len(runs)}"
    bad = [kind for kind in dict.fromkeys(kinds) if kind != "finished"]
    cells = [sweep_rows.title(result.row), ", ".join([done, *bad])]
    finished = len(result.finished)
    cells += [_score_cell(result.scores(score.of), finished) for score in scores]
    cells += [_score_cell(result.evaluated(_CRF), finished)] * crf
    cells += [
        tables.number_text(numbers.parameters, "{:,.0f}"),
        tables.number_text(numbers.flops / 1e9, "{:,.3g}"),
        "-" if math.isnan(numbers.stride) else tables.stride_text(numbers.stride),
        _field_text(numbers.field),
        tables.number_text(numbers.seen, "{:.0f}") + f" of {numbers.image[0]}",
        tables.number_text(result.erf, "{:.0f}"),
    ]
    for key, pick, scale, form in (
        ("peak_bytes", max, 1e-6, "{:,.0f}"),
        ("train_rate", _median, 1, "{:,.1f}"),
        ("eval_rate", _median, 1, "{:,.1f}"),
        ("compile_seconds", max, 1, "{:,.1f}"),
    ):
        known = [getattr(run, key) for run in runs]
        known = [value for value in known if not math.isnan(value)]
        cells.append(
            tables.number_text(scale * pick(known) if known else math.nan, form)
        )
    return cells


def _median(values: list[float]) -> float:
    return float(np.median(values))


def _field_text(field: Field) -> str:
    return "-" if math.isnan(field[0]) else tables.field_text(field)


def _problems(results: list[Result], *, log: bool = True) -> list[str]:
    """What became of the runs that are not finished, one line each."""
    return [
        f"{sweep_rows.title(result.row)}, seed {run.seed}: {_problem(run, log)}"
        for result in results
        for run in result.runs
        if run.state.kind != "finished"
    ]


def _problem(run: Run, log: bool) -> str:
    text = sweep_runs.state_text(run.state)
    last = workdir_lib.log_tail(run.folder, 1)
    failed = log and last and run.state.kind == "failed"
    return f"{text}: {last[0]}" if failed else text


def _note_options(results: list[Result]) -> None:
    """Tells which runs were evaluated with other options than the first one."""
    found = {
        f"{sweep_rows.title(result.row)}, seed {run.seed}": run.evaluations
        for result in results
        for run in result.runs
    }
    for line in report_evaluations.differing_options(found):
        cli.log(f"note: {line}; they share a column")


def _facts(sweep: sweep_runs.Sweep, results: list[Result]) -> str:
    """One line over the table."""

    def each(values: Iterable[Any]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    configs = [result.row.config for result in results]
    return (
        f"{sweep.config_file}: {len(results)} rows x {sweep.seeds} seeds, "
        f"{each(config.model_name for config in configs)} on "
        f"{each(config.data.name for config in configs)}, examples of "
        f"{each('{}x{}'.format(*result.numbers.image) for result in results)}, "
        f"scores on {each(config.data.eval_split for config in configs)}: mean ± "
        "sample standard deviation over seeds"
    )


def _sweeps(folder: Path) -> list[Path]:
    """The sweep in a folder, or those in its folders."""
    if (folder / "sweep.json").is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob("*/sweep.json"))
    if not found:
        raise UserError(f"{folder} holds no sweep: experiments.sweep writes sweep.json")
    return found


def outputs(sweeps: list[Path], output: str) -> list[Path]:
    """Folders of the reports: those of the sweeps themselves, or in --output.

    Raises:
      UserError: several would get the same.
    """
    if not output:
        return sweeps
    if len(sweeps) == 1:
        return [files.path(output)]
    owners: dict[Path, Path] = {}
    for folder in sweeps:
        place = files.path(output) / folder.name
        if place in owners:
            raise UserError(
                f"--output={output}: found {owners[place]} and {folder}, expected "
                "sweeps whose folders have different names"
            )
        owners[place] = folder
    return list(owners)


def main(argv) -> int:
    if len(argv) < 2:
        raise UserError("give the folder of a sweep, such as runs/bins")
    values = flags.FLAGS
    absl.logging.set_verbosity("fatal")
    folders = [found for name in argv[1:] for found in _sweeps(files.path(name))]
    if values.results and len(folders) > 1:
        raise UserError(
            f"--results={values.results}: found {len(folders)} sweeps, expected one"
        )
    kept = files.user_path("--results", values.results) if values.results else None
    if kept:
        cli.make_folder(kept, "--results")
    complete = []
    for folder, output in zip(folders, outputs(folders, values.output)):
        cli.make_folder(output)
        complete.append(
            report(
                folder,
                output,
                classes=values.classes,
                pair=values.pair,
                erf=values.erf,
                kept=kept,
            )
        )
    return 0 if all(complete) else 1


if __name__ == "__main__":
    flags.DEFINE_list("classes", [], "Classes whose IoUs get columns; 'all'.")
    flags.DEFINE_list("pair", [], "Two look-alike classes, as A,B.")
    flags.DEFINE_bool("erf", True, "Measure effective receptive fields.")
    flags.DEFINE_string("output", "", "Folder; '': that of the sweep.")
    flags.DEFINE_string(
        "results", "", "Folder for the files that experiments.results reads."
    )
    cli.run(main, positional=True)
