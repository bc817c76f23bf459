"""What train, evaluate and predict share: model, dataset and predictor of a config."""

import json
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from ml_collections import ConfigDict

from experiments import cli
from segjax import checkpoint, inference, models, sharding
from segjax.data import datasets
from segjax.errors import UserError
from segjax.ops import geometry


def make_predictor(config: ConfigDict, model: nn.Module) -> inference.Predictor:
    """The config's way of predicting whole images: at once, or in ``config.tile``s."""
    if config.tile:
        return inference.overlap_tile(model, config.tile)
    return inference.whole(model)


def make_folder(folder: Path) -> None:
    """Makes the folder given as --output, with its parents."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder}: {error.strerror}") from error


def save_dataset(info: datasets.Dataset, path: Path) -> None:
    """Class names, palette, mean and channels, for programs without the data."""
    values = info._asdict() | {"palette": np.asarray(info.palette).tolist()}
    path.write_text(json.dumps(values, indent=1) + "\n")


def load_dataset(path: Path) -> datasets.Dataset:
    """Reads what ``save_dataset`` wrote."""
    if not path.is_file():
        raise UserError(f"{path} not found: is {path.parent} a training workdir?")
    values = json.loads(path.read_text())
    values["palette"] = np.array(values["palette"], np.uint8)
    for key in ("classes", "mean"):
        values[key] = tuple(values[key])
    return datasets.Dataset(**values)


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


def load_model(
    config: ConfigDict,
    workdir: Path,
    info: datasets.Dataset,
    which: str,
    mesh: jax.sharding.Mesh,
) -> tuple[nn.Module, dict, int]:
    """The model of a workdir and the variables of one of its checkpoints.

    Args:
      config: of the run.
      workdir: of the run.
      info: its dataset.
      which: "best", "latest" or a step.
      mesh: whose devices get the variables.

    Returns:
      model, variables replicated on all devices, step.
    """
    model = models.build(config, len(info.classes))
    side = geometry.nearest_sides(model.tiling, 64)[-1]
    images = jax.ShapeDtypeStruct((1, side, side, info.channels), np.uint8)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    shapes = jax.eval_shape(lambda x: model.init(keys, x, train=True), images)
    place = sharding.replicated(mesh)
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        {"params": shapes["params"], "batch_stats": shapes.get("batch_stats", {})},
    )
    if which not in ("best", "latest") and not which.isdigit():
        raise UserError(f"--checkpoint={which}: expected 'best', 'latest' or a step")
    best = workdir / "best"
    # A run that has not evaluated yet has an empty folder.
    if which == "best" and not any(path.name.isdigit() for path in best.glob("*")):
        cli.log(f"no best checkpoint in {workdir} yet: taking the latest")
        which = "latest"
    folder = best if which == "best" else workdir / "checkpoints"
    step = int(which) if which.isdigit() else None
    if step is not None and (best / which).is_dir():
        folder = best
    variables, step, _ = checkpoint.restore_model(folder, step, abstract)
    return model, variables, step
