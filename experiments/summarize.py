"""Prints what a network costs and sees: parameters, multiply-adds, receptive fields.

    python -m experiments.summarize --config configs/unet_isbi2012.py
    python -m experiments.summarize --config configs/pspnet50_camvid.py \\
        --size=713,713 --config.model.bins=1,2 --xla
    python -m experiments.summarize --workdir runs/unet --erf /tmp/erf.png
    python -m experiments.summarize --all --markdown docs/models.md

The first forms describe the model of a config or of a training run: each layer, each
endpoint, the totals.  --xla adds XLA's own counts; --erf measures how much each pixel
of an image matters to the center of the output (with --workdir of the trained network,
otherwise of a randomly initialized one) and writes a picture.

--all describes every published network of segjax/analysis/published.py, and compares it
with what is known of it.  Terms are explained in docs/models.md.

Exit codes: 0; 1 if --all finds an unexplained difference; 2 bad input.
"""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.shared import cli, tables
from segjax import config as config_lib
from segjax import files, models, sharding
from segjax import workdir as workdir_lib
from segjax.analysis import counts, receptive_field
from segjax.analysis.published import NUMBERS
from segjax.analysis.receptive_field import Field
from segjax.analysis.summary import Layer, Summary, summary
from segjax.analysis.tracing import LOGITS
from segjax.data import datasets
from segjax.errors import UserError
from segjax.inference.trained import load_model
from segjax.models import layers
from segjax.published import NETWORKS, Network
from segjax.tables import markdown_table, text_table


class Check(NamedTuple):
    """One quantity of one published network."""

    network: str
    quantity: str
    computed: str
    published: str
    source: str
    note: str

    @property
    def equal(self) -> bool:
        return self.computed == self.published


def build(network: Network) -> nn.Module:
    """The model of a published network."""
    config = ConfigDict({"model_name": network.model, "model": dict(network.fields)})
    return models.build(config, network.classes)


def checks(name: str, numbers: Summary) -> list[Check]:
    """Compares the summary of a network with what is known of it."""
    return [
        Check(
            name,
            number.quantity,
            measure(numbers, number.quantity, like=number.value),
            number.value,
            number.source,
            number.note,
        )
        for number in NUMBERS[name]
    ]


def measure(numbers: Summary, quantity: str, like: str) -> str:
    """A quantity of published.Number, with the unit and the decimals of `like`."""
    kind, _, name = quantity.partition(" of ")
    if kind in ("field", "stride", "side"):
        outputs = {layer.name: layer for layer in numbers.layers} | numbers.endpoints
        output = (outputs | {LOGITS: numbers.logits})[name]
        if kind == "field":
            return tables.field_text(output.receptive_field)
        if kind == "stride":
            return tables.stride_text(output.stride)
        shape = output.output if isinstance(output, Layer) else output.shape
        return str(shape[1])
    kind, _, left_out = kind.partition(" without ")
    chosen = [
        layer
        for layer in numbers.layers
        if layer.name.startswith(name)
        and not (left_out and layer.name.startswith(left_out))
    ]
    if kind == "layers":
        return str(sum(bool(layer.kernel) for layer in chosen))
    if kind == "parameters":
        value = sum(layer.parameters for layer in chosen)
    else:
        value = {"MACs": 1, "FLOPs": 2}[kind] * sum(layer.macs for layer in chosen)
    digits, _, unit = like.partition(" ")
    decimals = len(digits.partition(".")[2])
    value = value / {"": 1, "M": 1e6, "G": 1e9}[unit]
    return f"{value:,.{decimals}f} {unit}".strip()


def check_rows(compared: list[Check]) -> tables.Rows:
    """One row per check."""
    rows = [("network", "quantity", "here", "published", "equal", "source")]
    for check in compared:
        equal = "yes" if check.equal else "no"
        source = f"{check.source}; {check.note}" if check.note else check.source
        names = check.network, check.quantity
        rows.append((*names, check.computed, check.published, equal, source))
    return rows


def fields_text(network: Network) -> str:
    """How to get a network: fcn backbone=alexnet skips=32."""
    fields = network.fields.items()
    named = [f"{key}={_flag_text(value)}" for key, value in fields]
    return " ".join([network.model, *named])


def _flag_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


