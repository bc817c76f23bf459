"""From the arrays of a published file to the layers of one of our models."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from segjax.errors import UserError
from segjax.weights import convert, sources
from segjax.weights.saved import ModelInfo, Weights
from segjax.weights.tree import Shapes, layer_of


class Imported(NamedTuple):
    """Our layers from a published file."""

    result: convert.Result
    source: str
    num_classes: int  # of the file; 0: it has no class scores that we use
    heads: tuple[str, ...]  # parameters whose shape depends on the number of classes
    info: ModelInfo

    @property
    def weights(self) -> Weights:
        """What is written to a file."""
        return Weights(
            arrays=self.result.arrays,
            info=self.info,
            source=self.source,
            num_classes=self.num_classes,
            heads=self.heads,
            missing=self.result.missing,
        )


def import_arrays(
    arrays: Mapping[str, np.ndarray],
    info: ModelInfo,
    *,
    shapes_of: Callable[[int], Shapes],
    ignore: str = "",
) -> Imported:
    """Converts the arrays of a published file into the layers of a model.

    Args:
      arrays: from :func:`read`.
      info: of the model.
      shapes_of: from a number of classes to the shapes of all parameters and statistics
        by name ("params/LAYER/kernel"). Asked for 2 and 3 classes; sides may be any
        multiple of the number of classes, plus anything.
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
    table = sources.find(sources.Target(info.model, info.fields, two, arrays.keys()))
    num_classes = 0
    for name in heads:
        entry = table.layers.get(layer_of(name))
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
    table = sources.find(sources.Target(info.model, info.fields, shapes, arrays.keys()))
    result = convert.convert(arrays, shapes, table, info.images)
    return Imported(result, table.source, num_classes, heads, info)


def heads_of(two: Shapes, three: Shapes) -> tuple[str, ...]:
    """Parameters whose shape depends on the number of classes, from two of those."""
    return tuple(name for name in two if two[name] != three[name])


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
        columns = (text.ljust(width) for text, width in zip(row, widths))
        yield "  ".join(columns).rstrip()
    yield from summary(imported.weights)
    for what, items in (
        ("checked, part of the model's code", result.checked),
        ("not used", result.ignored),
    ):
        if items:
            yield f"{what} ({len(items)}): {convert.listed(items)}"
    for note in result.notes:
        yield f"note: {note}"


def summary(weights: Weights) -> Iterable[str]:
    """How much there is of a model, and what there is not."""
    sizes = {"params": 0, "batch_stats": 0}
    for name, array in weights.arrays.items():
        sizes[name.partition("/")[0]] += array.size
    yield (
        f"{weights.source}: {sizes['params']:,} parameters, "
        f"{sizes['batch_stats']:,} statistics"
    )
    if weights.missing:
        yield (
            f"newly initialized when training starts ({len(weights.missing)}): "
            f"{convert.listed(weights.missing)}"
        )
