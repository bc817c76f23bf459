"""What is measured of each method: scores, costs, speed and predictions."""

import csv
import io
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import unflatten_dict
from ml_collections import ConfigDict

from experiments import evaluate
from experiments.comparison.methods import Method, Run
from experiments.shared import evaluation, predict_flags
from experiments.sweeps import rows as sweep_rows
from segjax import checkpoint_scores, files, inference, metrics, models
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.analysis.summary import summary
from segjax.data import datasets
from segjax.errors import UserError
from segjax.models.network import abstract_variables
from segjax.ops import geometry

SPEED_IMAGES = 16
_SECONDS = 1.0  # that a speed is measured for, at least
_REPEATS = 3


class Protocol(NamedTuple):
    """How all methods are predicted and scored."""

    split: str  # "": config.data.eval_split of the first run
    options: Callable[[ConfigDict], inference.PredictOptions]
    crf: str
    padding: float
    max_pixels: float
    overrides: Mapping[str, Any]  # of the fields of all configs
    reuse: bool  # results of evaluations that are there already


class Data(NamedTuple):
    """The images that all methods are scored on."""

    split: str
    source: datasets.Source
    info: datasets.Dataset
    fingerprint: str
    size: tuple[int, int]  # (height, width) that most images have
    sizes: int  # how many different ones there are


class Scored(NamedTuple):
    """The scores of one run."""

    run: Run
    step: int
    scores: dict[str, float]  # of metrics.SCORES, 0 to 1
    classes: np.ndarray  # IoU of the classes, NaN for absent ones
    images: np.ndarray  # mIoU of single images, NaN where all is void


class Costs(NamedTuple):
    """What a method costs; NaN: cannot be told for this network."""

    network: str
    parameters: float
    flops: float  # of one image of Data.size


class Result(NamedTuple):
    """A row of the tables."""

    name: str
    runs: tuple[Scored, ...]
    costs: Costs
    rate: float  # images per second of the first run
    labels: dict[int, np.ndarray]  # image -> predicted ids of the first run


def configs(
    methods: Sequence[Method], overrides: Mapping[str, Any]
) -> dict[Run, ConfigDict]:
    """The configs of all runs, with overrides for all of them.

    Raises:
      UserError: a config cannot be read, or runs of one method differ in more than
        their seed.
    """
    found = {}
    for method in methods:
        for run in method.runs:
            saved = config_lib.load(run.workdir / workdir_lib.CONFIG)
            values = {**config_lib.flatten(saved), **overrides}
            found[run] = config_lib.make(**unflatten_dict(values, sep="."))
            config_lib.check(found[run])
        first, *others = method.runs
        recipes = {run: _recipe(found[run]) for run in method.runs}
        for run in others:
            if sweep_rows.hash_of(recipes[run]) != sweep_rows.hash_of(recipes[first]):
                raise UserError(_difference(method, found, first, run))
            _check_same_training_images(method, found[first], first, run)
    return found


def _check_same_training_images(
    method: Method, config: ConfigDict, first: Run, other: Run
) -> None:
    """The folder of the data may differ between runs of one method, not its images."""
    split = config.data.train_split
    a, b = (workdir_lib.read_splits(run.workdir).get(split) for run in (first, other))
    if a and b and a != b:
        raise UserError(
            f"{method.name}: {other.workdir} was trained on {b.images} images "
            f"(fingerprint {b.fingerprint}), {first.workdir} on {a.images} "
            f"({a.fingerprint}); runs of one method differ in their seed alone: give "
            "them names of their own"
        )


def _recipe(config: ConfigDict) -> ConfigDict:
    """A run that this one has started from counts by its recipe, not its folder.

    So the last stages of chains, one for each seed, are runs of one method.
    """
    before = files.path(config.init_from) / workdir_lib.CONFIG
    if config.init_from and before.is_file():
        values = config_lib.flatten(config_lib.load(before))
        earlier = config_lib.make(**unflatten_dict(values, sep="."))
        config = config.copy_and_resolve_references()
        config.init_from = f"a run of {sweep_rows.hash_of(_recipe(earlier))}"
    return config


