"""Published arrays -> our layers: memory layouts, colors, means, normalizations.

A :class:`Table` says which arrays of a file make up which of our layers. Conversions
are exact, but for rounding:

* kernels are transposed to HWIO, fully-connected ones reshaped to convolutions;
* images of another color order, scale or mean: folded into the first layer (at the
  border of the image, where that layer sees padding, the zeros stand for another
  color then);
* a bias in front of a batch normalization: subtracted from its mean;
* another epsilon: added to the variance;
* Caffe's BatchNorm: mean and variance are divided by its scale factor.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from segjax.errors import UserError
from segjax.weights import listing
from segjax.weights.images import Images, between, fold, mean_behind
from segjax.weights.thinning import subset, taps

EPSILON = 1e-5  # of models/layers.batch_norm
# Shapes a kernel [h, w, i, o] may have in a file, and the axes that make it HWIO.
# "OIHW": Caffe, PyTorch; "IOHW": their transposed convolutions, in our scatter order
# as they are; "HWIO": Keras.
_AXES = {"OIHW": (2, 3, 1, 0), "IOHW": (2, 3, 0, 1), "HWIO": (0, 1, 2, 3)}


class Conv(NamedTuple):
    """A convolution or fully-connected layer: its arrays in the file."""

    kernel: str
    bias: str
    layout: str = "OIHW"
    inputs: tuple[int, ...] = ()  # the file's input channel for each of ours; (): same
    flipped: bool = False  # the file's are convolutions, which turn kernels around


class Norm(NamedTuple):
    """A batch normalization: its arrays in the file."""

    scale: str
    bias: str
    mean: str  # "": the statistics are folded into scale and bias
    var: str
    factor: str = ""  # Caffe: divides mean and variance
    excess: float = 0.0  # the file's epsilon - ours
    inverse: bool = False  # `var` holds 1 / sqrt(variance + the file's epsilon)


class Arrays(NamedTuple):
    """Parameters that are stored as ours are, except for leading axes of size 1."""

    names: Mapping[str, str]  # our parameter of the layer -> its array in the file
    negated: tuple[str, ...] = ()  # those of ours whose sign is the other one


class Thinned(NamedTuple):
    """A convolution of which a part is kept: DeepLab's fc6 and fc7, from VGG16's.

    DeepLab v1 (section 4.1) keeps a random subset of 1,024 of the 4,096 filters, and
    fewer taps of the kernel. The taps that stay are evenly spaced: 0, 3, 6 of 7 with a
    side of 3; 0, 2, 4, 6 with 4. Subsets of n channels are the first ones of
    ``numpy.random.RandomState(draw).permutation(n)``, in their order in the file.
    """

    conv: Conv
    side: int  # of the kernel in the file
    draw: int  # of the subset of outputs
    inputs: int = -1  # the draw of the subset of inputs; -1: all of them


Entry = Conv | Norm | Arrays | Thinned
# Says what is wrong with an array of the file, "" if nothing is.
Check = Callable[[np.ndarray], str]


class Table(NamedTuple):
    """What one kind of file holds, for one model."""

    source: str  # what to call it
    layers: Mapping[str, Entry]  # ours -> its arrays
    images: Images
    first: str = ""  # our layer that sees the image
    missing: tuple[str, ...] = ()  # our layers that are not in the file
    ignored: tuple[str, ...] = ()  # arrays that this model has no use for
    # Arrays with one right value, which is part of our code: a message if it is wrong.
    checks: Mapping[str, Check] = {}
    added: Mapping[str, str] = {}  # an array of the file -> our bias it is added to
    notes: tuple[str, ...] = ()


class Row(NamedTuple):
    """Where one of our parameters comes from."""

    target: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    how: str


class Result(NamedTuple):
    """The converted arrays by name ("params/LAYER/kernel"), and what went where."""

    arrays: dict[str, np.ndarray]
    rows: tuple[Row, ...]
    missing: tuple[str, ...]  # our layers left as they are initialized
    ignored: tuple[str, ...]  # arrays of the file not used
    checked: tuple[str, ...]  # arrays of the file with the value they must have
    notes: tuple[str, ...]


def convert(
    arrays: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    table: Table,
    images: Images,
) -> Result:
    """Brings the arrays of a file into our layers.

    Args:
      arrays: of the file, by name.
      shapes: of our parameters and statistics, by name: "params/LAYER/kernel" (HWIO),
        "params/LAYER/bias", "params/LAYER/scale", "batch_stats/LAYER/mean", ..
      table: which make up which; every layer of `shapes` is in ``layers`` or
        ``missing``.
      images: as our model sees them.

    Raises:
      UserError: one line with the arrays that are missing, unexpected or wrong.
    """
    work = _Work(arrays, shapes)
    for layer, entry in table.layers.items():
        if isinstance(entry, Conv):
            work.conv(layer, entry)
        elif isinstance(entry, Norm):
            work.norm(layer, entry)
        elif isinstance(entry, Thinned):
            work.thinned(layer, entry)
        else:
            work.plain(layer, entry)
    for source, target in table.added.items():
        work.add(source, target, 1.0, "added")
    for layer, entry in table.layers.items():
        # Some networks have a bias in front of the normalization, where it does nothing
        # but shift the mean.
        if isinstance(entry, Conv) and f"params/{layer}/bias" not in shapes:
            mean = mean_behind(layer, shapes)
            if mean and entry.bias in arrays and entry.bias not in work.used:
                work.add(entry.bias, mean, -1.0, "bias of the convolution subtracted")
    checked = sorted(set(table.checks) & set(arrays))
    for source in checked:
        work.used.add(source)
        if problem := table.checks[source](arrays[source]):
            work.wrong.append(f"{source} {problem}")
    ignored = sorted(set(table.ignored) & set(arrays) - work.used)
    work.raise_problems(table, set(arrays) - work.used - set(ignored))
    if table.first:
        work.fold_images(table.first, table.images, images)
    rows = tuple(
        Row(name, array.shape, tuple(work.sources[name]), ", ".join(work.how[name]))
        for name, array in work.results.items()
    )
    with np.errstate(over="ignore"):
        results = {
            name: array.astype(np.float32, copy=False)
            for name, array in work.results.items()
        }
    _check_values(results, work.sources)
    return Result(
        results, rows, table.missing, tuple(ignored), tuple(checked), table.notes
    )


def _check_values(
    results: Mapping[str, np.ndarray], sources: Mapping[str, list[str]]
) -> None:
    """Raises a UserError for variances below 0, and for what float32 cannot hold."""
    for name, array in results.items():
        if not array.size:
            continue
        low, high = array.min(), array.max()
        what = ""
        if not np.isfinite([low, high]).all():
            what = "values that are too large for float32"
        elif name.startswith("batch_stats/") and name.endswith("/var") and low < 0:
            what = f"a variance of {low:g}"
        if what:
            raise UserError(
                f"{' '.join(sources[name])} ({name.partition('/')[2]} of the model) "
                f"holds {what}; download the file again"
            )


class _Work:
    """The state of one conversion."""

    def __init__(
        self, arrays: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
    ):
        self.arrays, self.shapes = arrays, shapes
        self.results: dict[str, np.ndarray] = {}
        self.sources: dict[str, list[str]] = {}
        self.how: dict[str, list[str]] = {}
        self.used: set[str] = set()
        self.missing: list[str] = []
        self.wrong: list[str] = []

    def take(self, source: str, target: str) -> np.ndarray | None:
        self.used.add(source)
        if source not in self.arrays:
            self.missing.append(f"{source} (our {target.partition('/')[2]})")
            return None
        array = self.arrays[source]
        if array.dtype.kind != "f":
            self.wrong.append(f"{source} holds {array.dtype}, expected real numbers")
        # The extremes suffice: an array of flags would be as large as the kernel.
        if array.size and not np.isfinite([array.min(), array.max()]).all():
            self.wrong.append(f"{source} holds NaN or infinity")
        self.sources.setdefault(target, []).append(source)
        self.how.setdefault(target, [])
        return array

    def conv(self, layer: str, entry: Conv) -> None:
        target = f"params/{layer}/kernel"
        array = self.take(entry.kernel, target)
        if array is not None:
            kernel = _kernel(array, self.shapes[target], entry.layout)
            if kernel is None:
                self.wrong_shape(entry.kernel, target, entry.layout)
            else:
                if entry.layout != "HWIO":
                    self.how[target].append(f"{entry.layout} to HWIO")
                if entry.flipped:
                    kernel = kernel[::-1, ::-1]
                    self.how[target].append("turned around")
                if entry.inputs:
                    kernel = kernel[:, :, list(entry.inputs)]
                    self.how[target].append("input channels reordered")
                self.results[target] = kernel
        target = f"params/{layer}/bias"
        if target in self.shapes:
            self.vector(entry.bias, target)

    def thinned(self, layer: str, entry: Thinned) -> None:
        conv, side = entry.conv, entry.side
        target, bias_target = f"params/{layer}/kernel", f"params/{layer}/bias"
        array, bias = self.take(conv.kernel, target), self.take(conv.bias, bias_target)
        if array is None or bias is None:
            return
        height, width, inputs, outputs = self.shapes[target]
        there = bias.size, array.size // max(side**2 * bias.size, 1)
        kernel = _kernel(array, (side, side, there[1], there[0]), conv.layout)
        fewer = inputs <= there[1] if entry.inputs >= 0 else inputs == there[1]
        if kernel is None or outputs > there[0] or not fewer:
            self.wrong_shape(conv.kernel, target, conv.layout)
            return
        rows, columns = taps(side, height), taps(side, width)
        kept = subset(there[0], outputs, entry.draw)
        kernel = kernel[rows][:, columns][..., kept]
        if entry.inputs >= 0:
            kernel = kernel[:, :, subset(there[1], inputs, entry.inputs)]
        self.results[target] = kernel
        self.results[bias_target] = bias.reshape(-1)[kept].astype(np.float64)
        if conv.layout != "HWIO":
            self.how[target].append(f"{conv.layout} to HWIO")
        if height != side:
            self.how[target].append(f"{height}x{width} of {side}x{side} taps")
        if outputs != there[0]:
            for name in (target, bias_target):
                self.how[name].append(f"{outputs} of {there[0]} outputs")

    def norm(self, layer: str, entry: Norm) -> None:
        mean, var = f"batch_stats/{layer}/mean", f"batch_stats/{layer}/var"
        self.vector(entry.scale, f"params/{layer}/scale")
        self.vector(entry.bias, f"params/{layer}/bias")
        if entry.mean:
            self.vector(entry.mean, mean)
            self.vector(entry.var, var)
        else:
            for target, value in ((mean, 0.0), (var, 1.0)):
                self.results[target] = np.full(self.shapes[target], value)
                self.sources[target] = []
                self.how[target] = [f"{value:g} by definition"]
        if entry.factor:
            factor = self.take(entry.factor, mean)
            if factor is not None and factor.size != 1:
                self.wrong.append(f"{entry.factor} has {factor.size} values, not 1")
            elif factor is not None:
                # As Caffe does: a factor of 0 means that nothing was accumulated.
                scale = float(factor.item() and 1 / factor.item())
                for target in (mean, var):
                    if target in self.results:
                        self.results[target] = self.results[target] * scale
                        self.how[target].append(f"divided by {entry.factor}")
        if entry.inverse and var in self.results:
            with np.errstate(divide="ignore"):
                self.results[var] = 1 / self.results[var] ** 2 - EPSILON
            self.how[var].append("of its inverse root")
            if not (np.isfinite(self.results[var]) & (self.results[var] >= 0)).all():
                self.wrong.append(f"{entry.var} holds no inverse deviations")
        if entry.excess and var in self.results:
            self.results[var] = self.results[var] + entry.excess
            self.how[var].append(f"{entry.excess:+.2g} for another epsilon")

    def plain(self, layer: str, entry: Arrays) -> None:
        for name, source in entry.names.items():
            target = f"params/{layer}/{name}"
            if target not in self.shapes:
                continue  # then `source` is unexpected
            array = self.take(source, target)
            if array is None:
                continue
            expected = self.shapes[target]
            leading = array.shape[: max(array.ndim - len(expected), 0)]
            if array.shape != (1,) * len(leading) + expected:
                self.wrong_shape(source, target)
            else:
                self.results[target] = array.reshape(expected)
                if name in entry.negated:
                    self.results[target] = -self.results[target]
                    self.how[target].append("negated")

    def vector(self, source: str, target: str) -> None:
        array = self.take(source, target)
        if array is None:
            return
        # Old Caffe files have shapes such as (1, 1, 1, n).
        sides = [side for side in array.shape if side != 1]
        if array.size != self.shapes[target][0] or len(sides) > 1:
            self.wrong_shape(source, target)
        else:
            self.results[target] = array.reshape(-1).astype(np.float64)

    def add(self, source: str, target: str, sign: float, how: str) -> None:
        array = self.take(source, target)
        if array is None or target not in self.results:
            return
        if array.size != self.results[target].size:
            self.wrong_shape(source, target)
        else:
            self.results[target] = self.results[target] + sign * array.reshape(-1)
            self.how[target].append(how)

    def wrong_shape(self, source: str, target: str, layout: str = "") -> None:
        expected = self.shapes[target]
        if layout:
            expected = tuple(expected[_AXES[layout].index(axis)] for axis in range(4))
        self.wrong.append(
            f"{source} has shape {self.arrays[source].shape}, our "
            f"{target.partition('/')[2]} needs {expected}"
        )

    def raise_problems(self, table: Table, unexpected: set[str]) -> None:
        problems = {"missing": self.missing, "unexpected": sorted(unexpected)}
        if text := listing.listed_problems(problems | {"wrong": self.wrong}):
            hint = "; ".join(table.notes) or "check the model's fields"
            raise UserError(
                f"the file does not fit the model as {table.source}; {text}; {hint}"
            )

    def fold_images(self, layer: str, source: Images, target: Images) -> None:
        name = f"params/{layer}/kernel"
        kernel = self.results[name]
        if len(source.mean) not in (1, kernel.shape[2]):
            raise UserError(
                f"the model's first layer {layer} takes {kernel.shape[2]} channels, "
                f"the published one {len(source.mean)}"
            )
        if source.bgr:
            self.results[name] = kernel[:, :, ::-1]
            self.how[name].append("BGR to RGB")
        factor, offset = between(source, target)
        if not np.allclose(factor, 1, 0, 1e-6):
            self.how[name].append("scale of the images folded in")
        if shifted := fold(layer, self.results, factor=factor, offset=offset):
            self.how[shifted].append("mean of the images folded in")


def _kernel(
    array: np.ndarray, shape: tuple[int, ...], layout: str
) -> np.ndarray | None:
    """`array` as a kernel of `shape` HWIO, or None if it has another shape."""
    axes = _AXES[layout]
    stored = tuple(shape[axes.index(axis)] for axis in range(4))
    height, width, inputs, outputs = shape
    # Fully connected: the inputs run over (channel, y, x), in Keras over (y, x,
    # channel), which is the order of the four axes in each; old Caffe files prepend
    # (1, 1).
    rows = height * width * inputs
    flat = (rows, outputs) if layout == "HWIO" else (outputs, rows)
    allowed = (stored, flat, (1, 1, *flat)) if layout != "IOHW" else (stored,)
    if array.shape not in allowed:
        return None
    return array.reshape(stored).transpose(axes)
