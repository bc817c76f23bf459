"""The configuration of an experiment: every field, its default and its meaning.

A file in ``configs/`` is ``get_config(arg="")`` returning ``make(**what_differs)``.
Fields of ``config.model`` are the dataclass fields of the model (its ablation axes);
``make`` fills in their defaults, so all of them can be overridden on the command
line: ``--config.model.bins=1,2``.  Defaults are never None, because an
ml_collections field whose default is None cannot be overridden.
"""

import difflib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from segjax import compilation, files, losses, models
from segjax.errors import UserError

_log = logging.getLogger(__name__)

DEFAULTS = dict(
    seed=0,  # of initialization, data order, augmentation and dropout
    model_name="unet",  # a key of segjax.models.MODELS
    model={},  # fields of that model
    # A workdir (its best checkpoint) or a safetensors file of
    # experiments.import_weights; "": from scratch.
    init_from="",
    data=dict(
        name="scenes",  # "scenes", "camvid", "isbi2012" or "folder" (own data)
        root="",  # the raw folder, as downloaded; docs/data.md shows the layouts
        data_dir="~/.cache/segjax",  # prepared array_record files
        resize=(0, 0),  # (h, w): resize every image on reading; (0, 0): native size
        train_split="train",
        eval_split="validation",
        scenes_size=(96, 96),  # procedural scenes: size, counts and seed
        scenes_train=800,
        scenes_validation=100,
        scenes_seed=0,
        classes="",  # own data: a file of class names; "": root/classes.txt if there
        void_values=(255,),  # own data: raw mask values that mean "no label"
    ),
    augment=dict(  # all geometry is composed into one warp per example
        crop=(0, 0),  # (h, w) of a training example; (0, 0): the image size
        scale=(1.0, 1.0),  # uniform range of the scale factor
        rotate=0.0,  # maximum angle, degrees
        rotate_prob=1.0,
        flip=0.5,  # probability of a left-right mirror
        vflip=0.0,  # probability of an up-down mirror
        rot90=False,  # random quarter turns (microscopy)
        translate=0.0,  # maximum shift as a fraction of the image
        elastic_sigma=0.0,  # px, standard deviation of the coarse displacement grid
        elastic_grid=3,
        border="mean",  # outside the image: "mean" color or "reflect"; label: void
        brightness=0.0,  # maximum relative deviations
        contrast=0.0,
        saturation=0.0,
        gamma=0.0,
        blur_prob=0.0,  # probability of a 5x5 Gaussian blur
        noise=0.0,  # standard deviation in gray levels
    ),
    batch_size=8,  # global: over all devices of all processes
    grad_accum_steps=1,  # micro-batches whose gradients make one step
    total_steps=1000,
    # Matrix products and convolutions of float32: "default" is the device's fastest
    # (TPU: bfloat16 products, recent GPUs: tensorfloat32), "tensorfloat32", "float32".
    precision="default",
    workers=0,  # worker processes of the input pipeline; 0: threads
    threads=4,  # threads per process reading and augmenting
    loss=dict(
        name="cross_entropy",  # a key of segjax.losses.LOSSES
        normalize="pixels",  # mean over valid "pixels", or sum / "images" (FCN's Caffe)
        class_weights=(),  # one weight per class; (): all 1
        resolution="full",  # all pixels, or "output_stride": DeepLab's, Dilation's own
        hard_pixels=512 * 64,  # of "hard_pixels": number per image that counts (FRRN)
        per_image=True,  # of "lovasz_softmax", "soft_dice": or over the batch
        # Auxiliary losses, if the model has such heads, weigh
        # max(aux_weight * aux_factor ** (step // aux_every), aux_floor).
        aux_weight=0.4,
        aux_factor=1.0,
        aux_every=10000,
        aux_floor=0.0,
    ),
    optim=dict(
        name="sgd",  # "sgd" (lr outside the momentum), "caffe_sgd" (inside), "adam"
        lr=0.01,
        momentum=0.9,
        nesterov=False,
        b2=0.999,  # Adam's second moment
        schedule="poly",  # "poly", "step" or "constant"
        power=0.9,  # poly: lr * (1 - step / total_steps) ** power
        step_every=2000,  # step: lr * step_factor ** (step // step_every)
        step_factor=0.1,
        warmup_steps=0,  # linear from 0
        weight_decay=1e-4,  # L2, added to the gradient before the momentum
        decay_exclude=("bias", "scale"),  # regular expressions of undecayed parameters
        lr_mult=(),  # "regex=factor" strings; factors of all matches multiply
        clip_norm=0.0,  # clip the global gradient norm; 0: off
    ),
    eval_every=200,  # steps; 0: only at the end
    eval_batch_size=8,
    eval_images=4,  # pictures image / truth / prediction per evaluation
    tile=0,  # evaluate and predict by overlap-tiles of this input side; 0: whole image
    crf=dict(  # of evaluate and predict with --crf=config; docs/crf.md
        iterations=10,
        smoothness_weight=3.0,  # 0: without this kernel
        smoothness_sigma=3.0,  # px
        appearance_weight=10.0,  # 0: without this kernel
        appearance_sigma_xy=80.0,  # px
        appearance_sigma_rgb=13.0,  # gray levels
        normalization="symmetric",  # or "after" (DeepLab), "before", "none"
        smoothness_filter="lattice",  # or "separable": exact
        relaxation=1.0,  # below 1 damps oscillations
    ),
    save_every=200,  # steps
    log_every=20,  # steps
    keep=2,  # latest checkpoints kept, besides the best one
)