_MARKDOWN = """\
# Models

Written by `python -m experiments.summarize --all --markdown docs/models.md`. This
command prints the same numbers per layer and per endpoint, for any config, image size
and override:

```
python -m experiments.summarize --config configs/pspnet50_camvid.py --size=713,713 \\
    --config.model.bins=1,2
```

`--xla` adds XLA's own counts as a cross-check, and `--erf FILE.png` measures the
effective receptive field (Luo et al., NeurIPS 2016), with `--workdir` that of a trained
network.

* **Parameters**: trained ones, without the running averages of batch normalization.
* **MACs**, multiply-adds of all layers with parameters, for one image: every tap of
  every kernel once per output location, taps on padding included, and once per input
  location in transposed convolutions. Fixed interpolation, normalization, activations
  and pooling are not counted. The form that the paper writes down is counted.
* **MACs computed**: what the program computes, fixed interpolation included. PSPNet has
  fewer, because its `conv5_4` is computed on the pooled levels before they are resized
  (`--config.model.folded`), and FCN on VGG16, because most of its padding is computed
  once per batch (`--config.model.framed`). `--config.model.packed` has more.
* **FLOPs** are 2 x MACs. Many numbers published as FLOPs are MACs.
* **Stride**: image pixels per location of the class scores, before their last
  interpolation.
* **Field**, the theoretical receptive field: pixels from the first to the last image
  row that a location depends on, holes included, away from the borders. Two numbers are
  the smallest and the largest among the locations of a map. *Global* fields grow with
  the image, as behind global pooling.
* **Activations**: estimated memory per image of what training keeps for the backward
  pass in float32, before XLA merges or recomputes any of it.

Everything is read from the traced program; nothing is compiled.

## Overview

The field is that of the logits, which interpolation has widened; for the fields that
papers print see below.

{overview}

## Compared with what is published

*paper*: printed in the paper. *layer list*: counted, without this program, from the
layers that the paper or the authors' network definitions list. The numbers of this
program are rounded like the published ones. {equal} of {total} are equal.

{checks}

## Fields of the variants

{fields}
"""


def markdown(numbers: Mapping[str, Summary], comparisons: list[Check]) -> str:
    """The contents of docs/models.md."""
    fields = [("network", "model and fields", "classes")]
    for name, network in NETWORKS.items():
        fields.append((name, f"`{fields_text(network)}`", str(network.classes)))
    return _MARKDOWN.format(
        overview=markdown_table(tables.model_rows(numbers)),
        checks=markdown_table(check_rows(comparisons)),
        fields=markdown_table(fields),
        equal=sum(check.equal for check in comparisons),
        total=len(comparisons),
    )


def summarize_all(path: Path | None) -> int:
    """Prints, and writes, the tables of all published networks."""
    numbers, comparisons = {}, []
    for name, network in NETWORKS.items():
        cli.log(name)
        numbers[name] = summary(build(network), network.image)
        comparisons += checks(name, numbers[name])
    print(text_table(tables.model_rows(numbers)))
    print()
    print(text_table(check_rows(comparisons)))
    if path:
        path.write_text(markdown(numbers, comparisons))
        print(f"written to {path}")
    return int(any(not check.equal and not check.note for check in comparisons))


# --- one config -----------------------------------------------------------------------


def image_size(config: ConfigDict, size: list[str]) -> tuple[int, int]:
    """--size, or else the size of the config's training examples or tiles.

    Raises:
      UserError: a malformed --size, or the config does not tell.
    """
    if size:
        if len(size) != 2 or not all(side.isdigit() for side in size):
            raise UserError(f"--size={','.join(size)}: expected H,W such as 473,473")
        return int(size[0]), int(size[1])
    candidates = [config.augment.crop, config.data.resize, (config.tile, config.tile)]
    if config.data.name == "scenes":
        candidates.append(config.data.scenes_size)
    for height, width in candidates:
        if height and width:
            return height, width
    raise UserError("the config does not fix an image size; give --size=H,W")


def dataset(config: ConfigDict, classes: int) -> tuple[int, int]:
    """Number of classes (`classes`, unless 0) and of image channels of the data set."""
    if classes and config.data.name == "folder":
        return classes, 3  # without a look at the folder
    info = datasets.describe(config.data)
    return classes or len(info.classes), info.channels


