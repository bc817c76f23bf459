"""What is known of each row of a sweep: scores, speed, cost, and what the model sees.

Costs and theoretical receptive fields are traced once per row and kept in numbers.json
beside sweep.json (delete it after changing a model); effective receptive fields are
measured on the first finished run of a row and kept in its folder.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments.sweeps import report_evaluations
from experiments.sweeps import rows as sweep_rows
from experiments.sweeps import runs as sweep_runs
from experiments.sweeps.report_evaluations import Evaluation
from experiments.sweeps.rows import Row
from experiments.sweeps.runs import State
from segjax import files, metrics, models, sharding
from segjax import workdir as workdir_lib
from segjax.analysis import receptive_field
from segjax.analysis.summary import summary
from segjax.data import datasets
from segjax.errors import UserError
from segjax.inference.trained import load_model
from segjax.models.network import abstract_variables
from segjax.workdir import read_metrics

_ERF_IMAGES = 8
_NUMBER = {"type": "number"}
_SIDE = {"type": "integer", "minimum": 1}
_NUMBERS_SCHEMA = {
    "type": "object",
    "additionalProperties": {  # by hash
        "type": "object",
        "required": ["image", "parameters", "flops", "stride", "field", "seen"],
        "properties": {
            "image": {"type": "array", "items": _SIDE, "minItems": 3, "maxItems": 3},
            "parameters": _NUMBER,
            "flops": _NUMBER,
            "stride": _NUMBER,
            "field": {"type": "array", "items": _NUMBER, "minItems": 2, "maxItems": 2},
            "seen": _NUMBER,
        },
        "additionalProperties": False,
    },
}
_FIELD_SCHEMA = {
    "type": "object",
    "required": ["step", "side"],
    "properties": {"step": {"type": "integer"}, "side": _NUMBER},
}


class Run(NamedTuple):
    """One row with one seed."""

    seed: int
    folder: Path
    state: State
    confusion: np.ndarray | None  # [K, K] of a finished run, rows are the truth
    train_rate: float  # images per second; NaN: unknown, as below
    eval_rate: float
    compile_seconds: float
    peak_bytes: float
    peak_of: str  # "device" or "process"
    evaluations: Mapping[str, Evaluation] = {}  # see report_evaluations.read

    @property
    def evaluated(self) -> dict[str, float]:
        """Scores of experiments.evaluate by name."""
        return report_evaluations.named_scores(self.evaluations)


class Numbers(NamedTuple):
    """What does not depend on training; NaN: cannot be told for this model."""

    image: tuple[int, int, int]  # (H, W, C) of a training example
    parameters: float
    flops: float  # of one such image
    stride: float
    field: tuple[float, float]  # smallest and largest of the logits' locations
    seen: float  # rows of that image that the median row of the logits depends on


class Result(NamedTuple):
    """A row of the table."""

    row: Row
    command: str
    runs: tuple[Run, ...]
    numbers: Numbers
    erf: float  # px, side of the effective receptive field; NaN: not measured

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.confusion is not None]

    def scores(self, of: Any) -> np.ndarray:
        """``of(confusion)`` of all finished runs, float64 [n]."""
        return np.array([of(run.confusion) for run in self.finished], np.float64)

    def evaluated(self, name: str) -> np.ndarray:
        """A score of the runs that were evaluated so, float64 [n]."""
        known = [run.evaluated[name] for run in self.runs if name in run.evaluated]
        return np.array(known, np.float64)


def class_iou(confusion: np.ndarray, index: int) -> float:
    return metrics.scores(confusion)["iou"][index]


def told_apart(confusion: np.ndarray, pair: Sequence[int]) -> float:
    """How well two classes are told apart, where the model sees one of the two.

    For each of the classes, the share of correct predictions among its pixels that were
    predicted as either; returns the mean of the two. Guessing scores 0.5.
    """
    part = confusion[np.ix_(pair, pair)].astype(np.float64)
    total = part.sum(axis=1)
    return float(np.mean(np.diag(part) / total)) if total.all() else math.nan


def read_run(folder: Path, seed: int, config: ConfigDict) -> Run:
    """What a run of a row with this config has written so far, and its evaluations."""
    state = sweep_runs.state(folder, config.total_steps)
    found = workdir_lib.read_validation(folder)
    rates = [
        row["images_per_second"]
        for row in read_metrics(folder)
        if "images_per_second" in row
    ]
    done = state.kind == "finished"
    return Run(
        seed,
        folder,
        state,
        np.array(found["confusion"], np.int64) if done else None,
        # The median, because the first steps include compilation.
        statistics.median(rates) if rates else math.nan,
        found.get("images_per_second", math.nan),
        found.get("compile_seconds", math.nan),
        found.get("peak_bytes", math.nan),
        found.get("peak_of", ""),
        report_evaluations.read(folder, config) if done else {},
    )


def numbers(rows: Sequence[Row], folder: Path, progress: Any) -> dict[str, Numbers]:
    """By hash; traces those that numbers.json in ``folder`` does not have."""
    path, known = folder / "numbers.json", {}
    if path.is_file():
        known = files.read_json(path, "what a report has traced", _NUMBERS_SCHEMA)
    for row in progress([row for row in rows if row.hash not in known]):
        known[row.hash] = _trace(row)._asdict()
        files.write_json(path, known)
    numbers = {}
    for row in rows:
        values = known[row.hash]
        image, field = tuple(values["image"]), tuple(values["field"])
        numbers[row.hash] = Numbers(**values | {"image": image, "field": field})
    return numbers


def _trace(row: Row) -> Numbers:
    classes, image = sweep_rows.example(row.config)
    model = models.build(row.config, classes)
    try:
        whole = summary(model, image, activations=False)
        reach = receptive_field.rows_seen(model, image)
    except UserError:  # an operation that cannot be followed, as in a lattice
        parameters = abstract_variables(model, image[-1])["params"]
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(parameters))
        nothing = math.nan
        return Numbers(image, count, nothing, nothing, (nothing,) * 2, nothing)
    return Numbers(
        image,
        whole.parameters,
        whole.flops,
        whole.output_stride,
        whole.logits.receptive_field,
        float(np.median(reach[:, 1] - reach[:, 0] + 1)),
    )


def effective_field(row: Row, run: Run) -> float:
    """Side of the effective receptive field of a finished run, on validation images.

    NaN if the data are not there; kept in the folder of the run.
    """
    path = run.folder / "effective_field.json"
    if path.is_file():
        what = "the effective receptive field that a report has measured"
        measured = files.read_json(path, what, _FIELD_SCHEMA)
        if measured["step"] == run.state.step:
            return measured["side"]
    config = row.config
    try:
        source, info = datasets.load(config.data, config.data.eval_split)
    except UserError:
        return math.nan
    _, (height, width, _) = sweep_rows.example(config)
    chosen = [source[i]["image"] for i in range(min(_ERF_IMAGES, len(source)))]
    sized = [cv2.resize(image, (width, height)) for image in chosen]
    images = np.stack([image.reshape(height, width, -1) for image in sized])
    mesh = sharding.make_mesh()
    model, variables, _ = load_model(
        config, run.folder, info=info, which="latest", mesh=mesh
    )
    influence = receptive_field.effective(model, variables, images=images)
    side = receptive_field.effective_side(influence)
    files.write_json(path, {"step": run.state.step, "side": side}, indent=None)
    return side
