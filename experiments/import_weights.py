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
is newly initialized when training starts from the file.

Of a folder of a training run, the best checkpoint is written as such a file.
"""

from pathlib import Path

import absl.logging
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.shared import cli, initialization
from segjax import config as config_lib
from segjax import models, sharding, weights
from segjax.errors import UserError
from segjax.weights import catalog


def import_weights(
    file: Path, config: ConfigDict, *, output: Path, ignore: str = ""
) -> weights.Imported:
    """Converts ``file`` for the model of ``config`` and writes ``output``.

    Raises:
      UserError: the file cannot be read or does not fit the model.
    """
    _check_output(output)
    try:
        imported = weights.import_arrays(
            weights.read(file),
            initialization.model_info(config),
            shapes_of=initialization.shapes_of(config),
            ignore=ignore,
        )
    except UserError as error:
        # Readers already name the file.
        text = str(error)
        raise UserError(text if str(file) in text else f"{file}: {text}") from error
    weights.save(output, imported.weights)
    return imported


def export_run(workdir: Path, output: Path) -> weights.Weights:
    """Writes the best checkpoint of a training run as ``output``.

    Raises:
      UserError: not the folder of a run, or it has no intact checkpoint.
    """
    _check_output(output)
    exported = initialization.weights_of_run(workdir, sharding.make_mesh())
    weights.save(output, exported)
    return exported


def _check_output(output: Path) -> None:
    if output.suffix != ".safetensors":
        raise UserError(f"--output={output}: give a file ending in .safetensors")


def main(argv) -> int:
    if len(argv) != 2:
        raise UserError("give one file of published weights; --help explains")
    absl.logging.set_verbosity("fatal")  # what JAX tells of the devices it looks for
    values = flags.FLAGS
    file, output = (Path(p).expanduser().absolute() for p in (argv[1], values.output))
    if file.is_dir():
        cli.start()
        lines = weights.summary(export_run(file, output))
    elif bool(values.model) == bool(values.config):
        raise UserError("give either --model=NAME or --config=FILE")
    else:
        config = values.config
        if values.model:
            model, fields = catalog.published(values.model, tuple(models.MODELS))
            config = config_lib.make(model_name=model, model=fields)
        imported = import_weights(file, config, output=output, ignore=values.ignore)
        lines = weights.describe(imported)
    for line in lines:
        print(line)
    print(f"written: {output}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("model", "", "A published network, or a model by its name.")
    config_flags.DEFINE_config_file("config", None, "Takes model and fields from here.")
    flags.DEFINE_string("output", None, "The .safetensors file.", required=True)
    flags.DEFINE_string("ignore", "", "Arrays to leave out: a regular expression.")
    cli.run(main, positional=True)
