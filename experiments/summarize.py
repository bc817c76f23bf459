"""Prints what a network costs and sees: parameters, multiply-adds, receptive fields.

    python -m experiments.summarize --config configs/unet_isbi2012.py
    python -m experiments.summarize --config configs/pspnet50_camvid.py \\
        --size=713,713 --config.model.bins=1,2 --xla
    python -m experiments.summarize --workdir runs/unet --erf /tmp/erf.png
    python -m experiments.summarize --all --markdown docs/models.md

The first forms describe the model of a config or of a training run: each layer, each
endpoint, the totals.  --xla adds XLA's own counts; --erf measures how much each pixel
of an image matters to the centre of the output (with --workdir of the trained network,
otherwise of a randomly initialised one) and writes a picture.

--all describes every published network (VARIANTS below), and compares it with what is
known of it.  Terms are explained in segjax/models/summary.py and docs/models.md.

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

from experiments import cli, common
from segjax import config as config_lib
from segjax import models, sharding
from segjax.data import datasets
from segjax.errors import UserError
from segjax.models import deeplab, layers
from segjax.models import summary as summary_lib
from segjax.models.summary import Summary


class Variant(NamedTuple):
    """A published network, and what is known of it.

    Quantities are "parameters", "MACs" and "FLOPs", each also "of PREFIX" for the
    layers whose names begin so; "layers", those with a kernel; "field of NAME", "stride
    of NAME" and "side of NAME" (rows) of a layer or an output. Ours are rounded like
    the published ones.
    """

    name: str
    model: str  # a key of segjax.models.MODELS
    fields: Mapping[str, Any]
    classes: int
    image: tuple[int, int, int]  # (H, W, C)
    published: Mapping[str, Mapping[str, str]]  # source -> quantity -> value
    notes: Mapping[str, str] = {}  # value -> why ours differs


# Where numbers come from: printed in the paper; counted from the layers that the paper
# or the authors' network definitions list, without this program.
PAPER, LAYERS = "paper", "layer list"

VARIANTS = (
    Variant(
        "FCN-AlexNet",
        "fcn",
        dict(backbone="alexnet", skips=32),
        21,
        (500, 500, 3),
        {
            PAPER: {
                "parameters": "57 M",
                "layers": "8",
                "stride of score_fr": "32",
                "field of score_fr": "355",
            },
            LAYERS: {
                "parameters": "56,954,261",
                "field of pool5": "195",
                "side of fc6": "16",
            },
        },
    ),
    Variant(
        "FCN-32s VGG16",
        "fcn",
        dict(skips=32),
        21,
        (500, 500, 3),
        {
            PAPER: {
                "parameters": "134 M",
                "layers": "16",
                "stride of score_fr": "32",
                "field of score_fr": "404",
            },
            LAYERS: {
                "parameters": "134,346,581",
                "field of pool5": "212",
                "side of fc6": "16",
            },
        },
    ),
    Variant(
        "FCN-16s VGG16",
        "fcn",
        dict(skips=16),
        21,
        (500, 500, 3),
        {LAYERS: {"parameters": "134,357,354"}, PAPER: {"stride of fuse_pool4": "16"}},
    ),
    Variant(
        "FCN-8s VGG16",
        "fcn",
        dict(skips=8),
        21,
        (500, 500, 3),
        {LAYERS: {"parameters": "134,362,751"}, PAPER: {"stride of fuse_pool3": "8"}},
    ),
    Variant(
        "FCN-GoogLeNet",
        "fcn",
        dict(backbone="googlenet", skips=32),
        21,
        (500, 500, 3),
        {
            PAPER: {
                "parameters": "6 M",
                "stride of score_fr": "32",
                "field of score_fr": "907",
            },
            LAYERS: {"parameters": "5,995,077", "field of score_fr": "715"},
        },
        notes={"907": "of GoogLeNet with its last 7x7 pooling, which the FCN drops"},
    ),
    Variant(
        "DeconvNet",
        "deconvnet",
        {},
        21,
        (224, 224, 3),
        {
            PAPER: {"parameters": "252 M"},
            LAYERS: {
                "parameters": "251,805,653",
                "layers": "30",
                "side of pool5": "7",
                "side of fc6": "1",
                "field of fc6": "404",
            },
        },
    ),
    Variant(
        "DeepLab-7x7",
        "deeplab",
        deeplab.VARIANTS["deeplab_7x7"],
        21,
        (514, 514, 3),
        {PAPER: {"parameters": "134.3 M"}, LAYERS: {"parameters": "134,346,581"}},
    ),
    Variant(
        "DeepLab",
        "deeplab",
        deeplab.VARIANTS["deeplab"],
        21,
        (514, 514, 3),
        {
            PAPER: {"parameters": "65.1 M"},
            LAYERS: {
                "parameters": "65,140,565",
                "field of head/fc6": "308",
                "side of pool1": "258",
                "side of scores": "65",
            },
        },
    ),
    Variant(
        "DeepLab-4x4",
        "deeplab",
        deeplab.VARIANTS["deeplab_4x4"],
        21,
        (514, 514, 3),
        {PAPER: {"parameters": "65.1 M"}, LAYERS: {"parameters": "65,140,565"}},
    ),
    Variant(
        "DeepLab-LargeFOV",
        "deeplab",
        deeplab.VARIANTS["deeplab_largefov"],
        21,
        (513, 513, 3),
        {
            PAPER: {"parameters": "20.5 M"},
            LAYERS: {
                "parameters": "20,505,429",
                "field of pool4": "115",
                "field of conv5_3": "211",
                "field of pool5a": "243",
                "field of head/fc6": "435",
                "side of scores": "65",
            },
        },
    ),
    Variant(
        "DeepLab-MSc",
        "deeplab",
        deeplab.VARIANTS["deeplab_msc"],
        21,
        (513, 513, 3),
        {LAYERS: {"parameters": "66,346,686"}},
    ),
    Variant(
        "DeepLab-MSc-LargeFOV",
        "deeplab",
        deeplab.VARIANTS["deeplab_msc_largefov"],
        21,
        (513, 513, 3),
        {LAYERS: {"parameters": "21,711,550", "parameters of sides": "1,206,121"}},
    ),
    Variant(
        "DeepLab v2 VGG16 ASPP-L",
        "deeplab",
        deeplab.VARIANTS["deeplab_v2_vgg16_aspp_l"],
        21,
        (513, 513, 3),
        {LAYERS: {"parameters": "37,877,652", "parameters of head": "23,162,964"}},
    ),
    Variant(
        "DeepLab v2 ResNet-101 LargeFOV",
        "deeplab",
        deeplab.VARIANTS["deeplab_v2_resnet101_largefov"],
        21,
        (513, 513, 3),
        {
            LAYERS: {
                "parameters": "42,887,253",
                "field of block1": "35",
                "field of block2": "99",
                "field of block3": "835",
                "field of block4": "1027",
                "field of head/fc1": "1219",
            }
        },
    ),
    Variant(
        "DeepLab v2 ResNet-101 ASPP-L, 3 scales",
        "deeplab",
        deeplab.VARIANTS["deeplab_v2_resnet101"],
        21,
        (513, 513, 3),
        {
            LAYERS: {
                "parameters": "44,048,532",
                "parameters of backbone": "42,500,160",
                "parameters of head": "1,548,372",
                "field of head/fc1_1": "1123",
                "field of head/fc1_2": "1219",
                "field of head/fc1_3": "1315",
                "field of head/fc1_4": "1411",
                "side of scale_logits/0": "65",
                "side of scale_logits/2": "33",
            }
        },
    ),
    Variant(
        "Dilation, front end",
        "dilation",
        dict(context="none", padding="valid"),
        21,
        (900, 900, 3),
        {
            LAYERS: {
                "parameters": "134,346,581",
                "field of conv5_3": "188",
                "field of fc6": "380",
                "side of final": "66",
                "side of logits": "528",
            }
        },
    ),
    Variant(
        "Dilation8 VOC (Large)",
        "dilation",
        dict(context="large", context_padding="once", upsampling="interp"),
        21,
        (500, 500, 3),
        {LAYERS: {"parameters of context": "6,803,139", "field of scores": "908"}},
    ),
    Variant(
        "Dilation8 CamVid (Basic)",
        "dilation",
        dict(upsampling="interp"),
        11,
        (480, 640, 3),
        {LAYERS: {"parameters of context": "7,832", "field of scores": "908"}},
    ),
    Variant(
        "Dilation7 KITTI",
        "dilation",
        dict(upsampling="interp", context_rates=(1, 1, 2, 4, 8, 1)),
        11,
        (370, 1226, 3),
        {LAYERS: {"parameters of context": "6,732", "field of scores": "652"}},
    ),
    Variant(
        "Dilation10 Cityscapes",
        "dilation",
        dict(context_rates=(1, 1, 2, 4, 8, 16, 32, 64, 1)),
        19,
        (1024, 1024, 3),
        {
            LAYERS: {
                "parameters of context": "29,792",
                "field of scores": "2444",
                "side of scores": "128",
            }
        },
    ),
    Variant(
        "U-Net",
        "unet",
        {},
        2,
        (572, 572, 1),
        {
            LAYERS: {
                "parameters": "31,030,658",
                "stride of enc4": "16",
                "field of logits": "188..204",
            },
            PAPER: {"layers": "23", "side of enc4": "28", "side of logits": "388"},
        },
    ),
    Variant(
        "U-Net, padded, batch normalisation",
        "unet",
        dict(padding="same", norm="batch"),
        2,
        (512, 512, 3),
        {LAYERS: {"parameters": "31,037,698"}},
    ),
    Variant(
        "U-Net, padded, CamVid",
        "unet",
        dict(padding="same"),
        12,
        (368, 480, 3),
        {
            "OpenVINO, unet-camvid-onnx-0001": {
                "parameters": "31.03 M",
                "FLOPs": "260.1 G",
            }
        },
        notes={"260.1 G": "another program's count, 0.1 % higher"},
    ),
    Variant(
        "FusionNet",
        "fusionnet",
        {},
        1,
        (640, 640, 1),
        {LAYERS: {"parameters": "78,531,137", "layers": "50", "side of bridge": "40"}},
    ),
    Variant(
        "FusionNet, released",
        "fusionnet",
        dict(layout="released", residual_depth=2, dropout=0.25),
        1,
        (640, 640, 1),
        {LAYERS: {"parameters": "62,804,545", "layers": "41", "side of bridge": "40"}},
    ),
    Variant(
        "Deep Contextual Network",
        "contextual",
        {},
        2,
        (480, 480, 1),
        {
            LAYERS: {
                "parameters of conv": "7,634,112",
                "layers": "19",
                "field of conv2_2": "14",
                "field of conv3_3": "40",
                "field of conv4_3": "92",
                "side of conv4_3": "60",
            }
        },
    ),
    Variant(
        "FRRN A",
        "frrn",
        dict(variant="a"),
        19,
        (256, 512, 3),
        {
            PAPER: {"parameters": "17.7 M"},
            LAYERS: {
                "parameters": "17,746,803",
                "field of pooling1": "42",
                "field of pooling2": "108",
                "field of pooling3": "176",
                "field of pooling4": "312",
            },
        },
    ),
    Variant(
        "FRRN B",
        "frrn",
        dict(variant="b"),
        19,
        (512, 1024, 3),
        {
            PAPER: {"parameters": "24.8 M"},
            LAYERS: {"parameters": "24,755,699", "field of pooling5": "584"},
        },
    ),
    Variant(
        "PSPNet-50 ADE20K",
        "pspnet",
        dict(aux=False, stride_in_1x1=True),
        150,
        (473, 473, 3),
        {
            LAYERS: {
                "parameters": "46,782,550",
                "parameters of backbone": "23,631,808",
                "parameters of pyramid": "4,198,400",
                "field of block4": "487",
                "field of conv5_4": "global",
                "side of conv6": "60",
            }
        },
    ),
    Variant(
        "PSPNet-50 ADE20K, with auxiliary head",
        "pspnet",
        {},
        150,
        (473, 473, 3),
        {LAYERS: {"parameters": "49,180,908", "MACs of backbone": "93.6 G"}},
    ),
    Variant(
        "PSPNet-101 VOC",
        "pspnet",
        dict(backbone="resnet101", aux=False),
        21,
        (473, 473, 3),
        {
            LAYERS: {
                "parameters": "65,708,501",
                "MACs of backbone": "161.8 G",
                "field of block4": "1023",
            }
        },
    ),
    Variant(
        "PSPNet-101 Cityscapes",
        "pspnet",
        dict(backbone="resnet101", aux=False),
        19,
        (713, 713, 3),
        {
            LAYERS: {
                "parameters": "65,707,475",
                "MACs of backbone": "364.2 G",
                "side of conv6": "90",
            }
        },
    ),
    Variant(
        "PSPNet-50, plain stem, Cityscapes",
        "pspnet",
        dict(stem="plain", first_block_dilation=False),
        19,
        (1024, 2048, 3),
        {"mmsegmentation, user guide": {"MACs": "1,429.68 G"}},
        notes={
            "1,429.68 G": "10.0 G of the difference are its stem of 32, 32, 64 channels"
        },
    ),
)


class Check(NamedTuple):
    """One quantity of one variant."""

    variant: str
    quantity: str
    ours: str
    published: str
    source: str
    note: str

    @property
    def equal(self) -> bool:
        return self.ours == self.published


def build(variant: Variant) -> nn.Module:
    """The network of a variant."""
    config = ConfigDict({"model_name": variant.model, "model": dict(variant.fields)})
    return models.build(config, variant.classes)


def checks(variant: Variant, found: Summary) -> list[Check]:
    """Compares a summary with what is published."""
    return [
        Check(
            variant.name,
            quantity,
            measure(found, quantity, like=value),
            value,
            source,
            variant.notes.get(value, ""),
        )
        for source, values in variant.published.items()
        for quantity, value in values.items()
    ]


def measure(found: Summary, quantity: str, like: str) -> str:
    """A quantity of Variant, with the unit and the decimals of `like`."""
    kind, _, name = quantity.partition(" of ")
    if kind in ("field", "stride", "side"):
        outputs = {layer.name: layer for layer in found.layers} | found.endpoints
        output = (outputs | {summary_lib.LOGITS: found.logits})[name]
        if kind == "field":
            return summary_lib.field_text(output.receptive_field)
        if kind == "stride":
            return summary_lib.stride_text(output.stride)
        shape = output.output if isinstance(output, summary_lib.Layer) else output.shape
        return str(shape[1])
    chosen = [layer for layer in found.layers if layer.name.startswith(name)]
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


def check_rows(found: list[Check]) -> summary_lib.Rows:
    """One row per check."""
    rows = [("network", "quantity", "here", "published", "equal", "source")]
    for check in found:
        equal = "yes" if check.equal else "no"
        source = f"{check.source}; {check.note}" if check.note else check.source
        names = check.variant, check.quantity
        rows.append((*names, check.ours, check.published, equal, source))
    return rows


def fields_text(variant: Variant) -> str:
    """How to get the variant: skips=32 classes=21."""
    fields = variant.fields.items()
    named = [f"{key}={_flag_text(value)}" for key, value in fields]
    return " ".join([variant.model, *named])


def _flag_text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


_MARKDOWN = """\
# Models

