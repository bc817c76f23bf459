"""Weights of our models as files: safetensors, arrays by our names, facts as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax import files
from segjax.errors import UserError
from segjax.weights import listing
from segjax.weights.images import Images
from segjax.weights.readers import safetensors_file
from segjax.weights.tree import Tree, flatten, replace


class ModelInfo(NamedTuple):
    """Properties of a model that its arrays do not show."""

    model: str  # a key of segjax.models.MODELS
    fields: Mapping[str, Any]  # of the model, and of the network within CRF-RNN
    images: Images  # as the model sees them
    classes: tuple[str, ...] = ()  # their names; (): not known


class Weights(NamedTuple):
    """The weights of a model that was trained, or imported from a published file."""

    arrays: Mapping[str, np.ndarray]  # "params/LAYER/kernel"
    info: ModelInfo
    source: str  # where they come from, in words
    num_classes: int  # 0: no class scores
    heads: tuple[str, ...]  # arrays whose shape depends on the number of classes
    missing: tuple[str, ...] = ()  # layers of the model that the source did not have


_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_NUMBERS = {"type": "array", "minItems": 1, "items": {"type": "number"}}
_SCHEMA = {
    "type": "object",
    "required": [
        *("model", "fields", "images", "classes"),
        *("source", "num_classes", "heads", "missing"),
    ],
    "properties": {
        "model": _TEXT,
        "fields": {"type": "object"},
        "images": {
            "type": "object",
            "required": ["scale", "mean", "deviation"],
            "properties": {
                "scale": {"type": "number", "exclusiveMinimum": 0},
                "mean": _NUMBERS,
                "deviation": _NUMBERS,
            },
        },
        "classes": _TEXTS,
        "source": _TEXT,
        "num_classes": {"type": "integer", "minimum": 0},
        "heads": _TEXTS,
        "missing": _TEXTS,
    },
}


def save(path: str | Path, weights: Weights) -> None:
    """Writes weights and what they are of; the same weights give the same bytes.

    Raises:
      UserError: safetensors is not installed, or the file cannot be written.
    """
    _, info, source, num_classes, heads, missing = weights
    facts = {
        "model": info.model,
        "fields": info.fields,
        "images": {
            "scale": info.images.scale,
            "mean": info.images.mean,
            "deviation": info.images.deviation,
        },
        "classes": info.classes,
        "source": source,
        "num_classes": num_classes,
        "heads": heads,
        "missing": missing,
    }
    # One entry: the library writes several in a random order.
    metadata = {"segjax": json.dumps(facts, sort_keys=True)}
    safetensors_file.write(path, weights.arrays, metadata)


def read_saved(path: str | Path) -> Weights:
    """Reads what :func:`save` wrote.

    Raises:
      UserError: another file, or a damaged one.
    """
    arrays, metadata = safetensors_file.read(path)
    if "segjax" not in metadata:
        state = "was not written by experiments.import_weights; convert it first"
        if metadata.get("format") == "segjax":
            state = (
                "was converted by an earlier version, which did not keep what its "
                "first layer expects of images; convert it again"
            )
        raise UserError(f"{path} {state}")
    try:
        facts = json.loads(metadata["segjax"])
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: what it says about its arrays is not JSON ({error}); convert it "
            "again"
        ) from error
    files.check_json(facts, path=path, what="converted weights", schema=_SCHEMA)
    images = facts["images"]
    info = ModelInfo(
        facts["model"],
        facts["fields"],
        Images(images["scale"], tuple(images["mean"]), tuple(images["deviation"])),
        tuple(facts["classes"]),
    )
    heads, missing = tuple(facts["heads"]), tuple(facts["missing"])
    return Weights(arrays, info, facts["source"], facts["num_classes"], heads, missing)


def load(path: str | Path, abstract: Tree) -> dict[str, Any]:
    """The variables of a whole model from a file written by :func:`save`.

    The caller answers for the fields of the model: only names and shapes are compared.

    Args:
      abstract: {"params": .., "batch_stats": ..} of anything with a shape and a dtype.

    Returns:
      The same tree of numpy arrays.

    Raises:
      UserError: an array is missing, too many or of another shape; all are named.
    """
    arrays = read_saved(path).arrays
    expected = flatten(abstract)
    problems = {
        "missing": sorted(expected.keys() - arrays.keys()),
        "unexpected": sorted(arrays.keys() - expected.keys()),
        "wrong": [
            f"{name} has shape {arrays[name].shape}, the model needs "
            f"{tuple(leaf.shape)}"
            for name, leaf in expected.items()
            if name in arrays and arrays[name].shape != tuple(leaf.shape)
        ],
    }
    if text := listing.listed_problems(problems):
        raise UserError(f"{path} does not fit the model; {text}; check its fields")
    return replace(abstract, arrays)