def random_variables(model: nn.Module, image: tuple[int, int, int]) -> dict:
    """Freshly initialized; kernels that start at zero are drawn too."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jnp.zeros((1, *image), jnp.uint8)
    variables = jax.jit(lambda: model.init(keys, images, train=True))()

    def draw(path, leaf):
        if path[-1].key != "kernel" or leaf.any():
            return leaf
        return layers.score_normal(jax.random.key(2), leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, variables)


def influence_picture(influence: np.ndarray, field: Field, title: str) -> np.ndarray:
    """uint8 [h, w, 3] RGB: the map, brightness its square root, under its title.

    The theoretical receptive field is framed, unless it is global.
    """
    height, width = influence.shape
    scale = max(1, 480 // max(height, width))
    levels = np.uint8(255 * np.sqrt(influence))
    picture = cv2.applyColorMap(levels, cv2.COLORMAP_INFERNO)[..., ::-1]
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    if math.inf not in field:
        corners = [
            [round(scale * (side + sign * field[1]) / 2) for side in (width, height)]
            for sign in (-1, 1)
        ]
        picture = cv2.rectangle(picture, *corners, (255, 255, 255))
    banner = np.full((24, picture.shape[1], 3), 255, np.uint8)
    cv2.putText(banner, title, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 0))
    return np.concatenate([banner, picture])


def draw_influence(
    model: nn.Module, variables: dict, *, numbers: Summary, count: int, path: Path
) -> None:
    """Measures the effective receptive field of the logits on images of noise."""
    images = np.random.default_rng(0).integers(0, 256, (count, *numbers.image))
    influence = receptive_field.effective(model, variables, images=images)
    side = receptive_field.effective_side(influence)
    field = numbers.logits.receptive_field
    title = f"effective {side:.0f} px, theoretical {tables.field_text(field)}"
    cv2.imwrite(str(path), influence_picture(influence, field, title)[..., ::-1])
    print(f"receptive field of the logits: {title}; written to {path}")


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    paths = {}
    for name in ("markdown", "erf"):
        paths[name] = path = files.path(values[name].value)
        if values[name].value and not path.absolute().parent.is_dir():
            raise UserError(f"--{name} {path}: {path.parent} is not a folder")
    if values.all or values.markdown:
        return summarize_all(paths["markdown"] if values.markdown else None)

    config, workdir = values.config, files.path(values.workdir)
    if config is None:
        raise UserError(
            "give either --config, such as configs/quickstart.py, or --workdir, or "
            "--all for every published network"
        )
    config_lib.check(config)
    if values.workdir:
        info = workdir_lib.read_dataset(workdir)
        classes, channels = len(info.classes), info.channels
    else:
        classes, channels = dataset(config, values.classes)
    image = (*image_size(config, values.size), channels)
    model = models.build(config, classes)
    numbers = summary(model, image)
    totals = tables.total_rows(numbers)
    if values.xla:
        flops = counts.xla_flops(model, image)
        memory = counts.xla_memory(model, image)
        totals.append(("FLOPs by XLA", f"{flops:,.0f}"))
        totals.append(("temporaries by XLA", f"{memory / 2**20:,.1f} MiB"))
    for rows in (tables.layer_rows(numbers), tables.map_rows(numbers)):
        print(text_table(rows), end="\n\n")
    print(text_table(totals, titles=False), end="\n\n")
    if values.erf:
        cli.start()
        if values.workdir:
            mesh = sharding.make_mesh(jax.local_devices()[:1])
            variables = load_model(config, workdir, info=info, which="best", mesh=mesh)[
                1
            ]
        else:
            variables = random_variables(model, image)
        draw_influence(
            model,
            variables,
            numbers=numbers,
            count=values.erf_images,
            path=paths["erf"],
        )
    return 0


if __name__ == "__main__":
    if any(argument.lstrip("-").startswith("workdir") for argument in sys.argv):
        cli.define_workdir_config()
    else:
        config_flags.DEFINE_config_file(
            "config", None, "A file in configs/, e.g. configs/quickstart.py."
        )
        flags.DEFINE_string("workdir", "", "A training run, in place of --config.")
    flags.DEFINE_list("size", [], "H,W of the image; otherwise that of the training.")
    flags.DEFINE_integer(
        "classes", 0, "With --config; 0: those of its data set.", lower_bound=0
    )
    flags.DEFINE_bool("xla", False, "Adds XLA's counts; compiles the training step.")
    flags.DEFINE_string("erf", "", "PNG of the effective receptive field.")
    flags.DEFINE_integer("erf_images", 16, "Random images for it.", lower_bound=1)
    flags.DEFINE_bool("all", False, "Every published network.")
    flags.DEFINE_string("markdown", "", "File for the tables of --all.")
    cli.run(main)
