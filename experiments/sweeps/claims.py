"""Claims of papers and the scores that they are held against: the files in results/.

results/ROW/claim.toml is written by hand: what a paper says, as orderings of arms.
results/ROW/DATA/report.csv is written by ``experiments.report --results``.
"""

import csv
import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

from experiments.sweeps import paired
from segjax import errors, files
from segjax.errors import UserError

_TEXT = {"type": "string", "minLength": 1}
_TEXTS = {"type": "array", "items": _TEXT, "minItems": 1}
_ORDERING = {
    "type": "object",
    "required": ["order"],
    "properties": {
        "order": _TEXT,
        "column": _TEXT,
        "unit": {"enum": ["%", ""]},
        "data": _TEXTS,
    },
}
_ARM = {
    "type": "object",
    "required": ["row"],
    "properties": {
        "row": _TEXT,
        "column": _TEXT,
        "minus": _TEXT,
        "on": {"type": "object", "additionalProperties": _TEXT},
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["place", "title", "claim", "published", "source", "orderings", "arms"],
    "properties": {
        "place": {"type": "integer", "minimum": 1},
        "title": _TEXT,
        "claim": _TEXT,
        "published": _TEXT,
        "source": _TEXT,
        "column": _TEXT,
        "unit": {"enum": ["%", ""]},
        "margin": {"type": "number", "minimum": 0},
        "cost": {"type": "string"},
        "commands": {"type": "array", "items": _TEXT},
        "full": {"type": "array", "items": _TEXT},
        "says": {"type": "string"},
        "cause": {"type": "string"},
        "orderings": {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [_TEXT, _ORDERING]},
        },
        "arms": {
            "type": "object",
            "minProperties": 2,
            "additionalProperties": {"anyOf": [_TEXT, _ARM]},
        },
    },
}


class Arm(NamedTuple):
    """One side of a comparison: a row of the report, and perhaps a column of its own.

    Behind a CRF, say: {"row": "skips=8", "column": "mIoU_with_crf"}.
    """

    row: str  # its name, or parts of it that no other row has
    column: str  # "": that of the ordering
    minus: str  # a column that is subtracted, as for the gain by a CRF; "": none
    on: dict[str, str]  # another row for single data sets, by their folders


class Ordering(NamedTuple):
    """Arms from the lowest to the highest."""

    arms: tuple[str, ...]  # names, at least two
    column: str
    unit: str  # "%": scores 0 to 1 are shown in percent; "": as they are
    data: tuple[str, ...]  # folders that it is about; (): all


class Claim(NamedTuple):
    """One claim.toml."""

    name: str  # of its folder
    place: int  # in the table
    title: str
    claim: str
    published: str
    source: str
    margin: float  # in the unit shown
    cost: str
    commands: tuple[str, ...]
    full: tuple[str, ...]  # config files of the full size, sweeps or single runs
    says: str
    cause: str  # the likeliest one where it is not reproduced
    orderings: tuple[Ordering, ...]
    arms: dict[str, Arm]


class Row(NamedTuple):
    """A row of a report.csv."""

    name: str
    states: dict[int, str]  # by seed
    columns: dict[str, dict[int, float]]  # score by seed; NaN: not known


class Pair(NamedTuple):
    """Two arms on one data set."""

    low: str  # names of the arms
    high: str
    column: str
    unit: str
    lower: dict[int, float]  # scores by seed, in the unit shown
    higher: dict[int, float]
    difference: paired.Difference
    verdict: str


class Data(NamedTuple):
    """What the report of one data set says of a claim."""

    name: str  # of the folder
    pairs: list[Pair]
    notes: list[str]  # runs that are not finished


# Claims