Written by `python -m experiments.summarize --all --markdown docs/models.md`; for any
config, image size and override:

```
python -m experiments.summarize --config configs/pspnet50_camvid.py --size=713,713 \\
    --config.model.bins=1,2
```

prints the same per layer and per endpoint. `--xla` adds XLA's own counts as a
cross-check, and `--erf FILE.png` measures the effective receptive field (Luo et al.,
NeurIPS 2016), of a trained network with `--workdir`.

* **Parameters** are trained; running averages of batch normalisation are not among
  them.
* **MACs**, multiply-adds of all layers with parameters, for one image: every tap of
  every kernel once per output cell, taps on padding included, and once per input cell
  in transposed convolutions. Fixed interpolation, normalisation, activations and
  pooling are not counted.
* **FLOPs** are 2 x MACs. Many numbers published as FLOPs are MACs.
* **Stride**: image pixels per cell of the class scores, before their last
  interpolation.
* **Field**, the theoretical receptive field: pixels from the first to the last image
  row that a cell depends on, holes included, away from the borders. Two numbers are the
  smallest and the largest among the cells of a map. *Global* fields grow with the
  image, as behind global pooling.
* **Activations**: estimated memory per image of what training keeps for the backward
  pass in float32, before XLA merges or recomputes any of it.

