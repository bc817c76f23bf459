"""The backbones: one line each, and one constructor for all models."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from flax import linen as nn

from segjax.errors import UserError
from segjax.models import alexnet, googlenet, layers, resnet, squeezenet, vgg
from segjax.models.backbone import Backbone, Dilated

BACKBONES: dict[str, Backbone] = {
    "vgg16": vgg.BACKBONE,
    "alexnet": alexnet.BACKBONE,
    "googlenet": googlenet.BACKBONE,
    **resnet.BACKBONES,
    "squeezenet": squeezenet.BACKBONE,
}
# Those whose late strides can become dilation, and those that PSPNet takes.
DILATED = tuple(name for name, entry in BACKBONES.items() if entry.dilated)
PYRAMID = tuple(
    name for name, entry in BACKBONES.items() if entry.dilated and entry.dilated.aux
)


def dilated(name: str) -> Dilated:
    """What a backbone tells about its dilated form.

    Raises:
      UserError: it has none.
    """
    entry = BACKBONES[name].dilated
    if entry is None:
        raise UserError(
            f"backbone: {name!r} cannot be dilated, expected one of "
            f"{', '.join(map(repr, DILATED))}"
        )
    return entry


def build(model: nn.Module, **more: Any) -> nn.Module:
    """The backbone that the fields of `model` describe, strided as published.

    It takes those fields of `model` that it has under the same name. Where `model` has
    `widths` and the backbone a `width`, that is their first one. `more` are further
    fields of the backbone. The submodule is called "backbone".
    """
    entry = BACKBONES[model.backbone]
    return _make(model, entry.module, {**entry.fixed, **more})


def build_dilated(model: nn.Module, **more: Any) -> nn.Module:
    """:func:`build`, at the output stride ``model.output_stride``."""
    entry = dilated(model.backbone)
    return _make(model, entry.make, {**entry.fixed, **more})


def _make(
    model: nn.Module, make: Callable[..., nn.Module], chosen: dict[str, Any]
) -> nn.Module:
    known = inspect.signature(make).parameters.keys() - {"parent", "name"}
    fields = {name: getattr(model, name) for name in known if hasattr(model, name)}
    widths = getattr(model, "widths", None)
    if "width" in known and widths and "width" not in fields:
        fields["width"] = widths[0]
    # () stands for what was published.
    fields = {name: value for name, value in fields.items() if value != ()}
    return make(**{**chosen, **fields}, name="backbone")


def features(model: nn.Module) -> str:
    """The endpoint of :func:`build_dilated` that heads read."""
    return dilated(model.backbone).features


# --- checks of fields -----------------------------------------------------------------


def check(model: nn.Module, known: Sequence[str] = tuple(BACKBONES)) -> None:
    """Checks the fields of `model` that describe its backbone, as far as it has them.

    They are backbone (one of `known`), widths, width, stem, stage_sizes and
    output_stride.

    Raises:
      UserError: a bad value.
    """
    layers.check_choice(model, "backbone", known)
    entry = BACKBONES[model.backbone]
    stride = entry.stride
    if hasattr(model, "output_stride"):
        stride = model.output_stride
        _check_output_stride(model, dilated(model.backbone).output_strides)
    if hasattr(model, "width"):
        layers.check_integers(model, "width")
    elif hasattr(model, "widths") and model.widths:
        layers.check_positive(model, "widths", length=len(entry.widths))
    if hasattr(model, "stem"):
        layers.check_choice(model, "stem", resnet.STEMS)
    if hasattr(model, "stage_sizes"):
        resnet.check_stage_sizes(model, stride)


def _check_output_stride(model: nn.Module, strides: tuple[int, ...]) -> None:
    layers.check_choice(model, "output_stride", resnet.OUTPUT_STRIDES)
    if model.output_stride not in strides:
        raise UserError(
            f"{layers.flag(model, 'output_stride')} is {model.output_stride}, expected "
            f"{' or '.join(map(str, strides))} with the backbone {model.backbone!r}"
        )
