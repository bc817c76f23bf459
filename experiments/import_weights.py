"""Converts published weights into a file that training can start from.

    python -m experiments.import_weights fcn8s-heavy-pascal.caffemodel --model=fcn8s \\
        --output=weights/fcn8s.safetensors
    python -m experiments.import_weights resnet50-19c8e357.pth \\
        --config=configs/pspnet50_camvid.py --config.model.stem=plain \\
        --output=weights/pspnet50_imagenet.safetensors
    python -m experiments.import_weights runs/unet --output=weights/unet.safetensors

--model names a published network (docs/weights.md) or one of our models with its
default fields; --config takes model and fields from a configuration instead. Prints
which array became which parameter, and writes the parameters as safetensors. Class
scores keep the file's number of classes; what the file does not have is left out, and
is initialized freshly when training starts from the file.

Of a folder of a training run, the best checkpoint is written as such a file.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import absl.logging
import jax
import numpy as np
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict, config_flags

from experiments.shared import cli
from segjax import config as config_lib
from segjax import models, sharding, weights
from segjax import workdir as workdir_lib
from segjax.errors import UserError
from segjax.inference.trained import load_model
from segjax.ops import geometry, image
from segjax.weights import catalog, convert


def import_weights(
    file: Path, config: ConfigDict, output: Path, ignore: str = ""
) -> weights.Imported:
    """Converts ``file`` for the model of ``config`` and writes ``output``.

    Raises:
      UserError: the file cannot be read or does not fit the model.
    """
    _check_output(output)
    model, fields = config.model_name, config_lib.json_like(config.model)
    images = convert.Images(*image.IMAGE_STATS[_image_stats(fields)])
    try:
        imported = weights.import_arrays(
            weights.read(file), model, fields, shapes_of(config), images, ignore
        )
    except UserError as error:
        # Readers already name the file.
        text = str(error)
        raise UserError(text if str(file) in text else f"{file}: {text}") from error
    weights.save(output, imported, model, fields)
    return imported


def export_run(workdir: Path, output: Path) -> weights.Imported:
    """Writes the best checkpoint of a training run as ``output``.

    Raises:
      UserError: not the folder of a run, or it has no intact checkpoint.
    """
    _check_output(output)
    info = workdir_lib.read_dataset(workdir)
    config = config_lib.load(workdir / "config.json")
    mesh = sharding.make_mesh()
    _, variables, step = load_model(config, workdir, info, "best", mesh)
    arrays = weights.flatten(jax.device_get(variables))
    rows = tuple(convert.Row(name, a.shape, (), "") for name, a in arrays.items())
    result = convert.Result(arrays, rows, (), (), (), ())
    shapes = shapes_of(config, info.channels)
    heads = weights.heads_of(shapes(2), shapes(3))
    source = f"{config.model_name} trained on {info.name}, step {step}"
    exported = weights.Imported(result, source, len(info.classes), heads)
    fields = config_lib.json_like(config.model)
    weights.save(output, exported, config.model_name, fields)
    return exported


def _check_output(output: Path) -> None:
    if output.suffix != ".safetensors":
        raise UserError(f"--output={output}: give a file ending in .safetensors")


def _image_stats(fields: Mapping[str, Any]) -> str:
    """Of the model, or of the network in it."""
    if "image_stats" in fields:
        return fields["image_stats"]
    options = dict(option.split("=", 1) for option in fields["base_options"])
    inner = models.model_fields(fields["base"])
    return options.get("image_stats", inner["image_stats"])


def shapes_of(config: ConfigDict, channels: int = 3) -> Callable[[int], weights.Shapes]:
    """From a number of classes to the shapes of all parameters, traced only."""

    def shapes(num_classes: int) -> weights.Shapes:
        model = models.build(config, num_classes)
        leaves = weights.flatten(abstract_variables(model, channels))
        return {name: tuple(leaf.shape) for name, leaf in leaves.items()}

    return shapes


def abstract_variables(model: nn.Module, channels: int = 3) -> dict:
    """{"params", "batch_stats"} of a model, as shapes."""
    side = geometry.nearest_sides(model.tiling, 64)[-1]

    def init():
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        return model.init(
            keys, np.zeros((1, side, side, channels), np.uint8), train=True
        )

    variables = jax.eval_shape(init)
    return {key: variables.get(key, {}) for key in ("params", "batch_stats")}


def main(argv) -> int:
    if len(argv) != 2:
        raise UserError("give one file of published weights; --help explains")
    absl.logging.set_verbosity("fatal")  # what JAX tells of the devices it looks for
    values = flags.FLAGS
    file, output = (Path(p).expanduser().absolute() for p in (argv[1], values.output))
    if file.is_dir():
        cli.start()
        imported = export_run(file, output)
    elif bool(values.model) == bool(values.config):
        raise UserError("give either --model=NAME or --config=FILE")
    else:
        config = values.config
        if values.model:
            model, fields = catalog.published(values.model, tuple(models.MODELS))
            config = config_lib.make(model_name=model, model=fields)
        imported = import_weights(file, config, output, values.ignore)
    for line in weights.describe(imported):
        print(line)
    print(f"written: {output}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("model", "", "A published network, or a model by its name.")
    config_flags.DEFINE_config_file("config", None, "Takes model and fields from here.")
    flags.DEFINE_string("output", None, "The .safetensors file.", required=True)
    flags.DEFINE_string("ignore", "", "Arrays to leave out: a regular expression.")
    cli.run(main, positional=True)
