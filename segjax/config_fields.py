"""Every field of a configuration: its default, which values it may have, what it means.

The one place where a field is defined. ``config.DEFAULTS``, the checks and messages of
``config.check``, ``--help`` and docs/config.md are made from :data:`FIELDS`. The fields
of ``config.augment`` come from ``data.augment_options``, the defaults of ``config.crf``
from ``ops.mean_field``, and ``config.model`` holds the fields of the network.
"""

from collections.abc import Mapping
from typing import Any

from segjax import compilation, config_data_fields, errors, losses, optim, sharding
from segjax import config_ranges as ranges
from segjax.config_ranges import Field
from segjax.data import augment_options
from segjax.errors import UserError
from segjax.ops import filters, mean_field
from segjax.weak import latent

_LOSS = {
    "name": Field("cross_entropy", ranges.one_of(*losses.LOSSES), "the loss"),
    "normalize": Field(
        "pixels",
        ranges.one_of("pixels", "images"),
        "the sum is divided by what the loss counts (valid pixels; images for "
        f"{' and '.join(losses.REGION_LOSSES)}), or by the images (FCN's Caffe)",
    ),
    "class_weights": Field((), ranges.WEIGHTS, "one weight per class; (): all 1"),
    "border_weight": Field(
        0.0,
        ranges.number(0, 1e6),
        "w0 of U-Net: border_weight * exp(-(d1 + d2)^2 / (2 border_sigma^2)) is added "
        "to the weight of background pixels, with the distances to the two nearest "
        "instances; needs a data set with instance maps; 0: off (U-Net: 10)",
    ),
    "border_sigma": Field(5.0, ranges.above(0, 1000), "px, see border_weight"),
    "resolution": Field(
        "full",
        ranges.one_of("full", "output_stride"),
        "full: compares all pixels with interpolated scores; output_stride: compares "
        "scores before interpolation with one pixel each, as the authors of DeepLab "
        "and Dilation do",
    ),
    "hard_pixels": Field(
        losses.DEFAULT.hard_pixels,
        ranges.integer(1),
        "hard_pixels: number of hardest pixels of an image that count (FRRN)",
    ),
    "per_image": Field(
        losses.DEFAULT.per_image,
        ranges.SWITCH,
        ", ".join(losses.REGION_LOSSES)
        + ": computed for every image; False: for the whole (micro-)batch",
    ),
    "em": Field(
        latent.Options().em,
        ranges.one_of(*latent.METHODS),
        "with data.supervision=image: how labels of pixels are inferred from the "
        "classes of the image, by constant biases (fixed) or by shares of the pixels "
        "(adapt); with box: none takes the boxes as masks, box_fixed infers the labels "
        "within them",
    ),
    "em_background_bias": Field(
        latent.Options().em_background_bias,
        ranges.number(0, 1e6),
        "fixed, box_fixed: added to the scores of class 0",
    ),
    "em_foreground_bias": Field(
        latent.Options().em_foreground_bias,
        ranges.number(0, 1e6),
        "fixed, box_fixed: added to the scores of the other classes of the image",
    ),
    "em_background_share": Field(
        latent.Options().em_background_share,
        ranges.FRACTION,
        "adapt: least share of the pixels for class 0, when it is visited",
    ),
    "em_foreground_share": Field(
        latent.Options().em_foreground_share,
        ranges.FRACTION,
        "adapt: least share of the pixels for each other class of the image",
    ),
    "em_iterations": Field(
        latent.Options().em_iterations,
        ranges.integer(1, 100),
        "adapt: rounds over the classes",
    ),
    "em_suppress": Field(
        latent.Options().em_suppress,
        ranges.SWITCH,
        "classes that the image does not show win no pixel",
    ),
    "weak_weight": Field(
        1.0,
        ranges.number(0, 1e6),
        "weight of the pixels of images without a mask of their own; other pixels have "
        "weight 1",
    ),
    "aux_weight": Field(
        0.4,
        ranges.number(0),
        "weight of the auxiliary losses, if the network has such heads: "
        "max(aux_weight * aux_factor ** (step // aux_every), aux_floor)",
    ),
    "aux_factor": Field(1.0, ranges.above(0, 1), "see aux_weight"),
    "aux_every": Field(10000, ranges.integer(1), "see aux_weight"),
    "aux_floor": Field(0.0, ranges.number(0), "see aux_weight"),
}

_OPTIM = {
    "name": Field(
        "sgd",
        ranges.one_of(*optim.OPTIMIZERS),
        "sgd (lr outside the momentum), caffe_sgd (inside), adam, or nadam: Adam with "
        "Nesterov's momentum (FusionNet)",
    ),
    "lr": Field(0.01, ranges.number(0), "learning rate"),
    "momentum": Field(
        0.9,
        ranges.Range(
            "from 0 to below 1", lambda v: ranges.is_number(v, 0, 1) and v < 1
        ),
        "decay of the first moment, also of adam and nadam",
    ),
    "nesterov": Field(
        False, ranges.SWITCH, "sgd, caffe_sgd: Nesterov's form of the momentum"
    ),
    "b2": Field(
        0.999,
        ranges.Range(
            "from 0 to below 1", lambda v: ranges.is_number(v, 0, 1) and v < 1
        ),
        "adam, nadam: decay of the second moment",
    ),
    "schedule": Field(
        "poly",
        ranges.one_of(*optim.SCHEDULES),
        "how the learning rate falls with the steps",
    ),
    "power": Field(
        0.9, ranges.number(0), "poly: lr * (1 - step / total_steps) ** power"
    ),
    "step_every": Field(
        2000, ranges.integer(1), "step: lr * step_factor ** (step // step_every)"
    ),
    "step_factor": Field(0.1, ranges.above(0, 1), "see step_every"),
    "lr_floor": Field(0.0, ranges.number(0), "lowest learning rate of the schedule"),
    "warmup_steps": Field(0, ranges.integer(0), "steps of a linear increase from 0"),
    "weight_decay": Field(
        1e-4, ranges.number(0), "L2, added to the gradient before the momentum"
    ),
    "decay_exclude": Field(
        optim.DECAY_EXCLUDE,
        ranges.EXPRESSIONS,
        "regular expressions of parameters that are not decayed",
    ),
    "lr_mult": Field(
        (),
        ranges.RULES,
        "regex=factor: factors of the learning rate of parameters that match; those of "
        "several matches multiply",
    ),
    "clip_norm": Field(
        0.0, ranges.number(0), "largest global norm of the gradient; 0: no clipping"
    ),
}

