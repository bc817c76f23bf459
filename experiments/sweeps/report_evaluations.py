"""The scores of a run of a sweep that experiments.evaluate has written beside it.

They count if they are of what the row says: its last step, its images and its config.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.shared import cli, evaluation
from segjax import checkpoint_scores, files, metrics
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.errors import UserError

_COUNTS = {
    "type": "array",
    "items": {"type": "array", "items": {"type": "integer", "minimum": 0}},
}
_KNOWN = {"type": ["number", "null"]}
_STAGE = {
    "type": "object",
    "properties": {
        "confusion": _COUNTS,
        "metrics": {
            "type": "object",
            "additionalProperties": {"type": "object", "additionalProperties": _KNOWN},
        },
        "trimap": {
            "type": "object",
            "required": ["miou"],
            "properties": {"miou": {"type": "array", "items": _KNOWN}},
        },
    },
}
_SCHEMA = {
    "type": "object",
    "required": ["step", "stages"],
    "properties": {
        "step": {"type": "integer"},
        "stages": {
            "type": "object",
            "additionalProperties": {"enum": ["", "plain", "crf"]},
        },
        "models": {"type": "array"},
        "fingerprint": {"type": "string"},
        "config": {"type": "object"},
        "options": {"type": "object"},
        "plain": _STAGE,
        "crf": _STAGE,
        **_STAGE["properties"],  # type: ignore[dict-item]
    },
}
_BANDS = (1, 2, 3, 5, 10, 20, 40)  # px from a boundary, of those that evaluate measures


class Evaluation(NamedTuple):
    """One results file of ``experiments.evaluate``."""

    scores: dict[str, float]  # by name, as ``_scores`` names them
    stages: tuple[str, ...]  # their titles
    options: dict[str, Any]  # PredictOptions, and the number of models


def read(run: Path, config: ConfigDict) -> dict[str, Evaluation]:
    """The evaluations of a finished run, by the name of their folder.

    "" is RUN/evaluation; others are in folders of their own below it:
    ``evaluate --output=RUN/evaluation/NAME``. A note names those that are left out.

    Args:
      run: the workdir.
      config: of the row.

    Raises:
      UserError: a file is damaged.
    """
    folder = run / workdir_lib.EVALUATION
    split = config.data.eval_split
    first = folder / f"{split}.json"
    others = {path.parent.name: path for path in folder.glob(f"*/{split}.json")}
    found = {}
    for name, path in ({"": first} | dict(sorted(others.items()))).items():
        if not path.is_file():
            continue
        values = files.read_json(path, "results of experiments.evaluate", _SCHEMA)
        if reason := _left_out(values, path, run=run, config=config):
            cli.log(f"note: {path} is left out: {reason}")
            continue
        options = values.get("options", {}) | {"models": len(values.get("models", "1"))}
        stages = tuple(values["stages"])
        found[name] = Evaluation(_scores(values, path), stages, options)
    return found


def named_scores(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """All scores, those of folders with their names: "mIoU_with_proposals_NAME"."""
    return {
        f"{key}_{name}" if name else key: value
        for name, found in evaluations.items()
        for key, value in found.scores.items()
    }


def _left_out(
    values: Mapping[str, Any], path: Path, *, run: Path, config: ConfigDict
) -> str:
    """Why results are not those of the row; "" if they are."""
    split, stages = config.data.eval_split, values["stages"]
    if values["step"] != config.total_steps:
        return f"it is of step {values['step']}, the last one is {config.total_steps}"
    checkpoints = run / workdir_lib.CHECKPOINTS
    if files.modified(path) < checkpoint_scores.written(checkpoints, values["step"]):
        return "it is older than the checkpoint"
    several = len(values.get("models", "1")) != 1 and stages.get("model") == ""
    if "model" not in stages or several:
        return "it does not score the model alone"
    known, found = workdir_lib.read_splits(run), values.get("fingerprint")
    if found and split in known and known[split].fingerprint != found:
        return f"it is of other images than those of {split!r} in training"
    if "config" in values:
        ours = evaluation.fields_that_matter(config)
        try:  # fields that configs have since then get their defaults
            theirs = evaluation.fields_that_matter(
                config_lib.make(**config_lib.json_like(values["config"]))
            )
        except UserError:
            return "its config is of another version"
        for key in sorted(ours.keys() | theirs.keys()):
            if ours.get(key) != theirs.get(key):
                return (
                    f"it is with --config.{key}={theirs.get(key)!r}, the run has "
                    f"{ours.get(key)!r}"
                )
    return ""


def differing_options(
    runs: Mapping[str, Mapping[str, Evaluation]],
) -> Iterator[str]:
    """A line for each option in which runs differ whose scores share a column.

    Args:
      runs: what ``read`` has found of each, by its name.
    """
    firsts: dict[tuple, tuple[str, dict[str, Any]]] = {}
    told = set()
    for run, evaluations in runs.items():
        for name, found in evaluations.items():
            column = name, found.stages
            first, ours = firsts.setdefault(column, (run, found.options))
            for key in ours.keys() | found.options.keys():
                pair = ours.get(key), found.options.get(key)
                # Tiles change nothing.
                if pair[0] != pair[1] and key != "tile" and (column, key) not in told:
                    told.add((column, key))
                    folder = f"{workdir_lib.EVALUATION}/{name}".rstrip("/")
                    yield (
                        f"{folder} of {run} has {key} {pair[1]}, of {first} {pair[0]}"
                    )


def miou(confusion: np.ndarray) -> float:
    """Of a confusion matrix [K, K]; rows are the truth."""
    return metrics.scores(confusion)["miou"]


def _scores(values: Mapping[str, Any], path: Path) -> dict[str, float]:
    """What ``experiments.evaluate`` has measured, by name.

    "seg" of the network alone, "seg_with_flip" and "seg_with_crf" with options and a
    CRF; the mIoU of these, and within 1, 2, 3, 5, 10, 20 or 40 px of a boundary of the
    truth: "mIoU_with_crf", "mIoU_within_5px_with_crf".
    """
    scores: dict[str, float] = {}
    suffix = ""
    for title, key in values["stages"].items():
        stage = values.get(key, {}) if key else values
        if title != "model":
            name = "_".join(title.lower().replace(",", "").split())
            suffix = f"{suffix}_{name.removeprefix('with_') if suffix else name}"
            if counts := stage.get("confusion"):
                if any(len(row) != len(counts) for row in counts):
                    raise UserError(
                        f"{path}: the confusion matrix {title} is not square; remove "
                        "the file and evaluate again"
                    )
                scores[f"mIoU{suffix}"] = miou(np.array(counts, np.int64))
        for numbers in stage.get("metrics", {}).values():
            scores |= {f"{name}{suffix}": _float(x) for name, x in numbers.items()}
        bands = stage.get("trimap", {}).get("miou", [])
        for radius in _BANDS:
            if radius <= len(bands):
                name = f"mIoU_within_{radius}px{suffix}"
                scores[name] = _float(bands[radius - 1])
    return scores


def _float(value: float | None) -> float:
    return math.nan if value is None else float(value)