Everything is read from the traced program; nothing is compiled.

## Overview

The field is that of the logits, which interpolation has widened; for the fields that
papers print see below.

{overview}

## Compared with what is published

*paper*: printed there. *layer list*: counted from the layers that the paper or the
authors' network definitions list, without this program. Our numbers are rounded like
the published ones. {equal} of {total} are equal.

{checks}

## Fields of the variants

{fields}
"""


def markdown(found: Mapping[str, Summary], checked: list[Check]) -> str:
    """The contents of docs/models.md."""
    fields = [("network", "model and fields", "classes")]
    for variant in VARIANTS:
        text = f"`{fields_text(variant)}`"
        fields.append((variant.name, text, str(variant.classes)))
    return _MARKDOWN.format(
        overview=summary_lib.markdown_table(summary_lib.model_rows(found)),
        checks=summary_lib.markdown_table(check_rows(checked)),
        fields=summary_lib.markdown_table(fields),
        equal=sum(check.equal for check in checked),
        total=len(checked),
    )


def summarize_all(path: Path | None) -> int:
    """Prints, and writes, the tables of all variants."""
    found, checked = {}, []
    for variant in VARIANTS:
        cli.log(variant.name)
        found[variant.name] = summary_lib.summary(build(variant), variant.image)
        checked += checks(variant, found[variant.name])
    print(summary_lib.text_table(summary_lib.model_rows(found)))
    print()
    print(summary_lib.text_table(check_rows(checked)))
    if path:
        path.write_text(markdown(found, checked))
        print(f"written to {path}")
    return int(any(not check.equal and not check.note for check in checked))


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
    info = datasets.DATASETS.get(config.data.name)
    if info is None and not classes:
        _, info = datasets.load(config.data, config.data.train_split)
    return classes or len(info.classes), info.channels if info else 3


def random_variables(model: nn.Module, image: tuple[int, int, int]) -> dict:
    """Freshly initialised; kernels that start at zero are drawn too."""
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    images = jnp.zeros((1, *image), jnp.uint8)
    variables = jax.jit(lambda: model.init(keys, images, train=True))()

    def draw(path, leaf):
        if path[-1].key != "kernel" or leaf.any():
            return leaf
        return layers.score_normal(jax.random.key(2), leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, variables)


def influence_picture(
    influence: np.ndarray, field: summary_lib.Field, title: str
) -> np.ndarray:
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
    model: nn.Module, variables: dict, found: Summary, count: int, path: Path
) -> None:
    """Measures the effective receptive field of the logits on images of noise."""
    images = np.random.default_rng(0).integers(0, 256, (count, *found.image))
    influence = summary_lib.effective_receptive_field(model, variables, images)
    side = summary_lib.effective_side(influence)
    field = found.logits.receptive_field
    title = f"effective {side:.0f} px, theoretical {summary_lib.field_text(field)}"
    cv2.imwrite(str(path), influence_picture(influence, field, title)[..., ::-1])
    print(f"receptive field of the logits: {title}; written to {path}")


def main(argv) -> int:
    del argv
    values = flags.FLAGS
    paths = {}
    for name in ("markdown", "erf"):
        paths[name] = path = Path(values[name].value).expanduser()
        if values[name].value and not path.absolute().parent.is_dir():
            raise UserError(f"--{name} {path}: {path.parent} is not a folder")
    if values.all or values.markdown:
        return summarize_all(paths["markdown"] if values.markdown else None)

    config, workdir = values.config, Path(values.workdir).expanduser()
    if config is None:
        raise UserError(
            "give either --config, such as configs/quickstart.py, or --workdir, or "
            "--all for every published network"
        )
    config_lib.check(config)
    if values.workdir:
        info = common.load_dataset(workdir / "dataset.json")
        classes, channels = len(info.classes), info.channels
    else:
        classes, channels = dataset(config, values.classes)
    image = (*image_size(config, values.size), channels)
    model = models.build(config, classes)
    found = summary_lib.summary(model, image)
    totals = summary_lib.total_rows(found)
    if values.xla:
        flops = summary_lib.xla_flops(model, image)
        memory = summary_lib.xla_memory(model, image)
        totals.append(("FLOPs by XLA", f"{flops:,.0f}"))
        totals.append(("temporaries by XLA", f"{memory / 2**20:,.1f} MiB"))
    for rows in (summary_lib.layer_rows(found), summary_lib.map_rows(found), totals):
        print(summary_lib.text_table(rows), end="\n\n")
    if values.erf:
        cli.start()
        if values.workdir:
            mesh = sharding.make_mesh(jax.local_devices()[:1])
            variables = common.load_model(config, workdir, info, "best", mesh)[1]
        else:
            variables = random_variables(model, image)
        draw_influence(model, variables, found, values.erf_images, paths["erf"])
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
