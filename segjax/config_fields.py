"""Every field of a configuration: its default, which values it may have, what it means.

The one place where a field is defined. ``config.DEFAULTS``, the checks and messages of
``config.check``, ``--help`` and docs/config.md are made from :data:`FIELDS`. The fields
of ``config.augment`` come from ``data.augment_options``, the defaults of ``config.crf``
from ``ops.mean_field``, and ``config.model`` holds the fields of the network.
"""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from segjax import compilation, errors, losses, optim, proposals
from segjax.data import augment_options, datasets, images, object_crops, scenes
from segjax.errors import UserError
from segjax.labels import VOID
from segjax.ops import filters, mean_field
from segjax.weak import latent, supervision

LARGEST = 2**31 - 1  # of an int32, which counts the steps


class Range(NamedTuple):
    """Which values a field may have, besides having the type of its default."""

    expected: str
    """The range in words, for messages and the documentation."""
    accepts: Callable[[Any], bool]
    choices: tuple[str, ...] = ()
    """All values, if these are names (there may be more of a given form)."""


class Field(NamedTuple):
    """One field of a configuration."""

    default: Any
    range: Range
    meaning: str


MAX_CHANNELS = 256  # of images; hyperspectral ones have about as many
FLOAT32_MAX = float.fromhex("0x1.fffffep+127")  # larger numbers are infinite


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    real = isinstance(value, int | float) and not isinstance(value, bool)
    return real and abs(value) <= FLOAT32_MAX and low <= value <= high