def _difference(
    method: Method, found: Mapping[Run, ConfigDict], first: Run, other: Run
) -> str:
    a, b = (config_lib.flatten(found[run]) for run in (first, other))
    c, d = (config_lib.flatten(_recipe(found[run])) for run in (first, other))
    different = [
        key
        for key in a.keys() | b.keys()
        if c.get(key) != d.get(key) and key not in sweep_rows.FREE
    ]
    key = "model_name" if "model_name" in different else min(different, default="seed")
    return (
        f"{method.name}: {other.workdir} was trained with --config.{key}="
        f"{b.get(key)!r}, {first.workdir} with {a.get(key)!r}; runs of one method "
        "differ in their seed alone: give them names of their own"
    )


def open_data(runs: Mapping[Run, ConfigDict], split: str) -> Data:
    """The images of the split, which must be the same for all runs.

    Raises:
      UserError: the data are not there, or a run was trained for other classes or has
        other images.
    """
    first, *_ = runs
    split = split or runs[first].data.eval_split
    opened: dict[str, tuple[datasets.Source, datasets.Dataset, str]] = {}
    data: Data | None = None
    for run, config in runs.items():
        key = json.dumps(config_lib.json_like(config.data), sort_keys=True)
        if key not in opened:
            source, info = datasets.load(config.data, split)
            opened[key] = source, info, datasets.fingerprint(source)
        source, info, fingerprint = opened[key]
        trained = workdir_lib.read_dataset(run.workdir)
        if data is None:
            counts = Counter(source.sizes)
            size = counts.most_common(1)[0][0]
            data = Data(split, source, info, fingerprint, size, len(counts))
        if trained.classes != data.info.classes:
            theirs, ours = trained.classes, data.info.classes
            raise UserError(
                f"{run.workdir} was trained for the classes {_short(theirs)} of "
                f"{trained.name}, {first.workdir} has {_short(ours)} of "
                f"{data.info.name}; expected runs of the same classes"
            )
        if fingerprint != data.fingerprint:
            sizes = ["{}x{}".format(*s.sizes[0]) for s in (source, data.source)]
            raise UserError(
                f"{run.workdir}: the split {split!r} has {len(source)} images (the "
                f"first of {sizes[0]}, fingerprint {fingerprint}), that of "
                f"{first.workdir} {len(data.source)} ({sizes[1]}, {data.fingerprint}); "
                "expected the same images"
            )
    assert data is not None
    return data


def _short(classes: Sequence[str]) -> str:
    text = ", ".join(classes[:4])
    return f"{text} and {len(classes) - 4} more" if len(classes) > 4 else text


# Scores


def score(
    run: Run, config: ConfigDict, *, data: Data, protocol: Protocol, folder: Path
) -> Scored:
    """Evaluates a run, unless that has been done already.

    Args:
      run: the run.
      config: of it.
      data: the images.
      protocol: how to predict them.
      folder: where the results are written; those in the workdir are not touched.
    """
    where, step = checkpoint_scores.find(run.workdir, run.checkpoint)
    expected = _description(run, config, step=step, data=data, protocol=protocol)
    name = f"{data.split}.json"
    written = checkpoint_scores.written(where, step)
    for place in (run.workdir / workdir_lib.EVALUATION, folder):
        path = place / name
        there = protocol.reuse and path.is_file() and files.modified(path) >= written
        if there and (found := _existing(path, expected, data)):
            return found._replace(run=run)
    values = evaluate.evaluate(
        config,
        run.workdir,
        checkpoint=run.checkpoint,
        split=data.split,
        output=folder,
        options=protocol.options(config),
        crf=protocol.crf,
        stages="last",
        padding=protocol.padding,
        max_pixels=protocol.max_pixels,
        worst=0,
    )
    found = _read(folder, values, data)
    assert found is not None
    return found._replace(run=run)


def _existing(path: Path, expected: Mapping[str, Any], data: Data) -> Scored | None:
    """The scores in a file; None if they are others, or damaged."""
    values = files.read_json(path, "results of experiments.evaluate")
    try:
        return (
            _read(path.parent, values, data) if _describes(values, expected) else None
        )
    except (AttributeError, LookupError, TypeError, ValueError, csv.Error):
        return None


