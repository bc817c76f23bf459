"""Starting a model from weights: of a published file, or of another training run.

Arrays are matched by the names of their layers. What arrays do not tell (for which
images the first layer is made, where a block has its stride, the order of the classes)
is compared, too: it is converted where that is exact, and otherwise refused or
reported.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from segjax.errors import UserError
from segjax.weights import images, listing
from segjax.weights.images import Images
from segjax.weights.saved import ModelInfo, Weights
from segjax.weights.tables import MUST_AGREE, TRAINING_ONLY, must_agree
from segjax.weights.tree import Tree, by_layer, flatten, replace

# Compared otherwise: by `images`, and by the fields of the network within.
_ELSEWHERE = ("image_stats", "base", "base_options")
# How much memory and time it takes, and how exact it is.
_COST = ("dtype", "capacity")


class Report(NamedTuple):
    """What :func:`start` did."""

    source: str
    loaded: tuple[str, ...]  # layers
    new: dict[str, str]  # newly initialized layers: why
    unused: tuple[str, ...]  # layers of the file that the model does not have
    notes: tuple[str, ...] = ()  # what was converted, what differs

    def lines(self) -> list[str]:
        """The report in lines, to be printed."""
        lines = [f"initialized {len(self.loaded)} layers from {self.source}"]
        lines += [
            f"  newly initialized: {layer} ({why})" for layer, why in self.new.items()
        ]
        if self.unused:
            lines.append(f"  not used: {', '.join(self.unused)}")
        lines += [f"  note: {note}" for note in self.notes]
        return lines


def start(
    path: object, weights: Weights, *, info: ModelInfo, variables: Tree
) -> tuple[dict[str, Any], Report]:
    """Puts weights into a model, layer by layer.

    Stay as they are, and are reported: layers that the weights do not have, and class
    scores for another number of classes, or for classes of other names or in another
    order. First layers for RGB images are widened for images of other channels, see
    ``images.widen``. The backbone must fit completely, except for layers that the
    source of the weights did not have, or if the weights are of another model, whose
    backbone may be longer or shorter.

    Args:
      path: of the weights, for messages.
      weights: from :func:`saved.read_saved`, or of a training run.
      info: of the model; with its classes.
      variables: {"params": .., "batch_stats": ..} of the model as initialized: nested
        dicts of arrays.

    Returns:
      `variables` with arrays of the weights, and a report.

    Raises:
      UserError: weights of another network; names all arrays that do not fit, or the
        field that differs.
    """
    _check_fields(path, weights, info)
    new_scores = _why_new_scores(weights, info)
    same_model = weights.info.model == info.model
    heads = set(weights.heads)
    model_layers = by_layer(flatten(variables))
    file_layers = by_layer(weights.arrays)
    widened = _widened(weights.arrays, flatten(variables))
    loaded, new = [], {}
    chosen: dict[str, np.ndarray] = {}
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "wrong": []}
    for layer, leaves in model_layers.items():
        arrays = file_layers.get(layer, {})
        if not arrays:
            trunk = same_model and layer.startswith("backbone/")
            if trunk and layer not in weights.missing:
                problems["missing"] += leaves
            new[layer] = "the weights do not have it"
            continue
        other = [
            name
            for name in leaves
            if name in arrays
            and leaves[name].shape != arrays[name].shape
            and name not in widened
        ]
        if new_scores and heads & arrays.keys() and set(other) <= heads:
            new[layer] = new_scores
            continue
        problems["missing"] += sorted(leaves.keys() - arrays.keys())
        problems["unexpected"] += sorted(arrays.keys() - leaves.keys())
        problems["wrong"] += [
            f"{name} has shape {arrays[name].shape}, the model needs "
            f"{tuple(leaves[name].shape)}"
            for name in other
        ]
        loaded.append(layer)
        chosen |= arrays
    unused = tuple(layer for layer in file_layers if layer not in model_layers)
    for layer in unused:
        if same_model and layer.startswith("backbone/"):
            problems["unexpected"] += file_layers[layer]
    if text := listing.listed_problems(problems):
        raise UserError(
            f"{path} ({weights.source}) does not fit the model; {text}; give both the "
            "same fields of config.model"
        )
    if not loaded:
        raise UserError(
            f"{path} ({weights.source}) has no layer of this model: it is of model "
            f"{weights.info.model!r}"
        )
    notes = _convert_images(
        path, chosen, source=weights.info.images, target=info.images
    )
    for name, channels in widened.items():
        if name in chosen:
            chosen[name] = images.widen(chosen[name], channels)
            notes.append(_widening(name, channels))
    notes += _differences(weights, info)
    source = f"{path} ({weights.source})"
    report = Report(source, tuple(loaded), new, unused, tuple(notes))
    return replace(variables, chosen), report


def _widened(
    arrays: Mapping[str, np.ndarray], leaves: Mapping[str, Any]
) -> dict[str, int]:
    """Kernels of RGB images that the model has for other channels, and how many."""
    found = {}
    for layer in images.layers(leaves):
        name = f"params/{layer}/kernel"
        shape, own = leaves[name].shape, np.shape(arrays.get(name, ()))
        same = len(own) == 4 and (*own[:2], own[3]) == (*shape[:2], shape[3])
        if same and own[2] == 3 != shape[2]:
            found[name] = shape[2]
    return found


def _widening(name: str, channels: int) -> str:
    layer = name.removeprefix("params/").removesuffix("/kernel")
    if channels < 3:
        how = "every channel has the mean of the kernels of red, green and blue"
    else:
        how = (
            "the first three channels are taken for red, green and blue, others have "
            "the mean of their kernels"
        )
    return f"{layer} was for RGB images, these have {channels} channels: {how}, " + (
        f"times 3 / {channels}"
    )


def _plain(value: Any) -> Any:
    """As JSON has it: lists for tuples."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _check_fields(path: object, weights: Weights, info: ModelInfo) -> None:
    fields = weights.info.fields
    for field in sorted(must_agree(fields)):
        if field in fields and fields[field] != info.fields.get(field, fields[field]):
            raise UserError(
                f"{path} ({weights.source}) is of a network with "
                f"{field}={fields[field]!r}, --config.model.{field} is "
                f"{info.fields[field]!r}: set it to {fields[field]!r}"
            )


