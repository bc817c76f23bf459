"""What the programs share: the parts of a config's run, built and checked."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from experiments.shared import cli
from segjax import config as config_lib
from segjax import (
    evaluators,
    inference,
    models,
    optim,
    sharding,
    training,
    weights,
)
from segjax import workdir as workdir_lib
from segjax.data import datasets, folder, pipeline, transforms
from segjax.errors import UserError
from segjax.inference.trained import load_model
from segjax.ops import mean_field

CRF_HELP = (
    "Refine by a fully connected CRF: 'config' (the fields config.crf), a FILE.json of "
    f"experiments.tune_crf, or one of {', '.join(mean_field.SETTINGS)}; '': none."
)


class Setup(NamedTuple):
    """The parts of a training run of a config."""

    model: nn.Module
    source: Any  # of the training split
    info: datasets.Dataset
    options: transforms.Options
    mesh: jax.sharding.Mesh
    init: Callable[[], training.TrainState]
    step_of: Callable[[dict], Callable]  # parameters -> the jitted step
    batches: Callable[[int], Iterator[dict]]  # this process's share, from a batch on


def set_up(config: ConfigDict) -> Setup:
    """Checks the config and the data; compiles nothing and reads no images yet.

    Raises:
      UserError: a field of the config is wrong, or the data are not there.
    """
    config_lib.check(config)
    sharding.check_batch_size(config.batch_size, "batch_size", config.accumulate)
    source, info = datasets.load(config.data, config.data.train_split)
    given = len(config.loss.class_weights)
    if given not in (0, len(info.classes)):
        raise UserError(
            f"config.loss.class_weights has {given} values; {info.name} has "
            f"{len(info.classes)} classes"
        )
    model = models.build(config, len(info.classes))
    training.check_loss(model, config.loss)
    options = transforms.options(config.augment, info.mean)
    options = options._replace(
        crop=options.crop if any(options.crop) else common_size(source),
        margin=model.tiling.margin,
    )
    mesh = sharding.make_mesh()
    shape = (*options.crop, info.channels)
    init, step_of = training_programs(config, model, shape, mesh)

    def batches(start: int) -> Iterator[dict]:
        return pipeline.train_batches(
            source,
            options,
            config.batch_size,
            config.seed,
            start,
            (jax.process_index(), jax.process_count()),
            config.workers,
            config.threads,
        )

    if config.data.name == "folder":
        cli.log(folder.report(datasets.scan_folder(config.data)))
    return Setup(model, source, info, options, mesh, init, step_of, batches)


def training_programs(
    config: ConfigDict,
    model: nn.Module,
    image: tuple[int, int, int],
    mesh: jax.sharding.Mesh,
) -> tuple[Callable, Callable]:
    """The jitted first state, and what makes the jitted step from its parameters.

    Args:
      config: checked.
      model: of the config.
      image: (H, W, C) of a training example.
      mesh: of the devices that train; compiling needs no more of them than their kind.

    Returns:
      ``init()`` and ``step_of(params)``; the step takes ``(state, batch)``, the state
      is replicated and donated.
    """
    place = sharding.replicated(mesh)

    def optimizer_of(params: dict):
        return optim.create(config.optim, params, config.total_steps)

    def init() -> training.TrainState:
        return training.create_state(model, optimizer_of, image, config.seed)

    def step_of(params: dict) -> Callable:
        step = training.make_step(
            model, optimizer_of(params), config.loss, config.seed, config.accumulate
        )
        return jax.jit(step, donate_argnums=0, out_shardings=place)

    return jax.jit(init, out_shardings=place), step_of


def common_size(source) -> tuple[int, int]:
    sizes = set(source.sizes)
    if len(sizes) > 1:
        raise UserError(
            f"the training images have {len(sizes)} different sizes, such as "
            f"{sorted(sizes)[0]} and {sorted(sizes)[-1]}: give a common size, such as "
            "--config.augment.crop=256,256"
        )
    return sizes.pop()


def make_eval_step(
    config: ConfigDict, model: nn.Module, classes: int, mesh: jax.sharding.Mesh
) -> Callable:
    """The jitted ``evaluators.make_eval_step`` of a config."""
    step = evaluators.make_eval_step(make_predictor(config, model), classes)
    places = sharding.replicated(mesh), sharding.split(mesh)
    return jax.jit(step, out_shardings=places)


def eval_batches(config: ConfigDict, source: Any, channels: int) -> Iterator[dict]:
    """This process's share of the evaluation batches of a source."""
    return pipeline.eval_batches(
        source,
        source.sizes,
        config.eval_batch_size,
        channels,
        (jax.process_index(), jax.process_count()),
        config.threads,
    )


def versions() -> dict:
    """Packages, devices, command line and git commit of this run."""
    packages = ["jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy"]
    found = {name: importlib.metadata.version(name) for name in packages}
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
    except OSError:  # no git, as in slim container images
        commit = ""
    return found | {
        "python": sys.version.split()[0],
        "git_commit": commit or "not a git checkout",
        "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "processes": jax.process_count(),
        "host_cores": os.cpu_count(),
        "command": sys.argv,
    }


