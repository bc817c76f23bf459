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

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import absl.logging
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.shared import cli, initialization
from segjax import config as config_lib
from segjax import files, models, published, sharding, weights
from segjax.errors import UserError


def import_weights(
    file: Path,
    config: ConfigDict,
    *,
    output: Path,
    chosen: Mapping[str, Any] | None = None,
    rename: str = "",
    ignore: str = "",
    leave: str = "",
) -> weights.Imported:
    """Converts ``file`` for the model of ``config`` and writes ``output``.

    Args:
      file: published weights.
      config: of which `model_name` and `model` are read.
      output: a .safetensors file.
      chosen: if given, the fields of the model that stay as they are; others take
        values that the kind of file tells.
      rename: ``PATTERN=REPLACEMENT`` of names of arrays, see :func:`weights.rename`.
      ignore: a regular expression of arrays to leave out.
      leave: a regular expression of layers to leave newly initialized.

    Raises:
      UserError: the file cannot be read or does not fit the model.
    """
    _check_output(output)
    try:
        arrays = weights.rename(weights.read(file), rename)
        if chosen is not None:
            config = _as_published(config, arrays, chosen)
        imported = weights.import_arrays(
            arrays,
            initialization.model_info(config),
            shapes_of=initialization.shapes_of(config),
            ignore=ignore,
            leave=leave,
        )
    except UserError as error:
        # Readers already name the file.
        text = str(error)
        raise UserError(text if str(file) in text else f"{file}: {text}") from error
    weights.save(output, imported.weights)
    return imported


def _as_published(
    config: ConfigDict, arrays: Mapping[str, Any], chosen: Mapping[str, Any]
) -> ConfigDict:
    """The config with the fields that the file's kind of network has."""
    info = initialization.model_info(config)
    known, images = weights.published(
        arrays.keys(), model=info.model, fields=info.fields
    )
    if name := initialization.image_stats_of(images):
        known["image_stats"] = name
    model = {
        field: value
        for field, value in known.items()
        if field in config.model and field not in chosen
    }
    return config_lib.make(model_name=config.model_name, model={**model, **chosen})


def training_flags(info: weights.ModelInfo) -> list[str]:
    """A line with the flags that give a configuration the fields of this model."""
    flags_of = [
        shlex.quote(config_lib.flag(f"model.{field}", info.fields[field]))
        for field, default in models.model_fields(info.model).items()
        if info.fields[field] != default
    ]
    if not flags_of:
        return []
    return [f"fields that are no defaults of {info.model}: {' '.join(flags_of)}"]


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
    file = files.user_path("the weights", argv[1]).absolute()
    output = files.user_path("--output", values.output).absolute()
    if file.is_dir():
        cli.start()
        lines = weights.summary(export_run(file, output))
    elif bool(values.model) == bool(values.config):
        raise UserError("give either --model=NAME or --config=FILE")
    else:
        config, fields = values.config, None
        if values.model:
            network = published.find(values.model, "--model", tuple(models.MODELS))
            fields = network.fields
            config = config_lib.make(model_name=network.model, model=fields)
        imported = import_weights(
            file,
            config,
            output=output,
            chosen=fields,
            rename=values.rename,
            ignore=values.ignore,
            leave=values.leave,
        )
        lines = [*weights.describe(imported), *training_flags(imported.info)]
    for line in lines:
        print(line)
    print(f"written: {output}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("model", "", "A published network, or a model by its name.")
    config_flags.DEFINE_config_file("config", None, "Takes model and fields from here.")
    flags.DEFINE_string("output", None, "The .safetensors file.", required=True)
    flags.DEFINE_string(
        "rename",
        "",
        "PATTERN=REPLACEMENT of the names of arrays: a regular expression.",
    )
    flags.DEFINE_string("ignore", "", "Arrays to leave out: a regular expression.")
    flags.DEFINE_string(
        "leave", "", "Layers to leave newly initialized: a regular expression."
    )
    cli.run(main, positional=True)