def _differences(weights: Weights, info: ModelInfo) -> list[str]:
    """Notes of what else the network was that the weights are of."""
    fields = weights.info.fields
    notes = [
        f"the weights are of a network with {field}={fields[field]!r}, "
        f"--config.model.{field} is {info.fields[field]!r}"
        for field in sorted(fields.keys() & info.fields.keys())
        if field not in (*MUST_AGREE, *TRAINING_ONLY, *_ELSEWHERE, *_COST)
        and _plain(fields[field]) != _plain(info.fields[field])
    ]
    if not weights.info.classes and weights.num_classes == len(info.classes):
        notes.append(
            f"the names of the {weights.num_classes} classes of the weights are not "
            "known: taken to be those of the data, in this order: "
            + listing.listed(info.classes, 30)
        )
    return notes


def _why_new_scores(weights: Weights, info: ModelInfo) -> str:
    """Why the class scores of the weights cannot be used, or ""."""
    names = weights.info.classes
    if not weights.num_classes:
        return ""
    if weights.num_classes != len(info.classes):
        return f"the weights are for {weights.num_classes} classes"
    if names and names != info.classes:
        pairs = enumerate(zip(names, info.classes, strict=True))
        index = next(i for i, (one, other) in pairs if one != other)
        return (
            f"class {index} of the weights is {names[index]!r}, of the data "
            f"{info.classes[index]!r}"
        )
    return ""


def _convert_images(
    path: object,
    arrays: dict[str, np.ndarray],
    *,
    source: Images,
    target: Images,
) -> list[str]:
    """Folds another scale and mean of the images into the first layer of `arrays`."""
    factor, offset = images.between(source, target)
    if np.allclose(factor, 1, 0, 1e-6) and np.allclose(offset, 0, 0, 1e-6):
        return []
    layers = images.layers(arrays)
    change = (
        f"images of scale {source.scale:.6g} and mean {source.mean}, the model of "
        f"scale {target.scale:.6g} and mean {target.mean}"
    )
    if not layers:
        raise UserError(
            f"{path}: its first layer takes {change}: set --config.model.image_stats "
            "to that of the weights"
        )
    for layer in layers:
        images.fold(layer, arrays, factor=factor, offset=offset)
    return [
        f"{layer} took {change}: folded into its weights, exactly but for the padding "
        "of the image"
        for layer in layers
    ]
