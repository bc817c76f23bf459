"""From the arrays of a published file to the layers of one of our models."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from segjax.errors import UserError
from segjax.tables import text_table
from segjax.weights import convert, listing, tables
from segjax.weights.names.networks import Target
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
    shapes_of: Callable[..., Shapes],
    ignore: str = "",
    leave: str = "",
) -> Imported:
    """Converts the arrays of a published file into the layers of a model.

    Args:
      arrays: from :func:`read`.
      info: of the model.
      shapes_of: ``shapes_of(num_classes, channels)``: the shapes of all parameters and
        statistics by name ("params/LAYER/kernel"), for a number of classes and of image
        channels. Asked for 2 and 3 classes; sides may be any multiple of the number of
        classes, plus anything.
      ignore: a regular expression of arrays of the file to leave out.
      leave: a regular expression of layers of the model to leave newly initialized,
        although files of this kind have them.

    Raises:
      UserError: one line with everything that does not fit.
    """
    left_out, _ = _regex("ignore", ignore), _regex("leave", leave)
    arrays = {n: a for n, a in arrays.items() if not left_out.fullmatch(n)}
    target = Target(info.model, info.fields, shapes_of(2, 3), arrays.keys(), leave)
    channels = _channels(arrays, tables.find(target))
    two, three = shapes_of(2, channels), shapes_of(3, channels)
    heads = heads_of(two, three)
    table = tables.find(target._replace(shapes=two))
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
    table = tables.find(target._replace(shapes=shapes))
    result = convert.convert(arrays, shapes, table=table, images=info.images)
    if not result.arrays:
        raise UserError(f"no layer of the model is in the file ({table.source})")
    return Imported(result, table.source, num_classes, heads, info)


def _regex(flag: str, pattern: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise UserError(
            f"--{flag}={pattern}: not a regular expression: {error}"
        ) from error


def _channels(arrays: Mapping[str, np.ndarray], table: convert.Table) -> int:
    """How many channels the images of the published network have."""
    entry = table.layers.get(table.first)
    if not isinstance(entry, convert.Conv):
        return 3
    kernel = arrays.get(entry.kernel)
    if kernel is None or kernel.ndim != 4:
        return 3
    return kernel.shape[{"OIHW": 1, "IOHW": 0, "HWIO": 2}[entry.layout]] or 3


def rename(
    arrays: Mapping[str, np.ndarray], substitution: str
) -> dict[str, np.ndarray]:
    """Changes the names of arrays, before their kind is recognized.

    Args:
      arrays: by name.
      substitution: ``PATTERN=REPLACEMENT`` of ``re.sub``; "" changes nothing.

    Raises:
      UserError: no such substitution, or one that gives two arrays the same name.
    """
    if not substitution:
        return dict(arrays)
    pattern, equals, replacement = substitution.rpartition("=")
    if not equals:
        raise UserError(f"--rename={substitution}: expected PATTERN=REPLACEMENT")
    regex = _regex("rename", pattern)
    renamed: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        try:
            new = regex.sub(replacement, name)
        except (re.error, IndexError) as error:
            raise UserError(
                f"--rename={substitution}: not a replacement: {error}"
            ) from error
        if new in renamed:
            raise UserError(
                f"--rename={substitution}: two arrays would be called {new!r}"
            )
        renamed[new] = array
    return renamed


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
    yield from text_table(rows, titles=False).splitlines()
    yield from summary(imported.weights)
    for what, items in (
        ("checked, part of the model's code", result.checked),
        ("not used", result.ignored),
    ):
        if items:
            yield f"{what} ({len(items)}): {listing.listed(items)}"
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
            f"{listing.listed(weights.missing)}"
        )