def _description(
    run: Run, config: ConfigDict, *, step: int, data: Data, protocol: Protocol
) -> dict[str, Any]:
    """What an evaluation says of itself if it is the one that is needed."""
    settings = predict_flags.crf_settings(config, protocol.crf)
    values = {
        "split": data.split,
        "fingerprint": data.fingerprint,
        "models": [{"path": str(run.workdir), "step": step}],
        "options": protocol.options(config)._asdict(),
        "crf": settings._asdict() if settings else None,
        "padding": protocol.padding,
        "max_pixels": protocol.max_pixels,
        "config": evaluation.fields_that_matter(config),
    }
    return json.loads(json.dumps(values))


def _describes(values: Any, expected: Mapping[str, Any]) -> bool:
    """Whether results are of this evaluation; those of earlier versions are not."""
    if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
        return False
    try:  # fields that configs have since then get their defaults
        config = config_lib.make(**config_lib.json_like(values["config"]))
    except UserError:
        return False
    found = dict(values) | {"config": evaluation.fields_that_matter(config)}
    found["crf"] = values["crf"].get("settings") if "crf" in values else None
    found = json.loads(json.dumps(found))
    return all(key in found and found[key] == expected[key] for key in expected)


def _read(folder: Path, values: Mapping[str, Any], data: Data) -> Scored | None:
    """The scores of the last stage; None if the rows of the images are not there."""
    *_, key = values["stages"].values()
    last = values[key] if key else values
    path = folder / f"{data.split}_images.csv"
    if not path.is_file():
        return None
    text = io.StringIO(path.read_bytes().decode(), newline="")
    column = f"{key}_miou" if key and len(values["stages"]) > 1 else "miou"
    images = [_float(row[column]) for row in csv.DictReader(text, restval="-")]
    if len(images) != len(data.source):
        return None
    ious = [last["classes"][name]["iou"] for name in data.info.classes]
    return Scored(
        run=Run(folder, ""),
        step=values["step"],
        scores={name: _float(last["scores"][name]) for name in metrics.SCORES},
        classes=np.array([_float(value) for value in ious]),
        images=np.array(images),
    )


def _float(value: Any) -> float:
    return math.nan if value in (None, "") else float(value)


# Costs


def costs(config: ConfigDict, data: Data) -> Costs:
    """Parameters and FLOPs of an image of the size that most have, in one piece."""
    model = models.build(config, len(data.info.classes))
    tiling = model.tiling
    needed = [side + 2 * tiling.margin for side in data.size]
    sides = [geometry.nearest_sides(tiling, side)[-1] for side in needed]
    channels = data.info.channels
    try:
        whole = summary(model, (*sides, channels), activations=False)
        return Costs(config.model_name, whole.parameters, whole.flops)
    except UserError:  # an operation that cannot be followed, as in a lattice
        parameters = abstract_variables(model, channels)["params"]
        count = sum(math.prod(x.shape) for x in jax.tree.leaves(parameters))
        return Costs(config.model_name, count, math.nan)


# Predictions


def predict(
    run: Run,
    config: ConfigDict,
    *,
    data: Data,
    protocol: Protocol,
    chosen: Sequence[int],
) -> tuple[dict[int, np.ndarray], float]:
    """Predicts single images, and measures how fast.

    Args:
      run: whose network predicts.
      config: of it.
      data: the images.
      protocol: how to predict them.
      chosen: numbers of the images whose predictions are wanted.

    Returns:
      ids [H, W] by number, and images per second, of the first SPEED_IMAGES images of
      the split, which are in memory and whose shapes are compiled.
    """
    segmenter = inference.load(
        run.workdir,
        checkpoint=run.checkpoint,
        options=protocol.options(config),
        crf=predict_flags.crf_settings(config, protocol.crf),
        config=config,
    )
    limits = {"padding": protocol.padding, "max_pixels": protocol.max_pixels}
    images = [data.source[i]["image"] for i in chosen]
    labels = segmenter.predict(images, **limits) if images else []
    timed = [data.source[i]["image"] for i in range(len(data.source))[:SPEED_IMAGES]]
    segmenter.predict(timed, **limits)  # compiles
    seconds: list[float] = []
    while sum(seconds) < _SECONDS or len(seconds) < _REPEATS:
        began = time.perf_counter()
        segmenter.predict(timed, **limits)
        seconds.append(time.perf_counter() - began)
    rate = len(timed) / statistics.median(seconds)
    return dict(zip(chosen, labels, strict=True)), rate
