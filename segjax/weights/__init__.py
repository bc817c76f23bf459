"""Published weights for our models, and our own weights as safetensors.

A file is read (:func:`read`), its arrays are converted into our layers
(:func:`import_arrays`) and written as one safetensors file (:func:`save`), whose arrays
are called as ours: ``params/backbone/conv1_1/kernel``. :func:`load` reads it back into
a whole model, :func:`init_from` starts a model from it and leaves other heads as they
are. ``python -m experiments.import_weights`` does all of this.

Nothing here uses JAX: trees are nested dicts of arrays.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.errors import UserError
from segjax.weights import convert, sources
from segjax.weights.readers import caffe, keras, safetensors_file, torch_file

Tree = Mapping[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".caffemodel": caffe.read,
    ".pth": torch_file.read,
    ".pt": torch_file.read,
    ".h5": keras.read,
    ".hdf5": keras.read,
    ".safetensors": lambda path: safetensors_file.read(path)[0],
}


class Imported(NamedTuple):
    """Our layers from a published file."""

    result: convert.Result
    source: str
    num_classes: int  # of the file; 0: it has no class scores that we use
    heads: tuple[str, ...]  # parameters whose shape depends on the number of classes


class Report(NamedTuple):
    """What :func:`init_from` did."""

    source: str
    loaded: tuple[str, ...]  # layers
    fresh: dict[str, str]  # layers left as initialized: why
    unused: tuple[str, ...]  # layers of the file that the model does not have

    def lines(self) -> list[str]:
        """The report in lines, to be printed."""
        lines = [f"initialized {len(self.loaded)} layers from {self.source}"]
        lines += [f"  fresh: {layer} ({why})" for layer, why in self.fresh.items()]
        if self.unused:
            lines.append(f"  not used: {', '.join(self.unused)}")
        return lines


def read(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a published file, by the names they have there.

    Caffe: ``LAYER[INDEX]``; PyTorch: the keys of the state dict; Keras: ``LAYER/KIND``;
    safetensors: as they are, so PyTorch's if the file was made from a state dict.

    Raises:
      UserError: unknown kind of file, not readable, or its reader is not installed;
        something in it that is no array of numbers.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UserError(
            f"{path}: unknown kind of weight file {path.suffix!r}; known: "
            f"{', '.join(READERS)}"
        )
    arrays = READERS[path.suffix](path)
    for name, array in arrays.items():
        if not name.isprintable():
            raise UserError(f"{path}: the name {name!r} of an array is no plain text")
        if array.dtype.name == "bfloat16":
            arrays[name] = array.astype(np.float32)
        elif array.dtype.kind not in "fiub":
            raise UserError(f"{path}: {name} holds {array.dtype}, expected numbers")
    return arrays


def import_arrays(
    arrays: Mapping[str, np.ndarray],
    model: str,
    fields: Mapping[str, Any],
    shapes_of: Callable[[int], Shapes],
    images: convert.Images,
    ignore: str = "",
) -> Imported:
    """Converts the arrays of a published file into the layers of a model.

    Args:
      arrays: from :func:`read`.
      model: a key of ``segjax.models.MODELS``.
      fields: all fields of the model.
      shapes_of: from a number of classes to the shapes of all parameters and statistics
        by name ("params/LAYER/kernel"). Asked for 2 and 3 classes; sides may be any
        multiple of the number of classes, plus anything.
      images: as the model sees them.
      ignore: a regular expression of arrays of the file to leave out.

    Raises:
      UserError: one line with everything that does not fit.
    """
    try:
        left_out = re.compile(ignore)
    except re.error as error:
        raise UserError(f"--ignore={ignore}: no regular expression: {error}") from error
    arrays = {n: a for n, a in arrays.items() if not left_out.fullmatch(n)}
    two, three = shapes_of(2), shapes_of(3)
    heads = heads_of(two, three)
    table = sources.find(sources.Target(model, fields, two, arrays.keys()))
    num_classes = 0
    for name in heads:
        entry = table.layers.get(_layer(name))
        scores = (two[name], three[name]) == ((2,), (3,))  # a bias for every class
        if scores and isinstance(entry, convert.Conv) and entry.bias in arrays:
            num_classes = arrays[entry.bias].size
            break
    shapes = {
        name: tuple(
            a + (b - a) * ((num_classes or 2) - 2) for a, b in zip(shape, other)
        )
        for (name, shape), other in zip(two.items(), three.values(), strict=True)
    }
    table = sources.find(sources.Target(model, fields, shapes, arrays.keys()))
    result = convert.convert(arrays, shapes, table, images)
    return Imported(result, table.source, num_classes, heads)


def heads_of(two: Shapes, three: Shapes) -> tuple[str, ...]:
    """Parameters whose shape depends on the number of classes, from two of those."""
    return tuple(name for name in two if two[name] != three[name])


def save(
    path: str | Path, imported: Imported, model: str, fields: Mapping[str, Any]
) -> None:
    """Writes imported layers, and what they are, as safetensors.

    Raises:
      UserError: safetensors is not installed, or the file cannot be written.
    """
    metadata = {
        "format": "segjax",
        "model": model,
        "fields": json.dumps(fields),
        "source": imported.source,
        "num_classes": str(imported.num_classes),
        "heads": json.dumps(imported.heads),
        "fresh": json.dumps(imported.result.fresh),
    }
    safetensors_file.write(path, imported.result.arrays, metadata)


def _read_ours(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays, and what :func:`save` wrote about them."""
    arrays, metadata = safetensors_file.read(path)
    if metadata.get("format") != "segjax":
        raise UserError(
            f"{path} was not written by experiments.import_weights; convert it first"
        )
    try:
        lists = {key: json.loads(metadata[key]) for key in ("heads", "fresh")}
        facts = {key: metadata[key] for key in ("source", "num_classes")}
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{path}: what it says about its arrays is incomplete ({error}); convert "
            "it again"
        ) from error
    return arrays, facts | lists


