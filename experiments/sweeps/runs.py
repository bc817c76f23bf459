"""The runs of a sweep: its description, their folders and commands, how far each is.

The folder of a sweep holds sweep.json, which describes its rows, and ROW/seedN, the
workdirs of their runs.
"""

import contextlib
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import worker
from experiments.sweeps.rows import Row
from segjax import config as config_lib
from segjax import files
from segjax import workdir as workdir_lib
from segjax.errors import UserError

DESCRIPTION = "sweep.json"

_TEXT = {"type": "string"}
_SCHEMA = {
    "type": "object",
    "required": ["config_file", "overrides", "options", "seeds", "rows"],
    "properties": {
        "config_file": _TEXT,
        "overrides": {"type": "object"},
        "options": {"type": "array", "items": _TEXT},
        "seeds": {"type": "integer", "minimum": 1, "maximum": 10**6},
        "rows": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "hash", "overrides", "config"],
                "properties": {
                    # The names of folders.
                    "name": {"type": "string", "pattern": r"^[^/\x00]+-[0-9a-f]+$"},
                    "hash": {"type": "string", "pattern": "^[0-9a-f]+$"},
                    "overrides": {"type": "object"},
                    "config": {"type": "object"},
                },
                "additionalProperties": False,
            },
        },
    },
    "additionalProperties": False,
}


class Sweep(NamedTuple):
    """What sweep.json describes: all that a report needs besides the runs."""

    config_file: str  # FILE or FILE:ARG
    rows: list[Row]
    overrides: dict[str, Any]  # fields of the config that all rows have
    options: list[str]  # other flags of experiments.train
    seeds: int  # runs of each row


class State(NamedTuple):
    """How far a run is."""

    kind: str  # "finished", "running", "failed", "interrupted" or "missing"
    step: int = 0
    exit: int = 0  # of a failed one; negative: the signal that ended it


class Run(NamedTuple):
    """One row with one seed."""

    row: Row
    seed: int
    folder: Path  # its workdir


def save(folder: Path, sweep: Sweep) -> None:
    """Writes sweep.json into the folder of a sweep."""
    rows = [
        row._asdict() | {"config": config_lib.json_like(row.config)}
        for row in sweep.rows
    ]
    files.write_json(folder / DESCRIPTION, sweep._asdict() | {"rows": rows})


def load(folder: Path) -> Sweep:
    """Reads what :func:`save` wrote.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = folder / DESCRIPTION
    what = "the description of a sweep, written by experiments.sweep"
    values = files.read_json(path, what, _SCHEMA)
    rows = []
    for number, row in enumerate(values["rows"], 1):
        try:
            config = config_lib.make(**config_lib.json_like(row["config"]))
        except UserError as error:
            raise UserError(f"{path}: row {number}: {error}") from error
        overrides = config_lib.json_like(row["overrides"])
        rows.append(Row(row["name"], row["hash"], overrides, config))
    overrides = config_lib.json_like(values["overrides"])
    return Sweep(**values | {"rows": rows, "overrides": overrides})


def runs_of(sweep: Sweep, folder: Path) -> list[Run]:
    """All runs of a sweep.

    All rows have their first seed before any has its second: tables fill evenly.  A row
    that has run stays in its folder when its name changes, as it does when rows with
    other fields are added to the sweep; its hash stays. It also stays where an earlier
    version of this program, whose configs had other fields, gave it another hash.
    """
    folders, earlier = {}, None
    for row in sweep.rows:
        existing = sorted(folder.glob(f"*-{row.hash}"))
        named = folder / row.name
        if not existing:
            earlier = _folders_by_config(folder) if earlier is None else earlier
            existing = [earlier[row.hash]] if row.hash in earlier else []
        keep = existing and named not in existing
        folders[row.hash] = existing[0] if keep else named
    return [
        Run(row, seed, folders[row.hash] / f"seed{seed}")
        for i in range(sweep.seeds)
        for row in sweep.rows
        for seed in [row.config.seed + i]
    ]


def _folders_by_config(folder: Path) -> dict[str, Path]:
    """The folders of rows that have run, by the hash that their configs have today."""
    folders: dict[str, Path] = {}
    for path in sorted(folder.glob(f"*/seed*/{workdir_lib.CONFIG}")):
        row = path.parent.parent
        if row not in folders.values():
            with contextlib.suppress(UserError):  # damaged: training will say so
                folders.setdefault(sweep_rows.hash_of(config_lib.load(path)), row)
    return folders


def command(sweep: Sweep, run: Run, python: str) -> list[str]:
    """What trains one row with one seed, on every engine."""
    fields = sweep.overrides | run.row.overrides
    fields.pop("seed", None)
    config_file = fields.pop("config", sweep.config_file)
    return [
        *(python, "-m", "experiments.train", "--config", config_file),
        *("--workdir", str(run.folder), *sweep.options),
        *(config_lib.flag(key, value) for key, value in fields.items()),
        f"--config.seed={run.seed}",
    ]


def shell(command: list[str]) -> str:
    """The command as it is typed."""
    return shlex.join(command)


def state(workdir: Path, total_steps: int) -> State:
    """How far the run in ``workdir`` is."""
    steps = [row["step"] for row in workdir_lib.read_metrics(workdir)]
    step = max(steps, default=0)
    # The last checkpoint appears, at once, after the last evaluation.
    done = (workdir / "checkpoints" / str(total_steps)).is_dir()
    if done and workdir_lib.read_validation(workdir).get("step") == total_steps:
        return State("finished", total_steps)
    if not workdir.is_dir():
        return State("missing")
    with workdir_lib.lock(workdir, wait=False) as ours:
        if not ours:
            return State("running", step)
    code = workdir_lib.read_exit(workdir)
    if code not in (0, worker.STOPPED):
        return State("failed", step, code)
    return State("interrupted", step)


def state_text(state: State) -> str:
    """ "failed at step 40 with exit code 3"."""
    text = state.kind
    if state.kind not in ("finished", "missing"):
        text += f" at step {state.step}"
    if state.exit < 0:
        text += f", killed by signal {-state.exit}"
    elif state.exit:
        text += f" with exit code {state.exit}"
    return text
