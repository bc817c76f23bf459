"""Which runs are compared, and under which names: the arguments of experiments.compare.

A method is one row of the tables: one run, or several that differ in their seed.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from segjax import files
from segjax import workdir as workdir_lib
from segjax.errors import UserError


class Run(NamedTuple):
    """One trained network."""

    workdir: Path
    checkpoint: str  # "best", "latest" or a step


class Method(NamedTuple):
    """A row of the tables."""

    name: str
    runs: tuple[Run, ...]  # its seeds


def read(arguments: Sequence[str], checkpoint: str) -> tuple[list[Method], list[str]]:
    """The methods that arguments name.

    Args:
      arguments: RUN, NAME=RUN, NAME=RUN1,RUN2 (seeds of one method), SWEEP (a method
        for each of its rows) or NAME=SWEEP. A RUN is a workdir, or a checkpoint in one.
      checkpoint: of the runs that are workdirs.

    Returns:
      methods, and a line for each run of the sweeps that is not finished.

    Raises:
      UserError: an argument that names no run, or two methods of one name.
    """
    methods: list[Method] = []
    problems: list[str] = []
    unnamed: dict[int, str] = {}  # place in `methods` -> the argument
    for argument in arguments:
        name, text = _split(argument)
        if (files.path(text) / sweep_runs.DESCRIPTION).is_file():
            found, unfinished = _of_sweep(files.path(text), name, checkpoint)
            methods += found
            problems += unfinished
            continue
        runs = tuple(_run(path, checkpoint) for path in _paths(text, argument))
        if not name:
            unnamed[len(methods)] = text
        methods.append(Method(name or _default_name(text), runs))
    names = [method.name for method in methods]
    for place, text in unnamed.items():  # more of the path where it is needed
        if names.count(names[place]) > 1:
            methods[place] = methods[place]._replace(name=text)
    for method in methods:
        if [other.name for other in methods].count(method.name) > 1:
            raise UserError(
                f"two methods are called {method.name!r}: name them, as in NAME=RUN; "
                "NAME=RUN1,RUN2 are seeds of one method"
            )
    if not methods:
        raise UserError(
            "\n".join(["no run to compare", *problems])
            if problems
            else "give the runs to compare: workdirs, NAME=WORKDIR, or a sweep's folder"
        )
    return methods, problems


def _split(argument: str) -> tuple[str, str]:
    """Name ("" for none) and paths: folders of sweeps have "=" in their names."""
    if _is_there(argument):
        return "", argument
    name, equals, rest = argument.partition("=")
    if not equals or not name or "/" in name:
        return "", argument
    return name, rest


def _is_there(text: str) -> bool:
    path = files.path(text)
    return bool(_folder_of(path)) or (path / sweep_runs.DESCRIPTION).is_file()


def _folder_of(path: Path) -> Path | None:
    """The workdir of a run, which is that path or holds that checkpoint."""
    folders = [path, path.parent.parent] if path.name.isdigit() else [path]
    return next((f for f in folders if (f / workdir_lib.CONFIG).is_file()), None)


def _paths(text: str, argument: str) -> Iterator[Path]:
    """The runs of PATH,PATH: folders of sweeps have commas in their names, too."""
    parts = text.split(",")
    while parts:
        for count in range(1, len(parts) + 1):
            path = files.path(",".join(parts[:count]))
            if _folder_of(path):
                yield path
                del parts[:count]
                break
        else:
            what = "" if text == argument else f" of {argument!r}"
            raise UserError(
                f"{parts[0] if len(parts) < 3 else ','.join(parts)}{what} is no run: "
                f"it has no {workdir_lib.CONFIG}; expected a workdir of "
                "experiments.train, a checkpoint in one, NAME=RUN, NAME=RUN1,RUN2, or "
                "the folder of a sweep"
            )


def _run(path: Path, checkpoint: str) -> Run:
    folder = _folder_of(path)
    assert folder is not None
    own = checkpoint if folder == path else path.name
    return Run(files.absolute(folder), own)


def _default_name(text: str) -> str:
    """The last part of the path that is not a seed or a checkpoint."""
    path = files.absolute(text)
    if path.name.isdigit():
        path = path.parent.parent
    if path.name.removeprefix("seed").isdigit():
        path = path.parent
    return path.name


def _of_sweep(
    folder: Path, prefix: str, checkpoint: str
) -> tuple[list[Method], list[str]]:
    """A method for each row with finished runs, and what is not finished."""
    sweep = sweep_runs.load(folder)
    runs: dict[str, list[Run]] = {}
    names: dict[str, str] = {}
    problems = []
    for run in sweep_runs.runs_of(sweep, folder):
        title = " ".join([prefix] * bool(prefix) + [sweep_rows.title(run.row)])
        names[run.row.hash] = title
        state = sweep_runs.state(run.folder, run.row.config.total_steps)
        if state.kind == "finished":
            found = Run(files.absolute(run.folder), checkpoint)
            runs.setdefault(run.row.hash, []).append(found)
        else:
            problems.append(f"{title}, seed {run.seed}: {sweep_runs.state_text(state)}")
    methods = [Method(names[row], tuple(runs[row])) for row in names if row in runs]
    return methods, problems
