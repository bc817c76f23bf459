"""Which kind of file one is, and the table of its names for one of our models."""

import re
from collections.abc import Mapping, Set
from typing import Any

from segjax.errors import UserError
from segjax.weights import images as images_lib
from segjax.weights.convert import Table
from segjax.weights.images import Images
from segjax.weights.names.networks import Target, expect
from segjax.weights.refused import REFUSED
from segjax.weights.sources import SOURCES, Source

# Fields that change no shape, but what the arrays mean: a network with another value is
# another one, which no training is meant to bridge.
MUST_AGREE = frozenset(("stride_in_1x1", "lrn_first", "layout"))


def must_agree(fields: Mapping[str, Any]) -> frozenset[str]:
    """The fields of MUST_AGREE that matter for a network with these fields."""
    if str(fields.get("backbone", "")).startswith("resnet"):
        return MUST_AGREE
    return MUST_AGREE - {"stride_in_1x1"}  # only ResNets have bottlenecks


# Fields that change nothing about what a trained network computes.
TRAINING_ONLY = frozenset(
    (
        *("dropout", "bn_momentum", "bn_unbiased", "frozen_bn", "aux", "unary_loss"),
        *("iterations_train", "spatial_weight", "bilateral_weight", "remat"),
    )
)


def find(target: Target) -> Table:
    """The name table for a file and a model.

    Raises:
      UserError: no known source, another network, or a field that contradicts the file.
    """
    for refused in REFUSED:
        has = target.names >= set(refused.arrays)
        if has and refused.without not in target.names:
            raise UserError(f"the file is of {refused.title}: {refused.why}")
    if (source := _match(target)) is not None:
        return _table(source, target)
    some = ", ".join(sorted(target.names)[:4])
    looks = "no known source"
    if known := [source for source in SOURCES if _signed(source, target.names)]:
        likely = known[0]
        looks = f"{likely.title}, for model {' or '.join(likely.models)}"
        if likely.backbones != ("",):
            looks += f" with backbone {' or '.join(likely.backbones)}"
    model = f"model {target.model!r}"
    if "backbone" in target.fields:
        model += f" with backbone {target.fields['backbone']!r}"
    raise UserError(f"arrays like {some} are of {looks}, not for {model}")


def _match(target: Target) -> Source | None:
    """The first kind of file that this one can be, for this model."""
    backbone = target.fields.get("backbone")
    for source in SOURCES:
        fits = target.model in source.models and (
            source.backbones == ("",) or (backbone or "vgg16") in source.backbones
        )
        if fits and _signed(source, target.names):
            return source
    return None


def published(
    names: Set[str], *, model: str, fields: Mapping[str, Any]
) -> tuple[dict[str, Any], Images | None]:
    """The network of a file, as far as its kind tells: its fields, and its images.

    Args:
      names: of all arrays in the file.
      model: a key of segjax.models.MODELS.
      fields: of the model.

    Returns:
      Fields of the model, which may be none; the images, None if the kind is unknown.
    """
    target = Target(model, fields, {}, names)
    source = _match(target)
    if source is None:
        return {}, None
    return dict(source.fields), _images(source, target)


def _images(source: Source, target: Target) -> Images:
    images = source.images
    return images if isinstance(images, Images) else images(target)


def _signed(source: Source, names: Set[str]) -> bool:
    pattern = re.compile(source.signature)
    return any(pattern.fullmatch(name) for name in names)


def _table(source: Source, target: Target) -> Table:
    left = re.compile(target.leave)
    named = {
        layer: None if left.fullmatch(layer) else source.layer(layer, target)
        for layer in layers(target.shapes)
    }
    entries = {layer: entry for layer, entry in named.items() if entry}
    missing = tuple(layer for layer, entry in named.items() if not entry)
    for layer in missing:
        before = layer.removesuffix("_bn")
        if before in entries and f"params/{before}/bias" not in target.shapes:
            raise UserError(
                f"{source.title} has no batch normalization {layer}; set model.norm to "
                "'none'"
            )
    extra = dict(source.extra(target))
    for field in MUST_AGREE & source.fields.keys():
        expect(target, field, source.fields[field])
    notes = [
        *extra.pop("notes", ()),
        *(
            f"the published network has {field}={value!r}, the model "
            f"{target.fields[field]!r}"
            for field, value in source.fields.items()
            if field not in TRAINING_ONLY and target.fields.get(field, value) != value
        ),
    ]
    return Table(
        source=source.title,
        layers=entries,
        images=_images(source, target),
        first=next((layer for layer in images_lib.FIRST if layer in entries), ""),
        missing=missing,
        ignored=tuple(n for n in target.names if re.fullmatch(source.ignored, n)),
        notes=tuple(notes),
        **extra,
    )


def layers(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    """Our layers, in order, from names such as "params/backbone/conv1_1/kernel"."""
    names = (name.partition("/")[2].rpartition("/")[0] for name in shapes)
    return tuple(dict.fromkeys(names))