def _is_integer(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _integer(low: int, high: int = LARGEST) -> Range:
    if high == LARGEST:
        expected = {0: "0 or more", 1: "a positive integer"}[low] + " below 2^31"
    else:
        expected = f"an integer from {low} to {high}"
    return Range(expected, lambda value: _is_integer(value, low, high))


def _number(low: float, high: float = math.inf) -> Range:
    expected = (
        f"{low} to {high}"
        if high < math.inf
        else f"{low} or more, and finite in float32"
    )
    return Range(expected, lambda value: _is_number(value, low, high))


def _above(low: float, high: float = math.inf) -> Range:
    most = f"at most {high}" if high < math.inf else "finite in float32"
    return Range(
        f"above {low}, {most}", lambda value: _is_number(value, low, high) and value > 0
    )


def _one_of(*choices: str) -> Range:
    text = "one of " + ", ".join(choices)
    return Range(text, lambda value: value in choices, tuple(choices))


def _is_expression(text: Any) -> bool:
    try:
        re.compile(text)
    except (re.error, TypeError, OverflowError, RecursionError):
        return False
    return bool(text)


def _is_rule(text: Any) -> bool:
    pattern, _, factor = str(text).rpartition("=")
    try:
        return _is_expression(pattern) and _is_number(float(factor), 0)
    except ValueError:
        return False


def _are_weights(values: tuple) -> bool:
    return not values or (all(_is_number(w, 0) for w in values) and max(values) > 0)


def _is_size(value: tuple, low: int, high: int) -> bool:
    return len(value) == 2 and all(_is_integer(side, low, high) for side in value)


_SWITCH = Range("True or False", lambda value: isinstance(value, bool))
_TEXT = Range("text", lambda value: isinstance(value, str))
# jax.random.key keeps the lower 32 bits: 2^32 would be the seed 0 again.
_SEED = _integer(0, 2**32 - 1)
_FRACTION = _number(0, 1)
_SIZE = Range(
    "two positive integers (height, width) up to 65536, or (0, 0)",
    lambda value: value == (0, 0) or _is_size(value, 1, 2**16),
)
_SCENES = Range(
    f"two integers (height, width) from {scenes.MIN_SIDE} to {scenes.MAX_SIDE}",
    lambda value: _is_size(value, scenes.MIN_SIDE, scenes.MAX_SIDE),
)
_WEIGHTS = Range(
    "one number per class, 0 or more and not all 0, or ()", lambda v: _are_weights(v)
)
_RULES = Range(
    "strings 'regex=factor' with valid regular expressions and factors of 0 or more, "
    "such as 'score_.*=10'",
    lambda value: all(map(_is_rule, value)),
)
_EXPRESSIONS = Range(
    "valid regular expressions that are not empty, such as 'bias', or ()",
    lambda value: all(map(_is_expression, value)),
)
_VALUES = Range(
    "two integers (low, high) from 0 to 65535 with low < high, or (0, 0)",
    lambda value: (
        value == (0, 0) or (_is_size(value, 0, 2**16 - 1) and value[0] < value[1])
    ),
)
_MASK_VALUES = Range(
    "integers from 0 to 65535",
    lambda value: all(_is_integer(v, 0, 2**16 - 1) for v in value),
)

NAMES = Range(
    "names of classes, or ()", lambda value: all(isinstance(v, str) for v in value)
)

_DATA_NAME = Range(
    "one of " + ", ".join(datasets.NAMES) + ", or tfds:NAME[/CONFIG][:VERSION]",
    lambda value: value in datasets.NAMES or value.startswith("tfds:"),
    datasets.NAMES,
)

_DATA = {
    "name": Field(
        "scenes",
        _DATA_NAME,
        "the data set; folder: own images and masks; tfds:NAME: one that TensorFlow "
        "Datasets has prepared",
    ),
    "root": Field(
        "",
        _TEXT,
        "the raw folder as downloaded, docs/data.md has layouts; tfds: its data_dir",
    ),
    "data_dir": Field("~/.cache/segjax", _TEXT, "prepared array_record files"),
    "resize": Field(
        (0, 0), _SIZE, "(h, w) that images are resized to on reading; (0, 0): not"
    ),
    "resize_labels": Field(
        "nearest",
        _one_of(*images.LABEL_RULES),
        "how labels are resized: by the nearest pixel, or to the majority of the area, "
        "void with at most a quarter of it (FRRN)",
    ),
    "instances": Field(
        False, _SWITCH, "read the instance map of each image; not all data sets have it"
    ),
    "keep_classes": Field(
        (),
        NAMES,
        "names of classes, which become 0, 1, ..; all others are void; (): all",
    ),
    "objects": Field(
        "none",
        _one_of(*object_crops.STAGES),
        "what is trained on: whole images, or DeconvNet's crops of objects (stage1: "
        "every object, all else is background; stage2: proposals that overlap one); "
        "docs/systems/deconvnet.md",
    ),
    "object_side": Field(
        250, _integer(1, 2**13), "px, height and width that crops are resized to"
    ),
    "object_least": Field(
        16, _integer(1, 2**16), "px, least side of the box of an object that counts"
    ),
    "object_balance": Field(
        0.0,
        _FRACTION,
        "crops of rare classes are repeated up to this share of the crops of the most "
        "frequent class; 0: not",
    ),
    "proposals": Field(
        "edge_boxes", _one_of(*proposals.METHODS), "of stage2: how boxes are proposed"
    ),
    "edge_model": Field(
        "",
        _TEXT,
        "edge_boxes: file of a structured forest (OpenCV's model.yml.gz); '': edges "
        "are gradients",
    ),
    "supervision": Field(
        supervision.FULL,
        _one_of(*supervision.KINDS),
        "labels of the training images: full masks; image: the classes that occur; "
        "box: filled boxes of the objects (of instances with data.instances, otherwise "
        "of connected regions); pseudo: the masks in pseudo_labels; none: only the "
        "strong_images are used",
    ),
    "pseudo_labels": Field(
        "", _TEXT, "supervision=pseudo: a folder that experiments.pseudo_labels wrote"
    ),
    "strong_images": Field(
        0, _integer(0, 10**7), "training images that keep their masks nonetheless"
    ),
    "strong_share": Field(
        0.0,
        Range("from 0 to below 1", lambda v: _is_number(v, 0, 1) and v < 1),
        "share of the strong_images in each batch; 0: as often as all others",
    ),
    "train_split": Field("train", _TEXT, "the split that is trained on"),
    "eval_split": Field("validation", _TEXT, "the split that is evaluated"),
    "scenes_size": Field((96, 96), _SCENES, "scenes: (h, w) of the drawn images"),
    "scenes_train": Field(800, _integer(1, 10**7), "scenes: images for training"),
    "scenes_validation": Field(100, _integer(1, 10**7), "scenes: for validation"),
    "scenes_seed": Field(0, _SEED, "scenes: of what is drawn"),
    "classes": Field(
        "",
        _TEXT,
        "own data, tfds: a file of class names; '': root/classes.txt, if there",
    ),
    "void_values": Field(
        (VOID,), _MASK_VALUES, "own data, tfds: raw mask values that mean no label"
    ),
    "image_feature": Field(
        "", _TEXT, "tfds: the feature with the images; '': found by its type"
    ),
    "label_feature": Field(
        "", _TEXT, "tfds: the feature with the label maps; '': found by its type"
    ),
    "label_offset": Field(
        0, _integer(0, 2**16 - 1), "tfds: the value of the first class in label maps"
    ),
    "channels": Field(
        0,
        _integer(0, MAX_CHANNELS),
        "own data: of the images; 0: 1 if all are gray, otherwise 3; other numbers: "
        "all channels of the files count",
    ),
    "value_range": Field(
        (0, 0),
        _VALUES,
        "own data and cell_tracking: (low, high), the values of the images that become "
        "0 and 255; (0, 0): 0 and 255, of 16 bits 0 and 65535",
    ),
}

_LOSS = {
    "name": Field(
        "cross_entropy", _one_of(*losses.LOSSES), "what the scores are trained by"
    ),
    "normalize": Field(
        "pixels",
        _one_of("pixels", "images"),
        "the sum is divided by what the loss counts (valid pixels; images for "
        f"{' and '.join(losses.REGION_LOSSES)}), or by the images (FCN's Caffe)",
    ),
    "class_weights": Field((), _WEIGHTS, "one weight per class; (): all 1"),
    "border_weight": Field(
        0.0,
        _number(0, 1e6),
        "w0 of U-Net: border_weight * exp(-(d1 + d2)^2 / (2 border_sigma^2)) is added "
        "to the weight of background pixels, with the distances to the two nearest "
        "instances; needs a data set with instance maps; 0: off (U-Net: 10)",
    ),
    "border_sigma": Field(5.0, _above(0, 1000), "px, see border_weight"),
    "resolution": Field(
        "full",
        _one_of("full", "output_stride"),
        "compares all pixels, or scores at the output stride before they are "
        "interpolated (the authors of DeepLab and Dilation)",
    ),
    "hard_pixels": Field(
        losses.DEFAULT.hard_pixels,
        _integer(1),
        "hard_pixels: number of hardest pixels of an image that count (FRRN)",
    ),
    "per_image": Field(
        losses.DEFAULT.per_image,
        _SWITCH,
        ", ".join(losses.REGION_LOSSES)
        + ": of every image; False: of the (micro-)batch",
    ),
    "em": Field(
        latent.Options().em,
        _one_of(*latent.METHODS),
        "data.supervision image: how the label of each pixel is inferred from the "
        "classes of the image, by constant biases (fixed) or shares of the pixels "
        "(adapt); box: none takes the boxes as masks, box_fixed infers in them",
    ),
    "em_background_bias": Field(
        latent.Options().em_background_bias,
        _number(0, 1e6),
        "fixed, box_fixed: added to the scores of class 0",
    ),
    "em_foreground_bias": Field(
        latent.Options().em_foreground_bias,
        _number(0, 1e6),
        "fixed, box_fixed: added to the scores of the other classes of the image",
    ),
    "em_background_share": Field(
        latent.Options().em_background_share,
        _FRACTION,
        "adapt: least share of the pixels for class 0, when it is visited",
    ),
    "em_foreground_share": Field(
        latent.Options().em_foreground_share,
        _FRACTION,
        "adapt: the same for each other class of the image",
    ),
    "em_iterations": Field(
        latent.Options().em_iterations,
        _integer(1, 100),
        "adapt: rounds over the classes",
    ),
    "em_suppress": Field(
        latent.Options().em_suppress,
        _SWITCH,
        "classes that the image does not show win no pixel",
    ),
    "weak_weight": Field(
        1.0,
        _number(0, 1e6),
        "weight of a pixel of an image without its own mask; one with it has 1",
    ),
    "aux_weight": Field(
        0.4,
        _number(0),
        "auxiliary losses, if the network has such heads, weigh "
        "max(aux_weight * aux_factor ** (step // aux_every), aux_floor)",
    ),
    "aux_factor": Field(1.0, _above(0, 1), "see aux_weight"),
    "aux_every": Field(10000, _integer(1), "see aux_weight"),
    "aux_floor": Field(0.0, _number(0), "see aux_weight"),
}

_OPTIM = {
    "name": Field(
        "sgd",
        _one_of(*optim.OPTIMIZERS),
        "sgd (lr outside the momentum), caffe_sgd (inside), adam, or nadam: Adam with "
        "Nesterov's momentum (FusionNet)",
    ),
    "lr": Field(0.01, _number(0), "learning rate"),
    "momentum": Field(
        0.9,
        Range("from 0 to below 1", lambda v: _is_number(v, 0, 1) and v < 1),
        "decay of the first moment, adam's and nadam's too",
    ),
    "nesterov": Field(
        False, _SWITCH, "sgd, caffe_sgd with a momentum: Nesterov's form of it"
    ),
    "b2": Field(
        0.999,
        Range("from 0 to below 1", lambda v: _is_number(v, 0, 1) and v < 1),
        "adam, nadam: decay of the second moment",
    ),
    "schedule": Field(
        "poly", _one_of(*optim.SCHEDULES), "how the learning rate falls with the steps"
    ),
    "power": Field(0.9, _number(0), "poly: lr * (1 - step / total_steps) ** power"),
    "step_every": Field(
        2000, _integer(1), "step: lr * step_factor ** (step // step_every)"
    ),
    "step_factor": Field(0.1, _above(0, 1), "see step_every"),
    "lr_floor": Field(0.0, _number(0), "the schedule does not fall below this rate"),
    "warmup_steps": Field(0, _integer(0), "steps of a linear increase from 0"),
    "weight_decay": Field(
        1e-4, _number(0), "L2, added to the gradient before the momentum"
    ),
    "decay_exclude": Field(
        optim.DECAY_EXCLUDE,
        _EXPRESSIONS,
        "regular expressions of parameters that are not decayed",
    ),
    "lr_mult": Field(
        (), _RULES, "regex=factor on the learning rate; factors of all matches multiply"
    ),
    "clip_norm": Field(0.0, _number(0), "clips the global gradient norm; 0: off"),
}

_WEIGHT, _SIGMA = _number(0), _above(0)
_CRF: dict[str, tuple[Range, str]] = {
    "iterations": (_integer(0, 10_000), "updates of the mean field"),
    "smoothness_weight": (_WEIGHT, "0: without this kernel"),
    "smoothness_sigma": (_SIGMA, "px"),
    "appearance_weight": (_WEIGHT, "0: without this kernel"),
    "appearance_sigma_xy": (_SIGMA, "px"),
    "appearance_sigma_rgb": (_SIGMA, "gray levels"),
    "normalization": (
        _one_of(*filters.NORMALIZATIONS),
        "of the kernels; DeepLab: after",
    ),
    "smoothness_filter": (
        _one_of(*mean_field.SMOOTHNESS_FILTERS),
        "separable is exact",
    ),
    "relaxation": (_above(0, 1), "below 1 damps oscillations"),
    "color_order": (
        _one_of(*filters.COLOR_ORDERS),
        "of the colors in the lattice; caffe: as the released CRF-RNN",
    ),
}

FIELDS: dict[str, Any] = {
    "seed": Field(0, _SEED, "of initialization, data order, augmentation and dropout"),
    "model_name": Field("unet", _TEXT, "a network of segjax.models.MODELS"),
    "model": {},  # the fields of that network
    "init_from": Field(
        "",
        _TEXT,
        "a workdir (its best checkpoint) or a file of experiments.import_weights; "
        "'': from scratch",
    ),
    "data": _DATA,
    "augment": {
        name: Field(o.default, Range(o.expected, o.accepts), o.meaning)
        for name, o in augment_options.OPTIONS.items()
    },
    "batch_size": Field(8, _integer(1, 2**20), "global: over all devices"),
    "grad_accum_steps": Field(
        1, _integer(1, 2**20), "micro-batches whose gradients make one step"
    ),
    "total_steps": Field(1000, _integer(1), "training steps, if total_epochs is 0"),
    "total_epochs": Field(
        0.0, _number(0, 1e6), "passes over the training images; 0: total_steps counts"
    ),
    "precision": Field(
        "default",
        _one_of(*compilation.PRECISIONS),
        "of products of float32 numbers: default is the fastest (TPU: bfloat16, recent "
        "GPUs: tensorfloat32), float32 is exact",
    ),
    "float32_gradient_sums": Field(
        False,
        _SWITCH,
        "with model.dtype=bfloat16: gradients of kernels are summed in float32 over "
        "pixels, images and devices, at twice the bytes between devices",
    ),
    "workers": Field(
        0, _integer(0, 1024), "worker processes of the input pipeline; 0: threads"
    ),
    "threads": Field(4, _integer(0, 1024), "threads per process that read and augment"),
    "loss": _LOSS,
    "optim": _OPTIM,
    "eval_every": Field(200, _integer(0), "steps; 0: only at the end"),
    "eval_batch_size": Field(8, _integer(1, 2**20), "global: over all devices"),
    "eval_images": Field(
        4, _integer(0, 10_000), "pictures image / truth / prediction per evaluation"
    ),
    "tile": Field(
        0,
        _integer(0, 2**16),
        "evaluate and predict by overlap-tiles of this input side; 0: whole images",
    ),
    "crf": {
        name: Field(default, *_CRF.get(name, (_TEXT, "")))
        for name, default in mean_field.Settings()._asdict().items()
    },
    "save_every": Field(200, _integer(1), "steps"),
    "log_every": Field(20, _integer(1), "steps"),
    "keep": Field(2, _integer(1, 10_000), "latest checkpoints kept, besides the best"),
}


def defaults(fields: Mapping[str, Any] = FIELDS) -> dict[str, Any]:
    """The nested defaults of nested fields."""
    return {
        name: item.default if isinstance(item, Field) else defaults(item)
        for name, item in fields.items()
    }


def flatten(fields: Mapping[str, Any] = FIELDS, prefix: str = "") -> dict[str, Field]:
    """Nested fields by their name with dots: "loss.name"."""
    flat = {}
    for name, item in fields.items():
        if isinstance(item, Field):
            flat[prefix + name] = item
        else:
            flat |= flatten(item, f"{prefix}{name}.")
    return flat


def check(address: str, field: Field, value: Any) -> None:
    """Checks one value.

    Args:
      address: of the field, as the user would set it: "--config.loss.name".
      field: of :data:`FIELDS`.
      value: the value that was found, of the type of the default.

    Raises:
      UserError: a name that is none of the choices, or a value out of range.
    """
    if field.range.choices and not field.range.accepts(value):
        raise errors.unknown(address, value, field.range.choices)
    if not field.range.accepts(value):
        raise UserError(f"{address} is {value!r}; expected {field.range.expected}")


def help_text() -> str:
    """All fields as the text of ``--help``, a line each, as they are set."""
    lines = ["Fields of the config (those of --config.model: see segjax/models/):"]
    lines += [
        f"  --config.{name}={_as_flag(field.default)}  {field.meaning} "
        f"({field.range.expected})"
        for name, field in flatten().items()
    ]
    return "\n".join(lines)


def _as_flag(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def table() -> str:
    """All fields as a Markdown document, docs/config.md."""
    lines = [_HEAD]
    groups = {"": FIELDS} | {f"{k}.": v for k, v in FIELDS.items() if type(v) is dict}
    for prefix, fields in groups.items():
        rows = [(name, f) for name, f in fields.items() if isinstance(f, Field)]
        if not rows:
            continue
        title = f"`config.{prefix[:-1]}`" if prefix else "`config`"
        lines += [f"\n## {title}\n", "| field | default | values | meaning |"]
        lines.append("| --- | --- | --- | --- |")
        lines += [
            f"| `{prefix}{name}` | `{f.default!r}` | {f.range.expected} | {f.meaning} |"
            for name, f in rows
        ]
    return "\n".join(lines) + "\n"


_HEAD = """\
# Fields of a configuration

Made from `segjax/config_fields.py` by `make docs`. Every field is overridden by
`--config.FIELD=VALUE`. The fields of `config.model` are those of the network, which its
docstring in `segjax/models/` explains."""
