"""Nested dicts of arrays, flat by name: ``params/backbone/conv1_1/kernel``.

Not with flax's functions, which would import jax: weights are read without it.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

Tree = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by name, joined by "/"."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def replace(tree: Tree, arrays: Mapping[str, np.ndarray], prefix: str = "") -> dict:
    """The tree with the `arrays` in place of its leaves of those names."""
    new: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            new[key] = replace(value, arrays, f"{name}/")
        elif name in arrays:
            new[key] = arrays[name].astype(value.dtype, copy=False)
        else:
            new[key] = value
    return new


def layer_of(name: str) -> str:
    """The layer of a parameter: "params/backbone/conv1/kernel" -> "backbone/conv1"."""
    return name.partition("/")[2].rpartition("/")[0]


def by_layer(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The leaves of each layer, by their full names."""
    layers: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        layers.setdefault(layer_of(name), {})[name] = leaf
    return layers
