"""Converts published weights into a file that training can start from.

    python -m experiments.import_weights fcn8s-heavy-pascal.caffemodel --model=fcn8s \\
        --output=weights/fcn8s.safetensors
    python -m experiments.import_weights resnet50-19c8e357.pth \\
        --config=configs/pspnet50_camvid.py --config.model.stem=plain \\
        --output=weights/pspnet50_imagenet.safetensors

--model names a published network (docs/weights.md) or one of our models with its
default fields; --config takes model and fields from a configuration instead. Prints
which array became which parameter, and writes the parameters as safetensors. Class
scores keep the file's number of classes; what the file does not have is left out, and
is initialised freshly when training starts from the file.
"""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import flags
from flax import linen as nn
from ml_collections import ConfigDict, config_flags

from experiments import cli
from segjax import config as config_lib
from segjax import models, weights
from segjax.errors import UserError
from segjax.ops import geometry, image
from segjax.weights import convert, names


def import_weights(
    file: Path, config: ConfigDict, output: Path, ignore: str = ""
) -> weights.Imported:
    """Converts ``file`` for the model of ``config`` and writes ``output``.

    Raises:
      UserError: the file cannot be read or does not fit the model.
    """
    if output.suffix != ".safetensors":
        raise UserError(f"--output={output}: give a file ending in .safetensors")
    model, fields = config.model_name, config_lib.json_like(config.model)
    images = convert.Images(*image.IMAGE_STATS[fields["image_stats"]])
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


def shapes_of(config: ConfigDict) -> Callable[[int], weights.Shapes]:
    """From a number of classes to the shapes of all parameters, traced only."""

    def shapes(num_classes: int) -> weights.Shapes:
        model = models.build(config, num_classes)
        leaves = weights.flatten(abstract_variables(model))
        return {name: tuple(leaf.shape) for name, leaf in leaves.items()}

    return shapes


def abstract_variables(model: nn.Module) -> dict:
    """{"params", "batch_stats"} of a model for RGB images, as shapes."""
    side = geometry.nearest_sides(model.tiling, 64)[-1]

    def init():
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        return model.init(keys, np.zeros((1, side, side, 3), np.uint8), train=True)

    variables = jax.eval_shape(init)
    return {key: variables.get(key, {}) for key in ("params", "batch_stats")}


def main(argv) -> int:
    if len(argv) != 2:
        raise UserError("give one file of published weights; --help explains")
    values = flags.FLAGS
    if bool(values.model) == bool(values.config):
        raise UserError("give either --model=NAME or --config=FILE")
    config = values.config
    if values.model:
        model, fields = names.published(values.model, tuple(models.MODELS))
        config = config_lib.make(model_name=model, model=fields)
    file, output = (Path(p).expanduser().absolute() for p in (argv[1], values.output))
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
    cli.run(main, arguments=True)