def load(path: str | Path, abstract: Tree) -> dict[str, Any]:
    """The variables of a whole model from a file written by :func:`save`.

    Args:
      abstract: {"params": .., "batch_stats": ..} of anything with a shape and a dtype.

    Returns:
      The same tree of numpy arrays.

    Raises:
      UserError: an array is missing, too many or of another shape; all are named.
    """
    arrays, _ = _read_ours(path)
    expected = flatten(abstract)
    problems = {
        "missing": sorted(expected.keys() - arrays.keys()),
        "unexpected": sorted(arrays.keys() - expected.keys()),
        "wrong": [
            f"{name} has shape {arrays[name].shape}, the model needs {leaf.shape}"
            for name, leaf in expected.items()
            if name in arrays and arrays[name].shape != tuple(leaf.shape)
        ],
    }
    _raise_problems(path, problems)
    return replace(abstract, arrays)


def init_from(
    path: str | Path, params: Tree, batch_stats: Tree
) -> tuple[dict[str, Any], dict[str, Any], Report]:
    """Starts a model from a file written by :func:`save`.

    Layers with another number of classes, and those outside the backbone that the file
    does not have, stay as they are and are reported. The backbone must fit completely,
    except for layers that its source did not have.

    Args:
      params, batch_stats: of the model as initialized: nested dicts of arrays.

    Returns:
      The two with numpy arrays in place of what the file has, and a report.

    Raises:
      UserError: the file is of another network; all arrays that do not fit are named.
    """
    arrays, metadata = _read_ours(path)
    heads, absent = set(metadata["heads"]), set(metadata["fresh"])
    tree = {"params": params, "batch_stats": batch_stats}
    ours, theirs = _by_layer(flatten(tree)), _by_layer(arrays)
    loaded, fresh, chosen = [], {}, {}
    problems: dict[str, list[str]] = {"missing": [], "unexpected": [], "wrong": []}
    for layer, leaves in ours.items():
        found = theirs.get(layer, {})
        if not found:
            if layer.startswith("backbone/") and layer not in absent:
                problems["missing"] += leaves
            fresh[layer] = "not in the file"
            continue
        problems["missing"] += sorted(leaves.keys() - found.keys())
        problems["unexpected"] += sorted(found.keys() - leaves.keys())
        other = [n for n in leaves if n in found and leaves[n].shape != found[n].shape]
        if other and set(other) <= heads:
            fresh[layer] = f"the file has {metadata['num_classes']} classes"
            continue
        problems["wrong"] += [
            f"{name} has shape {found[name].shape}, the model needs "
            f"{tuple(leaves[name].shape)}"
            for name in other
        ]
        loaded.append(layer)
        chosen |= found
    unused = [layer for layer in theirs if layer not in ours]
    for layer in unused:
        if layer.startswith("backbone/"):
            problems["unexpected"] += theirs[layer]
    _raise_problems(path, problems)
    if not loaded:
        raise UserError(
            f"{path} has no layer of this model: it is of {metadata['source']}"
        )
    new = replace(tree, chosen)
    report = Report(metadata["source"], tuple(loaded), fresh, tuple(unused))
    return new["params"], new["batch_stats"], report


def _raise_problems(path: str | Path, problems: Mapping[str, list[str]]) -> None:
    text = convert.listed_problems(problems)
    if text:
        raise UserError(f"{path} does not fit the model; {text}; check its fields")


def flatten(tree: Tree, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by name, joined by "/"."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def replace(tree: Tree, arrays: Mapping[str, np.ndarray], prefix: str = "") -> dict:
    """The tree with the `arrays` in place of its leaves of those names."""
    new = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            new[key] = replace(value, arrays, f"{name}/")
        elif name in arrays:
            new[key] = arrays[name].astype(value.dtype, copy=False)
        else:
            new[key] = value
    return new


def _layer(name: str) -> str:
    return name.partition("/")[2].rpartition("/")[0]


def _by_layer(leaves: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    layers: dict[str, dict[str, Any]] = {}
    for name, leaf in leaves.items():
        layers.setdefault(_layer(name), {})[name] = leaf
    return layers


def describe(imported: Imported) -> Iterable[str]:
    """What went where, line by line: ours <- the file's arrays (what was done)."""
    result = imported.result
    rows = [
        (
            row.target.partition("/")[2],
            "x".join(map(str, row.shape)),
            " ".join(row.sources),
            row.how,
        )
        for row in result.rows
    ]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths))
        yield "  ".join(cells).rstrip()
    sizes = {"params": 0, "batch_stats": 0}
    for name, array in result.arrays.items():
        sizes[name.partition("/")[0]] += array.size
    yield (
        f"{imported.source}: {sizes['params']:,} parameters, "
        f"{sizes['batch_stats']:,} statistics"
    )
    for what, items in (
        ("left as initialized", result.fresh),
        ("checked, part of the model's code", result.checked),
        ("not used", result.ignored),
    ):
        if items:
            yield f"{what} ({len(items)}): {convert.listed(items)}"
    for note in result.notes:
        yield f"note: {note}"