# Earlier field -> the fields that say the same now, from its value (from the text of a
# flag, too). Saved configs, config files and command lines may hold them.
RENAMED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "accumulate": lambda value: {"grad_accum_steps": value},
    "loss.bootstrap": lambda value: (
        {"loss.name": "hard_pixels", "loss.hard_pixels": value}
        if str(value) != "0"
        else {"loss.name": "cross_entropy"}
    ),
    "loss.resolution": lambda value: {
        "loss.resolution": "output_stride" if value == "cells" else value
    },
}


def rename(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested fields with the earlier names of RENAMED replaced, saying so."""
    renamed = {}
    for path, value in flatten_dict(json_like(values), keep_empty_nodes=True).items():
        field = ".".join(map(str, path))
        if field not in RENAMED:
            renamed[path] = value
            continue
        new = RENAMED[field](value)
        if new != {field: value}:
            _note(f"config.{field}={value!r}", new)
        renamed |= {tuple(name.split(".")): item for name, item in new.items()}
    return unflatten_dict(renamed)


def rename_flags(arguments: Sequence[str]) -> list[str]:
    """A command line with earlier names in ``--config.FIELD=VALUE`` replaced.

    ``--config.FIELD VALUE`` is understood, too.
    """
    renamed, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        field = re.sub("^--?config[.]", "", flag)
        if field == flag or field not in RENAMED:
            renamed.append(argument)
            continue
        if not equals and rest:
            value = rest.pop(0)
        new = RENAMED[field](value)
        if new != {field: value}:
            _note(f"--config.{field}={value}", new)
        renamed += [f"--config.{name}={value}" for name, value in new.items()]
    return renamed


def _note(old: str, new: Mapping[str, Any]) -> None:
    fields = " ".join(f"--config.{name}={value}" for name, value in new.items())
    _log.warning("note: %s is %s now", old, fields)


def make(**overrides) -> ConfigDict:
    """The defaults with ``overrides`` (nested dicts) put in, keys checked.

    Earlier names of fields are replaced (:data:`RENAMED`).

    Raises:
      UserError: an unknown key or model name; names the nearest right one.
    """
    values, overrides = json_like(DEFAULTS), rename(overrides)
    model = dict(overrides.pop("model", {}))
    _merge(values, overrides, "config")
    fields = models.model_fields(values["model_name"])
    _merge(fields, model, "config.model")
    values["model"] = fields
    return ConfigDict(values)


def _merge(values: dict, overrides: Mapping, where: str) -> None:
    for key, value in overrides.items():
        if key not in values:
            raise UserError(unknown_key(f"{where}.{key}", values))
        if isinstance(values[key], dict):
            _merge(values[key], value, f"{where}.{key}")
            continue
        default, value = values[key], json_like(value)
        if isinstance(default, float) and type(value) is int:
            value = float(value)
        if type(value) is not type(default):
            raise UserError(
                f"{where}.{key} is {value!r}; expected {type(default).__name__}, "
                f"such as {default!r}"
            )
        values[key] = value


def unknown_key(path: str, valid: Iterable[str]) -> str:
    """One line: an unknown key, the nearest right one, or all of them."""
    valid = sorted(valid)
    near = difflib.get_close_matches(path.rpartition(".")[2], valid, 1)
    hint = f"did you mean '{near[0]}'?" if near else "known: " + ", ".join(valid)
    return f"unknown config key '{path}'; {hint}"


def variant(arg: str, variants: Mapping[str, dict]) -> dict:
    """What ``--config FILE:ARG`` chooses of a config file; "" is the first one.

    Raises:
      UserError: no such variant; names them.
    """
    if arg and arg not in variants:
        raise UserError(
            f"unknown variant {arg!r} of this config; known: " + ", ".join(variants)
        )
    return variants[arg or next(iter(variants))]


def check(config: ConfigDict) -> None:
    """Checks what can be checked without data or devices.

    Raises:
      UserError: names the field, what it holds and what it may hold.
    """

    def get(field: str):
        value = config
        for part in field.split("."):
            value = value[part]
        return value

    def require(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UserError(f"config.{field} is {get(field)!r}; expected {expected}")

    fields = models.model_fields(config.model_name)
    if set(config.model) != set(fields):
        raise UserError(
            f"config.model_name is {config.model_name!r}, but config.model has the "
            "fields of another network: they come from the config file, so take one "
            "of that network, or a copy with another model_name"
        )
    for field in (
        "batch_size",
        "grad_accum_steps",
        "total_steps",
        "eval_batch_size",
        "save_every",
        "log_every",
        "keep",
        "loss.aux_every",
        "loss.hard_pixels",
    ):
        require(get(field) > 0, field, "a positive integer")
    for field in (
        "workers",
        "threads",
        "eval_every",
        "loss.aux_weight",
    ):
        require(get(field) >= 0, field, "0 or more")
    start = Path(config.init_from).expanduser()
    require(
        not config.init_from or start.is_file() or (start / "config.json").is_file(),
        "init_from",
        "a workdir of experiments.train or a file written by "
        "experiments.import_weights",
    )
    loss = config.loss
    require(0 < loss.aux_factor <= 1, "loss.aux_factor", "above 0, at most 1")
    require(
        0 <= loss.aux_floor <= loss.aux_weight,
        "loss.aux_floor",
        f"from 0 to config.loss.aux_weight = {loss.aux_weight}",
    )
    require(
        not (loss.name == "hard_pixels" and loss.class_weights),
        "loss.class_weights",
        "() with --config.loss.name=hard_pixels, which counts all pixels alike",
    )
    require(
        loss.normalize == "pixels" or loss.name in ("cross_entropy", "hard_pixels"),
        "loss.normalize",
        f"'pixels' with --config.loss.name={loss.name}, which is no sum over pixels",
    )
    require(
        config.batch_size % config.grad_accum_steps == 0,
        "grad_accum_steps",
        f"a divisor of config.batch_size = {config.batch_size}",
    )
    for field, choices in (
        ("loss.normalize", ("pixels", "images")),
        ("precision", compilation.PRECISIONS),
        ("loss.name", tuple(losses.LOSSES)),
        ("loss.resolution", ("full", "output_stride")),
        ("optim.name", ("sgd", "caffe_sgd", "adam")),
        ("optim.schedule", ("poly", "step", "constant")),
        ("augment.border", ("mean", "reflect")),
    ):
        require(get(field) in choices, field, "one of " + ", ".join(choices))
    for rule in config.optim.lr_mult:
        name, _, factor = str(rule).rpartition("=")
        require(
            bool(name) and _is_float(factor),
            "optim.lr_mult",
            "strings 'regex=factor', such as 'score_.*=10'",
        )


def _is_float(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def json_like(value):
    """A deep copy of nested mappings as dicts, and of sequences as tuples."""
    if isinstance(value, Mapping | ConfigDict):
        return {key: json_like(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(json_like(item) for item in value)
    return value


def save(config: ConfigDict, path: Path) -> None:
    """Writes the resolved configuration as JSON."""
    files.write_json(path, json_like(config))


def load(path: Path) -> ConfigDict:
    """Reads what ``save`` wrote; fields added since then get their defaults.

    Raises:
      UserError: no such file, not JSON, or unknown keys.
    """
    if not path.is_file():
        raise UserError(
            f"{path} not found: give a workdir written by experiments.train"
        )
    return make(**json_like(files.read_json(path, "the config of a training run")))