def make_predictor(config: ConfigDict, model: nn.Module) -> inference.Predictor:
    """The config's way of predicting whole images: at once, or in ``config.tile``s."""
    if config.tile:
        return inference.overlap_tile(model, config.tile)
    return inference.whole(model)


def crf_settings(config: ConfigDict, choice: str) -> mean_field.Settings | None:
    """The CRF that ``--crf`` chooses; None for none.

    Raises:
      UserError: an unknown name, an unreadable file or a bad field.
    """
    if choice in ("", "none"):
        return None
    if choice == "config":
        return inference.crf_settings(config.crf, "config.crf")
    if choice in mean_field.SETTINGS:
        return mean_field.SETTINGS[choice]
    path = Path(choice).expanduser()
    if not path.is_file():
        raise UserError(
            f"--crf={choice}: expected 'config' (the fields config.crf), a file of "
            f"experiments.tune_crf, or one of {', '.join(mean_field.SETTINGS)}"
        )
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--crf={path} is not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise UserError(f"--crf={path}: expected an object of fields such as sigmas")
    return inference.crf_settings(values, f"--crf={path}")


def make_folder(folder: Path) -> None:
    """Makes the folder given as --output, with its parents."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror}") from error


def check_same_classes(trained: datasets.Dataset, info: datasets.Dataset) -> None:
    """Raises UserError if a model of ``trained`` cannot be used on ``info``."""
    for what, have, want in (
        ("classes", len(trained.classes), len(info.classes)),
        ("image channels", trained.channels, info.channels),
    ):
        if have != want:
            remedy = f"use data with the same {what} or train in another --workdir"
            if what == "classes" and info.name == "folder":
                # Without that file, the masks at hand tell how many there are.
                remedy += ", or name all classes in config.data.classes"
            raise UserError(
                f"the checkpoint was trained on {trained.name} with {have} {what}, but "
                f"{info.name} has {want}: {remedy}"
            )


def start_from(
    workdir: Path,
    params: dict,
    batch_stats: dict,
    num_classes: int,
    mesh: jax.sharding.Mesh,
) -> tuple[dict, dict, weights.Report]:
    """Starts a model from another training run, by the names of its layers.

    Of the run's best checkpoint, or its latest if it has not evaluated yet. Layers that
    only the new model has stay as they are, and so do those that differ in nothing but
    the number of classes; all are reported.

    Args:
      workdir: of the other run.
      params, batch_stats: of the new model as initialized.
      num_classes: of the new model.
      mesh: whose devices read the checkpoint.

    Returns:
      The two with arrays of that run, and a report.

    Raises:
      UserError: no such run, or one whose layers of the same names differ otherwise.
    """
    info = workdir_lib.read_dataset(workdir)
    config = config_lib.load(workdir / "config.json")
    _, variables, step = load_model(config, workdir, info, "best", mesh)
    tree = {"params": params, "batch_stats": batch_stats}
    theirs = _by_layer(weights.flatten(jax.device_get(variables)))
    classes = len(info.classes), num_classes
    chosen, loaded, fresh, wrong = {}, [], {}, []
    for layer, ours in _by_layer(weights.flatten(tree)).items():
        found = theirs.pop(layer, {})
        other = [
            f"{name} {found[name].shape if name in found else 'missing'} there, "
            f"{ours[name].shape if name in ours else 'missing'} here"
            for name in sorted(ours.keys() | found.keys())
            if name not in ours
            or name not in found
            or not _same_but_classes(found[name].shape, ours[name].shape, classes)
        ]
        if not found:
            fresh[layer] = "not in that run"
        elif other:
            wrong += other
        elif any(found[name].shape != ours[name].shape for name in ours):
            fresh[layer] = f"that run has {classes[0]} classes"
        else:
            loaded.append(layer)
            chosen |= found
    if wrong or not loaded:
        reason = wrong[0] if wrong else "no layer has the same name"
        raise UserError(
            f"config.init_from: the {config.model_name} of {workdir} does not fit the "
            f"model: {reason}; give both the same fields of config.model"
        )
    new = weights.replace(tree, chosen)
    source = f"{workdir}, step {step}"
    report = weights.Report(source, tuple(loaded), fresh, tuple(theirs))
    return new["params"], new["batch_stats"], report


def _by_layer(leaves: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """{"params/LAYER/kernel": array} -> {LAYER: {"params/LAYER/kernel": array}}."""
    layers: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        layer = name.partition("/")[2].rpartition("/")[0]
        layers.setdefault(layer, {})[name] = leaf
    return layers


def _same_but_classes(
    theirs: tuple[int, ...], ours: tuple[int, ...], classes: tuple[int, int]
) -> bool:
    """Whether two shapes are equal but for axes in proportion to the class counts."""
    return len(theirs) == len(ours) and all(
        a == b or a * classes[1] == b * classes[0] for a, b in zip(theirs, ours)
    )