def read_claim(path: Path) -> Claim:
    """Reads a claim.toml.

    Raises:
      UserError: it is no TOML, lacks a key, or holds an unknown key or arm.
    """
    what = "a claim of a paper"
    try:
        values = tomllib.loads(files.read_text(path, what))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path}: is not valid TOML: {error}") from error
    _check_keys(path, values, SCHEMA)
    orderings, arms = values.get("orderings", []), values.get("arms", {})
    for value in orderings if isinstance(orderings, list) else []:
        _check_keys(path, value, _ORDERING)
    for value in arms.values() if isinstance(arms, dict) else []:
        _check_keys(path, value, _ARM)
    files.check_json(values, path=path, what=what, schema=SCHEMA)
    arms = {name: _arm(value) for name, value in values["arms"].items()}
    defaults = {key: values.pop(key) for key in ("column", "unit") if key in values}
    orderings = tuple(
        _ordering(path, defaults, arms, value) for value in values["orderings"]
    )
    rest = {"margin": 0.0, "cost": "", "says": "", "cause": ""} | values
    for key in ("commands", "full"):
        rest[key] = tuple(values.get(key, ()))
    return Claim(
        **rest | {"name": path.parent.name, "orderings": orderings, "arms": arms}
    )


def _check_keys(path: Path, values: Any, schema: dict) -> None:
    """Raises a UserError that names the nearest key for an unknown one."""
    for key in values if isinstance(values, dict) else ():
        if key not in schema["properties"]:
            raise errors.unknown(f"{path}: key", key, schema["properties"])


def _arm(value: Any) -> Arm:
    value = value if isinstance(value, dict) else {"row": value}
    return Arm(
        value["row"],
        value.get("column", ""),
        value.get("minus", ""),
        value.get("on", {}),
    )


def _ordering(path: Path, defaults: dict, arms: dict[str, Arm], value: Any) -> Ordering:
    value = value if isinstance(value, dict) else {"order": value}
    value = {"column": "mIoU", "unit": "%"} | defaults | value
    names = tuple(name.strip() for name in value["order"].split("<"))
    if len(names) < 2:
        raise UserError(
            f"{path}: orderings: found {value['order']!r}, expected two arms or more, "
            "as 'A < B'"
        )
    for name in names:
        if name not in arms:
            raise errors.unknown(f"{path}: arm of orderings", name, arms)
    return Ordering(names, value["column"], value["unit"], tuple(value.get("data", ())))


# Scores


def read_report(path: Path) -> list[Row]:
    """The scores by seed of the rows of a report.csv.

    Raises:
      UserError: it is missing, or was not written by ``experiments.report``.
    """
    text = files.read_text(path, "a report of experiments.report")
    rows = []
    # A line that is cut off has empty cells.
    for line in csv.DictReader(text.splitlines(), restval=""):
        missing = [key for key in ("row", "seeds", "states") if not line.get(key)]
        if missing:
            raise UserError(
                f"{path}: has no column {missing[0]!r}, or a row ends before it; "
                "expected what experiments.report --results writes: run it again"
            )
        try:
            rows.append(_row(line))
        except ValueError as error:
            raise UserError(
                f"{path}: row {line['row']}: {error}; expected a number for each of "
                "its seeds"
            ) from error
    if not rows:
        raise UserError(f"{path}: has no rows; expected those of a sweep")
    return rows


def _row(line: dict[str, str]) -> Row:
    """Raises a ValueError for what are no numbers, or not one for each seed."""
    seeds = [int(seed) for seed in line["seeds"].split()]
    columns = {
        key.removesuffix("_seeds"): dict(
            zip(seeds, map(float, cell.split()), strict=True)
        )
        for key, cell in line.items()
        if key and key.endswith("_seeds")
    }
    states = dict(zip(seeds, line["states"].split(), strict=True))
    return Row(line["row"], states, columns)


def parts(name: str) -> frozenset[str]:
    """ "bins=1,2,pool=max" -> {"bins=1,2", "pool=max"}."""
    return frozenset(re.split(r",\s*(?=[A-Za-z_][\w.]*(?:=|,|$))", name))


