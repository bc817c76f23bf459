"""What a model starts from: a file of weights, or the best state of another run."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from segjax import config as config_lib
from segjax import files, image_stats, models, weights
from segjax import workdir as workdir_lib
from segjax.inference.trained import load_model
from segjax.models import crfrnn
from segjax.models.network import abstract_variables


def model_info(config: ConfigDict, classes: tuple[str, ...] = ()) -> weights.ModelInfo:
    """What is compared when a model of this config starts from weights.

    Args:
      config: of which `model_name` and `model` are read.
      classes: names of the classes; () if they are not known.
    """
    fields = config_lib.json_like(config.model)
    if "base_options" in fields:  # of the network within, too
        fields |= crfrnn.base_fields(fields["base"], fields["base_options"])
    images = weights.Images(*image_stats.find(fields["image_stats"]))
    return weights.ModelInfo(config.model_name, fields, images, tuple(classes))


def image_stats_of(images: weights.Images | None) -> str:
    """The name of these image statistics, to a hundredth of a gray level, or ""."""
    if images is None:
        return ""
    for name, (scale, mean, deviation) in image_stats.IMAGE_STATS.items():
        known = scale == images.scale and len(mean) == len(images.mean)
        near = dict(rtol=0, atol=0.01 * scale)
        if (
            known
            and np.allclose(mean, images.mean, **near)
            and np.allclose(deviation, images.deviation, **near)
        ):
            return name
    return ""


def start(
    source: str,
    config: ConfigDict,
    *,
    classes: tuple[str, ...],
    variables: dict[str, Any],
    mesh: jax.sharding.Mesh,
) -> tuple[dict[str, Any], weights.Report]:
    """Fills a new model from ``config.init_from``.

    Args:
      source: a file of experiments.import_weights, or the folder of a training run.
      config: of the new model.
      classes: names of the classes of the new model.
      variables: {"params", "batch_stats"} of the new model: nested dicts of arrays.
      mesh: whose devices read the checkpoint of a run.

    Returns:
      `variables` with arrays of the source, and a report of what was done.

    Raises:
      UserError: no such run or file, or one of another network.
    """
    path = files.path(source)
    if path.is_dir():
        source_weights = weights_of_run(path, mesh)
    else:
        with files.on_disk(path) as file:
            source_weights = weights.read_saved(file)
    info = model_info(config, classes)
    return weights.start(path, source_weights, info=info, variables=variables)


def weights_of_run(workdir: Path, mesh: jax.sharding.Mesh) -> weights.Weights:
    """The best checkpoint of a run, or its latest if it has not evaluated yet.

    Raises:
      UserError: not the folder of a run, or it has no intact checkpoint.
    """
    info = workdir_lib.read_dataset(workdir)
    config = config_lib.load(workdir / workdir_lib.CONFIG)
    _, variables, step = load_model(config, workdir, info=info, which="best", mesh=mesh)
    shapes = shapes_of(config)
    return weights.Weights(
        arrays=weights.flatten(jax.device_get(variables)),
        info=model_info(config, info.classes),
        source=f"{config.model_name} trained on {info.name}, step {step}",
        num_classes=len(info.classes),
        heads=weights.heads_of(shapes(2, info.channels), shapes(3, info.channels)),
    )


def shapes_of(config: ConfigDict) -> Callable[..., weights.Shapes]:
    """From numbers of classes and channels to the shapes of all parameters, traced."""

    @functools.cache
    def shapes(num_classes: int, channels: int = 3) -> weights.Shapes:
        model = models.build(config, num_classes)
        leaves = weights.flatten(abstract_variables(model, channels))
        return {name: tuple(leaf.shape) for name, leaf in leaves.items()}

    return shapes