_WEIGHT, _SIGMA = ranges.number(0), ranges.above(0)
_CRF: dict[str, tuple[ranges.Range, str]] = {
    "iterations": (ranges.integer(0, 10_000), "updates of the mean field"),
    "smoothness_weight": (_WEIGHT, "0 leaves this kernel out"),
    "smoothness_sigma": (_SIGMA, "px"),
    "appearance_weight": (_WEIGHT, "0 leaves this kernel out"),
    "appearance_sigma_xy": (_SIGMA, "px"),
    "appearance_sigma_rgb": (_SIGMA, "gray levels"),
    "normalization": (
        ranges.one_of(*filters.NORMALIZATIONS),
        "how the kernels are normalized (docs/crf.md); DeepLab: after",
    ),
    "smoothness_filter": (
        ranges.one_of(*mean_field.SMOOTHNESS_FILTERS),
        "separable: an exact convolution",
    ),
    "relaxation": (ranges.above(0, 1), "below 1 damps oscillations"),
    "color_order": (
        ranges.one_of(*filters.COLOR_ORDERS),
        "order of the colors in the lattice; caffe: that of the released CRF-RNN",
    ),
}

FIELDS: dict[str, Any] = {
    "seed": Field(
        0,
        ranges.SEED,
        "random seed of initialization, data order, augmentation and dropout",
    ),
    "model_name": Field("unet", ranges.TEXT, "a network of segjax.models.MODELS"),
    "model": {},  # the fields of that network
    "init_from": Field(
        "",
        ranges.TEXT,
        "a workdir (its best checkpoint) or a file of experiments.import_weights; "
        "'': from scratch",
    ),
    "data": config_data_fields.FIELDS,
    "augment": {
        name: Field(o.default, ranges.Range(o.expected, o.accepts), o.meaning)
        for name, o in augment_options.OPTIONS.items()
    },
    "batch_size": Field(
        8, ranges.integer(1, 2**20), "images per step, over all devices"
    ),
    "grad_accum_steps": Field(
        1,
        ranges.integer(1, 2**20),
        "micro-batches per step, whose gradients are summed",
    ),
    "bn_batch_size": Field(
        0,
        ranges.integer(0, 2**20),
        "number of consecutive images, such as those of a device or a slice, of which "
        "batch normalization takes mean and variance in training; 0: the whole "
        "(micro-)batch, over all devices",
    ),
    "total_steps": Field(
        1000, ranges.integer(1), "training steps, if total_epochs is 0"
    ),
    "total_epochs": Field(
        0.0,
        ranges.number(0, 1e6),
        "passes over the training images, instead of total_steps; 0: total_steps is "
        "used",
    ),
    "precision": Field(
        "default",
        ranges.one_of(*compilation.PRECISIONS),
        "of float32 matrix products: default is the fastest of the device (TPU: "
        "bfloat16, recent GPUs: tensorfloat32), float32 is exact",
    ),
    "float32_gradient_sums": Field(
        False,
        ranges.SWITCH,
        "with model.dtype=bfloat16: gradients of kernels are summed in float32 over "
        "pixels, images and devices, at twice the bytes between devices",
    ),
    "state_sharding": Field(
        sharding.STATE_SHARDINGS[0],
        ranges.one_of(*sharding.STATE_SHARDINGS),
        "replicated: every device has a copy of the training state; optimizer: the "
        "state of the optimizer is divided among the devices of a slice; parameters: "
        "the parameters, too, which are gathered for each step",
    ),
    "workers": Field(
        0, ranges.integer(0, 1024), "worker processes of the input pipeline; 0: threads"
    ),
    "threads": Field(
        4, ranges.integer(0, 1024), "threads per process that read and augment"
    ),
    "loss": _LOSS,
    "optim": _OPTIM,
    "eval_every": Field(
        200, ranges.integer(0), "steps between evaluations; 0: only at the end"
    ),
    "eval_batch_size": Field(
        8, ranges.integer(1, 2**20), "images per batch of evaluation, over all devices"
    ),
    "eval_images": Field(
        4,
        ranges.integer(0, 10_000),
        "pictures (image, truth, prediction) per evaluation",
    ),
    "tile": Field(
        0,
        ranges.integer(0, 2**16),
        "evaluate and predict in overlap-tiles of this input side; 0: whole images",
    ),
    "crf": {
        name: Field(default, *_CRF.get(name, (ranges.TEXT, "")))
        for name, default in mean_field.Settings()._asdict().items()
    },
    "save_every": Field(200, ranges.integer(1), "steps between checkpoints"),
    "log_every": Field(20, ranges.integer(1), "steps between log entries"),
    "keep": Field(
        2,
        ranges.integer(1, 10_000),
        "latest checkpoints that are kept, besides the best",
    ),
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

Made from `segjax/config_fields.py` by `make docs`. `--config.FIELD=VALUE` overrides a
field. The fields of `config.model` are those of the network; its docstring in
`segjax/models/` explains them."""