def find_row(rows: list[Row], wanted: str, where: str) -> Row:
    """The row of that name, or the only one whose name has these parts.

    Raises:
      UserError: there is none, or several.
    """
    whole = [row for row in rows if parts(row.name) == parts(wanted)]
    found = whole or [row for row in rows if parts(row.name) >= parts(wanted)]
    if not found:
        raise errors.unknown(f"{where}: row", wanted, [row.name for row in rows])
    if len(found) > 1:
        names = "; ".join(row.name for row in found)
        raise UserError(f"{where}: {wanted!r} is part of several rows: {names}")
    return found[0]


def _column(row: Row, name: str, where: str) -> dict[int, float]:
    if name not in row.columns:
        raise errors.unknown(f"{where}: column", name, row.columns)
    return row.columns[name]


def hold(claim: Claim, folder: Path) -> Data:
    """Holds a claim against the report.csv in a folder.

    Raises:
      UserError: the report has no such row or column, or two arms are the same.
    """
    path = folder / "report.csv"
    rows = read_report(path)

    def scores(name: str, ordering: Ordering) -> dict[int, float]:
        arm = claim.arms[name]
        where = f"{folder.parent / 'claim.toml'}: arms.{name}, for {path}"
        row = find_row(rows, arm.on.get(folder.name, arm.row), where)
        used[row.name] = row
        column = arm.column or ordering.column
        sources[name] = row.name, column, arm.minus
        scale = 100 if ordering.unit == "%" else 1
        found = _column(row, column, where)
        less = _column(row, arm.minus, where) if arm.minus else dict.fromkeys(found, 0)
        return {seed: scale * (found[seed] - less[seed]) for seed in found}

    used: dict[str, Row] = {}
    sources: dict[str, tuple[str, str, str]] = {}  # of arms: row, column, minus
    pairs = []
    for ordering in claim.orderings:
        if ordering.data and folder.name not in ordering.data:
            continue
        for low, high in zip(ordering.arms, ordering.arms[1:]):
            lower, higher = scores(low, ordering), scores(high, ordering)
            if sources[low] == sources[high]:
                raise UserError(
                    f"{folder.parent / 'claim.toml'}: arms {low!r} and {high!r}: found "
                    f"the same row of {path}, {sources[low][0]!r}, expected two"
                )
            found = paired.difference(lower, higher)
            pairs.append(
                Pair(
                    low,
                    high,
                    ordering.column,
                    ordering.unit,
                    lower,
                    higher,
                    found,
                    paired.verdict(found, claim.margin),
                )
            )
    if not pairs:
        known = {name for ordering in claim.orderings for name in ordering.data}
        raise errors.unknown(f"{folder}: folder", folder.name, known)
    notes = [
        f"{row.name}, seed {seed}: {state}"
        for row in used.values()
        for seed, state in row.states.items()
        if state != "finished"
    ]
    return Data(folder.name, pairs, notes)


def read_all(results: Path) -> list[tuple[Claim, list[Data]]]:
    """All claims of a folder in the order of the table, with what was measured.

    Raises:
      UserError: there is none, a folder has no claim.toml, or one does not fit its
        reports.
    """
    folders = sorted(path for path in results.glob("*") if path.is_dir())
    if not folders:
        raise UserError(f"{results}: holds no folders; expected ROW/claim.toml")
    claims = [read_claim(folder / "claim.toml") for folder in folders]
    claims.sort(key=lambda claim: (claim.place, claim.name))
    return [(claim, _data(claim, results / claim.name)) for claim in claims]


def _data(claim: Claim, folder: Path) -> list[Data]:
    """Of the folders of a claim, and of those that its orderings name beside them.

    Raises:
      UserError: an arm has a row for a folder that is neither; or see :func:`hold`.
    """
    found = {path.name: hold(claim, path) for path in folder.glob("*") if path.is_dir()}
    named = {name for ordering in claim.orderings for name in ordering.data}
    for arm, values in claim.arms.items():
        for name in values.on:
            if name not in found.keys() | named:
                where = f"{folder / 'claim.toml'}: arms.{arm}.on: folder"
                raise errors.unknown(where, name, found.keys() | named)
    return [
        found.get(name, Data(name, [], [])) for name in sorted(found.keys() | named)
    ]
