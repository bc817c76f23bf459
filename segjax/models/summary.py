"""What a network costs and what it sees: counts, strides, receptive fields, memory.

All but the ``xla_*`` cross-checks and :func:`effective_receptive_field` is read from
the traced program (its jaxpr). Nothing is compiled or computed, so any size is cheap.

**Multiply-adds (MACs)** count every tap of every kernel once per output cell, taps on
zero padding included, as papers do: N * h * w * kh * kw * in / groups * out; once per
*input* cell for a transposed convolution, whose inserted zeros are no work. Additions,
normalisation, activations and pooling windows are not counted. **FLOPs are twice the
MACs**; many numbers published as FLOPs are MACs.

**Receptive field** of a cell: image rows from the first to the last one it depends on,
holes included, away from the borders. A map has a (smallest, largest): interpolated
cells see more than those that lie on a cell of the coarse map. Every array of the
program is followed with the first and the last image row behind each of its rows, see
:func:`_propagate`. ``math.inf`` is a field that grows with the image, as behind global
pooling. Rows only: kernels are square here.

**Stride** of a map: image rows per row of the map; ``math.inf`` where pooling gives a
fixed size.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.extend import core

from segjax.errors import UserError
from segjax.ops import geometry

LOGITS = "logits"

Field = tuple[float, float]  # smallest and largest receptive field of a map's cells


class Layer(NamedTuple):
    """A module with parameters of its own.

    Prediction may not use it (an auxiliary head): then it has no output, and its MACs,
    stride and receptive field are 0.
    """

    name: str  # "backbone/conv1_1"
    kernel: tuple[int, ...]  # [kh, kw, in / groups, out]; () if it has none
    parameters: int
    statistics: int  # running averages, which no gradient changes
    dilation: int = 1
    output: tuple[int, ...] = ()  # [1, h, w, C]
    macs: int = 0
    stride: float = 0
    receptive_field: Field = (0, 0)


class Map(NamedTuple):
    """The logits or an endpoint."""

    shape: tuple[int, ...]  # [1, h, w, C]
    stride: float
    receptive_field: Field


class Summary(NamedTuple):
    """A model and one image size."""

    model: str
    image: tuple[int, int, int]  # (H, W, C), a batch of one
    layers: tuple[Layer, ...]  # in the order of execution, unused ones last
    logits: Map
    endpoints: dict[str, Map]  # of prediction, as far as they are maps
    fixed_macs: int
    """MACs with constant matrices, which is how resizing and some pooling are done."""
    activation_bytes: int
    """See :func:`activation_bytes`; 0 if it was not asked for."""

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def statistics(self) -> int:
        return sum(layer.statistics for layer in self.layers)

    @property
    def macs(self) -> int:
        """MACs of the layers with parameters, which is what publications count."""
        return sum(layer.macs for layer in self.layers)

    @property
    def flops(self) -> int:
        """Twice `macs`."""
        return 2 * self.macs

    @property
    def margin(self) -> tuple[int, int]:
        """Pixels missing in the logits at the top (and bottom) and left (and right)."""
        height, width = self.logits.shape[1:3]
        return (self.image[0] - height) // 2, (self.image[1] - width) // 2

    @property
    def output_stride(self) -> float:
        """Stride of the class scores before their last, fixed interpolation."""
        return [layer.stride for layer in self.layers if layer.output][-1]


def summary(
    model: nn.Module, image: tuple[int, int, int], activations: bool = True
) -> Summary:
    """Summarises `model` for an image of (H, W, C).

    Args:
      model: a network of segjax.models, or any module with a `tiling` that is applied
        to (images [N, H, W, C], train) and returns (logits, endpoints).
      activations: trace the backward pass too, for `activation_bytes`.

    Raises:
      UserError: the model does not take such an image.
      NotImplementedError: it uses an operation that cannot be followed here.
    """
    variables = abstract_variables(model, image[-1])
    jaxpr, shapes = _trace(model, variables, image)
    found = _layers(variables, type(model).__name__)
    found, fixed = _with_calls(found, jaxpr.jaxpr)
    layer_views, map_views = _views(model, variables, found, image[-1])
    layers = []
    for path, layer in found.items():
        stride, field = layer_views.get(path, (0, (0, 0)))
        layers.append(layer._replace(stride=stride, receptive_field=field))
    maps = {name: Map(shapes[name], *view) for name, view in map_views.items()}
    return Summary(
        model=type(model).__name__,
        image=tuple(image),
        layers=tuple(layers),
        logits=maps.pop(LOGITS),
        endpoints=maps,
        fixed_macs=fixed,
        activation_bytes=activation_bytes(model, image) if activations else 0,
    )


# --- tracing --------------------------------------------------------------------------


def abstract_variables(model: nn.Module, channels: int) -> dict[str, Any]:
    """Shapes and types of the variables of `model`, traced on a small image."""
    side = geometry.nearest_sides(model.tiling, 64)[-1]
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    images = _images((side, side, channels))
    return jax.eval_shape(lambda x: model.init(keys, x, train=True), images)


def _images(image: Sequence[int]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *image), np.uint8)


def _predict(model: nn.Module) -> Callable:
    return lambda variables, images: model.apply(variables, images, train=False)


def _trace(
    model: nn.Module, variables: Mapping[str, Any], image: Sequence[int]
) -> tuple[core.ClosedJaxpr, dict[str, tuple[int, ...]]]:
    """The program of prediction, and names and shapes of its outputs in their order."""
    trace = jax.make_jaxpr(_predict(model), return_shape=True)
    jaxpr, (logits, endpoints) = trace(variables, _images(image))
    shapes = {LOGITS: logits.shape}
    for keys, output in jax.tree_util.tree_leaves_with_path(endpoints):
        shapes[jax.tree_util.keystr(keys, simple=True, separator="/")] = output.shape
    return jaxpr, shapes


# Primitives that run an inner program on their inputs.
_CALLS = frozenset(
    {
        "jit",
        "pjit",
        "closed_call",
        "core_call",
        "remat",
        "remat2",
        "checkpoint",
        "custom_jvp_call",
        "custom_vjp_call",
        "custom_vjp_call_jaxpr",
    }
)


def _callee(equation: core.JaxprEqn) -> tuple[core.Jaxpr, Sequence[Any]]:
    """The inner program of one of `_CALLS`, and its constants."""
    keys = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    inner = next(equation.params[key] for key in keys if key in equation.params)
    if isinstance(inner, core.ClosedJaxpr):
        return inner.jaxpr, inner.consts
    return inner, ()


def _inside(scope: tuple[str, ...], equation: core.JaxprEqn) -> tuple[str, ...]:
    """The modules around an equation, outermost first."""
    names = str(equation.source_info.name_stack)
    return (*scope, *names.split("/")) if names else scope


def _equations(
    jaxpr: core.Jaxpr, scope: tuple[str, ...] = (), times: int = 1
) -> Iterator[tuple[tuple[str, ...], core.JaxprEqn, int]]:
    """All equations, inner programs unrolled: (scope, equation, repetitions)."""
    for equation in jaxpr.eqns:
        here, params = _inside(scope, equation), equation.params
        name = equation.primitive.name
        if name in _CALLS:
            yield from _equations(_callee(equation)[0], here, times)
        elif name == "scan":
            yield from _equations(params["jaxpr"].jaxpr, here, times * params["length"])
        elif name == "cond":
            branches = [branch.jaxpr for branch in params["branches"]]
            yield from _equations(max(branches, key=macs), here, times)
        elif name == "while" and macs(params["body_jaxpr"].jaxpr):
            raise NotImplementedError(
                f"{'/'.join(here)}: a while loop, whose number of repetitions is not "
                f"known, contains multiply-adds"
            )
        else:
            yield here, equation, times


# --- counts ---------------------------------------------------------------------------


def macs(jaxpr: core.Jaxpr) -> int:
    """Multiply-adds of all convolutions and matrix products of a traced program."""
    return sum(times * _macs(equation) for _, equation, times in _equations(jaxpr))


def _macs(equation: core.JaxprEqn) -> int:
    if equation.primitive.name == "conv_general_dilated":
        return _convolution_macs(equation)
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        lhs = equation.invars[0].aval.shape
        output = equation.outvars[0].aval.shape
        return math.prod(output) * math.prod(lhs[axis] for axis in contracted)
    return 0


def _convolution_macs(equation: core.JaxprEqn) -> int:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    source, kernel = (x.aval.shape for x in equation.invars)
    output = equation.outvars[0].aval.shape
    # Kernels hold in / groups channels already.
    count = output[numbers.out_spec[0]]
    count *= kernel[numbers.rhs_spec[0]] * kernel[numbers.rhs_spec[1]]
    for axis, holes in enumerate(params["lhs_dilation"], start=2):
        transposed = holes > 1
        spec, shape = numbers.out_spec, output
        if transposed:
            spec, shape = numbers.lhs_spec, source
        count *= shape[spec[axis]] * kernel[numbers.rhs_spec[axis]]
    return count


def _layers(variables: Mapping[str, Any], root: str) -> dict[tuple[str, ...], Layer]:
    """The modules with parameters, by path."""
    trees = [variables["params"], variables.get("batch_stats", {})]
    counts: dict[tuple[str, ...], list[int]] = {}
    kernels = {}
    for kind, tree in enumerate(trees):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            *path, name = (key.key for key in keys)
            path = tuple(path)
            counts.setdefault(path, [0, 0])[kind] += math.prod(leaf.shape)
            if name == "kernel":
                kernels[path] = leaf.shape
    return {
        path: Layer("/".join(path) or root, kernels.get(path, ()), *count)
        for path, count in counts.items()
    }


def _owner(
    paths: Sequence[tuple[str, ...]],
) -> Callable[[tuple[str, ...]], tuple[str, ...] | None]:
    """A function from a scope to the innermost of the modules `paths` around it."""

    @functools.cache
    def owner(scope):
        # A scope has more names than a path: the model, einsum formulas, loops.
        def around(path):
            names = iter(scope)
            return all(name in names for name in path)

        return max(filter(around, paths), key=len, default=None)

    return owner


def _with_calls(
    layers: dict[tuple[str, ...], Layer], jaxpr: core.Jaxpr
) -> tuple[dict[tuple[str, ...], Layer], int]:
    """Layers in the order of execution with what they compute; MACs of no layer."""
    owner = _owner(tuple(layers))
    used: dict[tuple[str, ...], Layer] = {}
    outputs = []
    fixed = 0
    for scope, equation, times in _equations(jaxpr):
        path, count = owner(scope), times * _macs(equation)
        outputs += [(path, output.aval.shape) for output in equation.outvars[:1]]
        if path is None:
            fixed += count
            continue
        layer = used.setdefault(path, layers[path])
        dilation = equation.params.get("rhs_dilation", (layer.dilation,))[0]
        used[path] = layer._replace(dilation=dilation, macs=layer.macs + count)
    for path, (_, shape) in _largest(outputs).items():
        used[path] = used[path]._replace(output=shape)
    return used | {path: x for path, x in layers.items() if path not in used}, fixed


def _largest(outputs: Sequence[tuple]) -> dict[tuple[str, ...], tuple]:
    """The output of each layer: of the first of its largest calls.

    Args:
      outputs: (path, shape, ..) of each equation, in the order of execution. Those of
        one call follow each other; its output is their last map.
    """
    found: dict[tuple[str, ...], tuple] = {}
    for path, call in itertools.groupby(outputs, key=lambda output: output[0]):
        maps = [output for output in call if len(output[1]) == 4]
        if path is None or not maps:
            continue
        if path not in found or maps[-1][1][1] > found[path][1][1]:
            found[path] = maps[-1]
    return found


def activation_bytes(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Bytes kept from the forward to the backward pass of one (H, W, C) image.

    An estimate: the arrays that ``jax.vjp`` saves for the gradient of all outputs in
    training, without the parameters and the loss. XLA may merge some and recompute
    others, and needs room for what it works on; see :func:`xla_memory`.
    """
    variables = abstract_variables(model, image[-1])

    def saved(variables, images, key):
        def run(params):
            return _train(model, {**variables, "params": params}, images, key)

        return jax.tree.leaves(jax.vjp(run, variables["params"])[1])

    key = jax.eval_shape(lambda: jax.random.key(0))
    jaxpr = jax.make_jaxpr(saved)(variables, _images(image), key).jaxpr
    *_, images, key = jaxpr.invars
    # What comes from the image or from dropout; the rest is parameters and constants.
    made = {images, key}
    for equation in jaxpr.eqns:
        if any(isinstance(x, core.Var) and x in made for x in equation.invars):
            made.update(equation.outvars)
    outputs = {x for x in jaxpr.outvars if isinstance(x, core.Var)}
    kept = [x.aval for x in outputs & made - {images, key}]
    return sum(x.size * x.dtype.itemsize for x in kept)


def _train(model: nn.Module, variables: Mapping, images: jax.Array, key: jax.Array):
    """(logits, endpoints) of training."""
    return model.apply(
        variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
    )[0]


def xla_flops(model: nn.Module, image: tuple[int, int, int]) -> float:
    """XLA's own count for the prediction of one (H, W, C) image; not compiled.

    To cross-check ``Summary.flops``, from which it differs in what it counts: 2 per
    multiply-add, but none on padding, and 1 for every other arithmetic operation.
    """
    variables = abstract_variables(model, image[-1])
    lowered = jax.jit(_predict(model)).lower(variables, _images(image))
    return lowered.cost_analysis()["flops"]


def xla_memory(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Bytes of temporary arrays of a compiled gradient for one (H, W, C) image.

    Compiles for the first device, which takes as long as a training step would.
    """

    def loss(params, statistics, images):
        variables = {"params": params, **statistics}
        logits, _ = _train(model, variables, images, jax.random.key(0))
        return jnp.square(logits).sum()

    statistics = dict(abstract_variables(model, image[-1]))
    params = statistics.pop("params")
    lowered = jax.jit(jax.grad(loss)).lower(params, statistics, _images(image))
    return lowered.compile().memory_analysis().temp_size_in_bytes


# --- receptive fields -----------------------------------------------------------------

# An array's "reach" is an int64 array [*shape, 2]: for each element the first image row
# it depends on, and *minus* the last one, so that the reach of a union is the minimum.
# Axes along which it does not change have length 1. No row at all is _NOTHING.
_NOTHING = 2**40

# Above this size, arrays that are computed from constants are not evaluated.
_FOLDED = 2**16


class _Value(NamedTuple):
    reach: np.ndarray
    constant: np.ndarray | None = None  # where it is known


def _nothing(ndim: int) -> np.ndarray:
    return np.full((1,) * ndim + (2,), _NOTHING)


def _constant(value: Any) -> _Value:
    value = np.asarray(value)
    return _Value(_nothing(value.ndim), value)


def _unknown(variable: core.Var) -> _Value:
    return _Value(_nothing(variable.aval.ndim))


def _views(
    model: nn.Module,
    variables: Mapping[str, Any],
    layers: Mapping[tuple[str, ...], Layer],
    channels: int,
) -> tuple[dict[tuple[str, ...], tuple[float, Field]], dict[str, tuple[float, Field]]]:
    """(stride, receptive field) of the used layers by path, of the outputs by name.

    From two images that are tall enough to have rows that no border influences. Their
    heights differ by a multiple of all strides, and are of the form 8k + 1, where
    aligned corners are exact, if the model takes that.
    """
    width = geometry.nearest_sides(model.tiling, 33)[-1]
    tall = geometry.nearest_sides(model.tiling, 4097)[-1]
    short = tall - math.lcm(model.tiling.step, 512)
    both = [
        _reaches(model, variables, tuple(layers), (height, width, channels))
        for height in (tall, short)
    ]
    calls, maps = zip(*both, strict=True)
    views = []
    for first, second in (calls, maps):
        views.append({k: _view(tall, *first[k], short, *second[k]) for k in first})
    return tuple(views)


def _reaches(
    model: nn.Module,
    variables: Mapping[str, Any],
    paths: Sequence[tuple[str, ...]],
    image: tuple[int, int, int],
) -> tuple[dict, dict]:
    """(rows, reach) of the outputs of layers by path, of the model by name."""
    jaxpr, shapes = _trace(model, variables, image)
    owner, seen = _owner(paths), []

    def visit(scope, equation, outputs):
        shapes = (output.aval.shape for output in equation.outvars[:1])
        seen.extend((owner(scope), shape, outputs[0].reach) for shape in shapes)

    *weights, images = (_unknown(x) for x in jaxpr.jaxpr.invars)
    rows = np.arange(image[0]).reshape(1, -1, 1, 1)
    images = _Value(np.stack([rows, -rows], axis=-1))
    constants = map(_constant, jaxpr.consts)
    outputs = _propagate(jaxpr.jaxpr, constants, [*weights, images], visit)
    calls = {path: (shape[1], x) for path, (_, shape, x) in _largest(seen).items()}
    maps = {
        name: (shape[1], output.reach)
        for (name, shape), output in zip(shapes.items(), outputs, strict=True)
        if len(shape) == 4
    }
    return calls, maps


def _view(
    tall: int, many: int, reach: np.ndarray, short: int, few: int, other: np.ndarray
) -> tuple[float, Field]:
    """Stride and receptive field of a map from its rows and reach for two heights."""
    stride = (tall - short) / (many - few) if many > few else math.inf
    field = _field(many, reach)
    # No border is in what the middle eighth of the rows sees.
    finite = field == _field(few, other) and field[1] <= short * 7 / 8
    return stride, field if finite else (math.inf, math.inf)


def _field(rows: int, reach: np.ndarray) -> Field:
    """Smallest and largest field of the middle eighth of the rows of a map."""
    reach = reach.min(axis=(0, 2, 3))
    if len(reach) > 1:
        reach = reach[rows * 7 // 16 : -(rows * 9 // -16)]
    reach = reach[reach[:, 0] < _NOTHING]
    if not len(reach):
        return 0, 0
    widths = 1 - reach.sum(axis=1)
    return int(widths.min()), int(widths.max())


def _propagate(
    jaxpr: core.Jaxpr,
    constants: Iterator[_Value],
    inputs: Sequence[_Value],
    visit: Callable[[tuple[str, ...], core.JaxprEqn, list[_Value]], None],
    scope: tuple[str, ...] = (),
) -> list[_Value]:
    """The reach of a program's outputs, given that of its inputs.

    Constants keep their values: the weights of a resizing, of which most are zero, say
    what its outputs depend on. Whatever else is unknown counts as nonzero.

    Args:
      visit: called with scope, equation and outputs, in the order of execution.
    """
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom):
        return _constant(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        here = _inside(scope, equation)
        outputs = _apply(equation, [read(x) for x in equation.invars], visit, here)
        visit(here, equation, outputs)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _apply(
    equation: core.JaxprEqn, inputs: list[_Value], visit: Callable, scope: tuple
) -> list[_Value]:
    name = equation.primitive.name
    if name in _CALLS:
        jaxpr, constants = _callee(equation)
        constants = map(_constant, constants)
        return _propagate(jaxpr, constants, inputs, visit, scope)
    if name == "scan":
        return _scan(equation, inputs, visit, scope)
    if name == "cond":
        index, *operands = inputs
        branches = [
            _propagate(b.jaxpr, map(_constant, b.consts), operands, visit, scope)
            for b in equation.params["branches"]
        ]
        return [_union(index, *outputs) for outputs in zip(*branches, strict=True)]
    if all((x.reach == _NOTHING).all() for x in inputs):
        # Nothing of the image is in it. Indices and such are needed as values.
        size = sum(x.aval.size for x in equation.outvars)
        if size <= _FOLDED and all(x.constant is not None for x in inputs):
            outputs = equation.primitive.bind(
                *(x.constant for x in inputs), **equation.params
            )
            several = equation.primitive.multiple_results
            return [_constant(x) for x in (outputs if several else [outputs])]
        return [_unknown(x) for x in equation.outvars]
    if name in _ELEMENTWISE:
        return [_union(*inputs)]
    if name not in _RULES:
        raise NotImplementedError(
            f"{'/'.join(scope)}: no rule for the receptive field behind '{name}'"
        )
    outputs = _RULES[name](equation, *inputs)
    return [_Value(x) for x in (outputs if isinstance(outputs, list) else [outputs])]


def _union(*values: _Value) -> _Value:
    return _Value(functools.reduce(np.minimum, (x.reach for x in values)))


def _scan(
    equation: core.JaxprEqn, inputs: list[_Value], visit: Callable, scope: tuple
) -> list[_Value]:
    params, body = equation.params, equation.params["jaxpr"]
    start = params["num_consts"]
    stop = start + params["num_carry"]
    fixed, carry, stacked = inputs[:start], inputs[start:stop], inputs[stop:]
    steps = range(params["length"])
    ys = []
    for step in reversed(steps) if params["reverse"] else steps:
        xs = [
            _Value(
                x.reach[step if len(x.reach) > 1 else 0],
                None if x.constant is None else x.constant[step],
            )
            for x in stacked
        ]
        constants = map(_constant, body.consts)
        inner = [*fixed, *carry, *xs]
        outputs = _propagate(body.jaxpr, constants, inner, visit, scope)
        carry, y = outputs[: len(carry)], outputs[len(carry) :]
        ys.append(y)
    if params["reverse"]:
        ys.reverse()
    columns = (np.broadcast_arrays(*(x.reach for x in y)) for y in zip(*ys))
    return [*carry, *(_Value(np.stack(column)) for column in columns)]


def _windows(
    reach: np.ndarray,
    axis: int,
    size: int,
    output: int,
    stride: int,
    padding: int,
    dilation: int,
    holes: int,
) -> np.ndarray:
    """Union over the windows of `size` taps along an axis.

    Args:
      output: number of windows.
      padding: before the first cell.
      holes: 1 + number of zeros between the cells of the input.
    """
    length = reach.shape[axis]
    if length == 1:
        return reach
    first = np.arange(output) * stride - padding
    out = np.full_like(reach, _NOTHING, shape=_resized(reach, axis, output))
    for tap in range(size):
        position = first + tap * dilation
        cell = position // holes
        inside = (position % holes == 0) & (cell >= 0) & (cell < length)
        part = reach.take(np.where(inside, cell, 0), axis)
        shape = [1] * reach.ndim
        shape[axis] = -1
        part = np.where(inside.reshape(shape), part, _NOTHING)
        out = np.minimum(out, part)
    return out


def _resized(array: np.ndarray, axis: int, length: int) -> tuple[int, ...]:
    return (*array.shape[:axis], length, *array.shape[axis + 1 :])


def _convolve(equation: core.JaxprEqn, x: _Value, kernel: _Value) -> np.ndarray:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    reach = x.reach.transpose(*numbers.lhs_spec, -1).min(axis=1, keepdims=True)
    for i in range(2, reach.ndim - 1):
        reach = _windows(
            reach,
            axis=i,
            size=equation.invars[1].aval.shape[numbers.rhs_spec[i]],
            output=equation.outvars[0].aval.shape[numbers.out_spec[i]],
            stride=params["window_strides"][i - 2],
            padding=params["padding"][i - 2][0],
            dilation=params["rhs_dilation"][i - 2],
            holes=params["lhs_dilation"][i - 2],
        )
    reach = np.minimum(reach, kernel.reach.reshape(-1, 2).min(axis=0))
    return reach.transpose(*np.argsort(numbers.out_spec), -1)


def _reduce_window(equation: core.JaxprEqn, x: _Value, *_: _Value) -> np.ndarray:
    params, reach = equation.params, x.reach
    for axis, size in enumerate(params["window_dimensions"]):
        reach = _windows(
            reach,
            axis,
            size,
            output=equation.outvars[0].aval.shape[axis],
            stride=params["window_strides"][axis],
            padding=params["padding"][axis][0],
            dilation=params["window_dilation"][axis],
            holes=params["base_dilation"][axis],
        )
    return reach


def _multiply(equation: core.JaxprEqn, lhs: _Value, rhs: _Value) -> np.ndarray:
    (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = equation.params["dimension_numbers"]
    left = _contract(lhs, lhs_axes, lhs_batch, rhs, rhs_axes)
    right = _contract(rhs, rhs_axes, rhs_batch, lhs, lhs_axes)
    # The output is [batch, free of lhs, free of rhs].
    batch, total = len(lhs_batch), left.ndim - 1
    middle = total - (lhs.reach.ndim - 1 - len(lhs_axes) - batch)
    order = [*range(batch), *range(middle, total), *range(batch, middle), total]
    return np.minimum(left, right.transpose(order))


def _contract(
    x: _Value,
    axes: Sequence[int],
    batch: Sequence[int],
    other: _Value,
    other_axes: Sequence[int],
) -> np.ndarray:
    """Reach [batch, free of x, free of other, 2] of a product through its factor x."""
    ndim = x.reach.ndim - 1
    free = [i for i in range(ndim) if i not in (*axes, *batch)]
    reach = x.reach.transpose(*batch, *free, *axes, ndim)
    matrix = len(axes) == 1 and not batch and other.constant is not None
    if matrix and reach.shape[-2] > 1:
        # Of a constant matrix only the nonzero entries matter.
        used = np.moveaxis(other.constant != 0, other_axes[0], -1)
        output, cell = np.nonzero(used.reshape(-1, used.shape[-1]))
        cells = np.moveaxis(reach, -2, 0)
        out = np.full((math.prod(used.shape[:-1]), *cells.shape[1:]), _NOTHING)
        np.minimum.at(out, output, cells[cell])
        return np.moveaxis(out, 0, -2).reshape(*reach.shape[:-2], *used.shape[:-1], 2)
    reach = reach.min(axis=tuple(range(ndim - len(axes), ndim)))
    free_of_other = other.reach.ndim - 1 - len(axes) - len(batch)
    return reach.reshape(*reach.shape[:-1], *[1] * free_of_other, 2)


def _product(equation: core.JaxprEqn, *factors: _Value) -> np.ndarray:
    """Elementwise; what is multiplied by a constant zero does not matter."""
    reaches = []
    for one, other in zip(factors, factors[::-1], strict=True):
        reach, zero = one.reach, np.asarray(other.constant == 0)
        if other.constant is not None and zero.size <= _FOLDED and zero.any():
            reach = np.where(zero[..., None], _NOTHING, reach)
        reaches.append(reach)
    return np.minimum(*reaches)


def _reduce(equation: core.JaxprEqn, x: _Value, *_: _Value) -> np.ndarray:
    return x.reach.min(axis=tuple(equation.params["axes"]))


def _whole_axis(axis: str) -> Callable:
    """Rule of what may read the whole of one axis, and keeps the shape."""

    def rule(equation: core.JaxprEqn, *inputs: _Value) -> list[np.ndarray]:
        reach = _union(*inputs).reach.min(axis=equation.params[axis], keepdims=True)
        return [reach] * len(equation.outvars)

    return rule


def _broadcast(equation: core.JaxprEqn, x: _Value, *_: _Value) -> np.ndarray:
    shape = [1] * len(equation.params["shape"])
    for axis, length in zip(equation.params["broadcast_dimensions"], x.reach.shape):
        shape[axis] = length
    return x.reach.reshape(*shape, 2)


def _reshape(equation: core.JaxprEqn, x: _Value, *_: _Value) -> np.ndarray:
    old, new = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    source, target = [], []
    # Groups of neighbouring axes that become each other.
    while len(source) < len(old) or len(target) < len(new):
        i, j = len(source), len(target)
        group, made = list(old[i : i + 1]), list(new[j : j + 1])
        while math.prod(group) != math.prod(made):
            if math.prod(group) < math.prod(made):
                group.append(old[i + len(group)])
            else:
                made.append(new[j + len(made)])
        constant = x.reach.shape[i : i + len(group)] == (1,) * len(group)
        source += [1] * len(group) if constant else group
        target += [1] * len(made) if constant else made
    return np.broadcast_to(x.reach, (*source, 2)).reshape(*target, 2)


def _transpose(equation: core.JaxprEqn, x: _Value) -> np.ndarray:
    return x.reach.transpose(*equation.params["permutation"], -1)


def _squeeze(equation: core.JaxprEqn, x: _Value) -> np.ndarray:
    return x.reach.squeeze(axis=tuple(equation.params["dimensions"]))


def _cut(reach: np.ndarray, slices: Sequence[slice]) -> np.ndarray:
    """`reach[slices]`, leaving alone the axes along which it does not change."""
    kept = zip(slices, reach.shape)
    return reach[tuple(s if length > 1 else slice(None) for s, length in kept)]


def _slice(equation: core.JaxprEqn, x: _Value) -> np.ndarray:
    starts, limits = (equation.params[f"{k}_indices"] for k in ("start", "limit"))
    strides = equation.params["strides"] or [1] * len(starts)
    return _cut(x.reach, [slice(*s) for s in zip(starts, limits, strides, strict=True)])


def _split(equation: core.JaxprEqn, x: _Value) -> list[np.ndarray]:
    axis, stops = equation.params["axis"], np.cumsum(equation.params["sizes"])
    before = [slice(None)] * axis
    starts = [0, *stops[:-1]]
    return [_cut(x.reach, [*before, slice(*s)]) for s in zip(starts, stops)]


def _dynamic_slice(equation: core.JaxprEqn, x: _Value, *starts: _Value) -> np.ndarray:
    reach, shape = x.reach, equation.invars[0].aval.shape
    sizes = equation.params["slice_sizes"]
    for axis, (start, size) in enumerate(zip(starts, sizes, strict=True)):
        if start.constant is None and size < shape[axis]:
            reach = reach.min(axis=axis, keepdims=True)
        elif start.constant is not None:
            first = int(np.clip(start.constant, 0, shape[axis] - size))
            reach = _cut(reach, [slice(None)] * axis + [slice(first, first + size)])
    return reach


def _reverse(equation: core.JaxprEqn, x: _Value) -> np.ndarray:
    return np.flip(x.reach, equation.params["dimensions"])


def _pad(equation: core.JaxprEqn, x: _Value, padding: _Value) -> np.ndarray:
    reach = x.reach
    for axis, (low, _, holes) in enumerate(equation.params["padding_config"]):
        length = equation.outvars[0].aval.shape[axis]
        reach = _windows(reach, axis, 1, length, 1, low, 1, holes + 1)
    return np.minimum(reach, padding.reach)


def _concatenate(equation: core.JaxprEqn, *inputs: _Value) -> np.ndarray:
    axis, first = equation.params["dimension"], inputs[0].reach
    if all(np.array_equal(x.reach, first) for x in inputs) and first.shape[axis] == 1:
        return first
    lengths = [x.aval.shape[axis] for x in equation.invars]
    if not any(n == x.reach.shape[axis] for n, x in zip(lengths, inputs, strict=True)):
        # Channels of different origin, followed as one: the next layer mixes them.
        return _union(*inputs).reach
    shape = np.broadcast_shapes(*(_resized(x.reach, axis, 1) for x in inputs))
    parts = [
        np.broadcast_to(x.reach, (*shape[:axis], length, *shape[axis + 1 :]))
        for length, x in zip(lengths, inputs, strict=True)
    ]
    return np.concatenate(parts, axis)


def _stack(equation: core.JaxprEqn, *inputs: _Value) -> np.ndarray:
    parts = np.broadcast_arrays(*(x.reach for x in inputs))
    return np.stack(parts, equation.params["axis"])


def _tile(equation: core.JaxprEqn, x: _Value) -> np.ndarray:
    reps = equation.params["reps"]
    counts = [r if n > 1 else 1 for r, n in zip(reps, x.reach.shape)]
    return np.tile(x.reach, (*counts, 1))


def _gather(equation: core.JaxprEqn, x: _Value, indices: _Value) -> np.ndarray:
    """Follows known indices along one axis; others may read the whole of their axes."""
    numbers = equation.params["dimension_numbers"]
    sizes = equation.params["slice_sizes"]
    batch = equation.invars[1].aval.ndim - 1
    reach, looked_up = x.reach, numbers.start_index_map
    if len(looked_up) == 1 and indices.constant is not None:
        (axis,) = looked_up
        limit = equation.invars[0].aval.shape[axis] - sizes[axis]
        first = np.clip(indices.constant, 0, limit)
        if reach.shape[axis] > 1:
            reach = reach.take(first + np.arange(sizes[axis]), axis)
            reach = np.moveaxis(reach, range(axis, axis + batch), range(batch))
        else:
            reach = reach.reshape(*[1] * batch, *reach.shape)
    else:
        hull = (*looked_up, *numbers.operand_batching_dims)
        seen = indices.reach.reshape(-1, 2).min(axis=0)
        reach = np.minimum(reach.min(axis=hull, keepdims=True), seen)
        reach = reach.reshape(*[1] * batch, *reach.shape)
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    reach = reach.squeeze(axis=tuple(batch + axis for axis in dropped))
    ndim = reach.ndim - 1
    others = [i for i in range(ndim) if i not in numbers.offset_dims]
    place = [*others, *numbers.offset_dims]
    return reach.transpose(*np.argsort(place), ndim)


# fmt: off
_ELEMENTWISE = frozenset({
    "abs", "add", "add_any", "and", "atan2", "cbrt", "ceil", "clamp",
    "convert_element_type", "copy", "copy_p", "cos", "cosh", "div", "eq", "erf",
    "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow",
    "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "ne", "neg",
    "nextafter", "not", "or", "pow", "reduce_precision", "rem", "round",
    "rsqrt", "select_n", "sharding_constraint", "shift_left",
    "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "sinh", "sqrt",
    "square", "stop_gradient", "sub", "tan", "tanh", "xor",
})
# fmt: on

_RULES: dict[str, Callable] = {
    "conv_general_dilated": _convolve,
    "dot_general": _multiply,
    "mul": _product,
    "reduce_window": _reduce_window,
    "reduce_window_max": _reduce_window,
    "reduce_window_min": _reduce_window,
    "reduce_window_sum": _reduce_window,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_sum": _reduce,
    "reduce_prod": _reduce,
    "reduce_and": _reduce,
    "reduce_or": _reduce,
    "argmax": _reduce,
    "argmin": _reduce,
    "cumsum": _whole_axis("axis"),
    "sort": _whole_axis("dimension"),
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "squeeze": _squeeze,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "rev": _reverse,
    "pad": _pad,
    "concatenate": _concatenate,
    "stack": _stack,
    "tile": _tile,
    "gather": _gather,
}


# --- effective receptive field --------------------------------------------------------


def effective_receptive_field(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: np.ndarray,
    output: str = LOGITS,
    seed: int = 0,
) -> np.ndarray:
    """How much each pixel moves the centre cell (Luo et al., NeurIPS 2016).

    The mean over `images` of the absolute gradient of the centre cell of `output`,
    summed over the channels of the image. The channels of the cell are summed with
    random signs, other ones for each image.

    Args:
      variables: of the model.
      images: [N, H, W, C], 0..255; random ones show the network, real ones the data.
      output: "logits" or an endpoint of prediction.

    Returns:
      float32 [H, W] with a maximum of 1 (all zero if no pixel has an influence).

    Raises:
      UserError: no such output.
    """

    @jax.jit
    def gradient(image, key):
        def centre(image):
            logits, endpoints = model.apply(variables, image[None], train=False)
            outputs = {**endpoints, LOGITS: logits}
            if output not in outputs:
                raise UserError(
                    f"output {output!r}: {type(model).__name__} has "
                    f"{', '.join(sorted(outputs))}"
                )
            cells = outputs[output]
            cell = cells[0, cells.shape[1] // 2, cells.shape[2] // 2]
            return cell.astype(jnp.float32) @ jax.random.rademacher(
                key, cell.shape, jnp.float32
            )

        return jnp.abs(jax.grad(centre)(image)).sum(axis=-1)

    keys = jax.random.split(jax.random.key(seed), len(images))
    pairs = zip(images.astype(np.float32), keys, strict=True)
    total = sum(np.asarray(gradient(image, key)) for image, key in pairs)
    return total / max(total.max(), np.finfo(np.float32).tiny)


def effective_side(influence: np.ndarray) -> float:
    """Side of a square as large as the area above 4.55 % of the maximum.

    The size of an effective receptive field in Luo et al. (two standard deviations of
    a Gaussian); `influence` [H, W] comes from :func:`effective_receptive_field`.
    """
    return math.sqrt(np.count_nonzero(influence > (1 - 0.9545) * influence.max()))


# --- tables ---------------------------------------------------------------------------

Rows = list[tuple[str, ...]]  # the first one is the titles, or a row as the others


def layer_rows(summary: Summary) -> Rows:
    """One row per layer."""
    rows = [("layer", "kernel", "output", "parameters", "MACs", "stride", "field")]
    for layer in summary.layers:
        kernel = "x".join(map(str, layer.kernel))
        rate = f" rate {layer.dilation}" if layer.dilation > 1 else ""
        rows.append(
            (
                layer.name,
                kernel + rate,
                "x".join(map(str, layer.output[1:])) or "training only",
                f"{layer.parameters:,}",
                f"{layer.macs:,}",
                stride_text(layer.stride),
                field_text(layer.receptive_field),
            )
        )
    return rows


def map_rows(summary: Summary) -> Rows:
    """One row per endpoint, and the logits."""
    rows = [("output", "shape", "stride", "field")]
    for name, x in (*summary.endpoints.items(), (LOGITS, summary.logits)):
        shape = "x".join(map(str, x.shape[1:]))
        field = field_text(x.receptive_field)
        rows.append((name, shape, stride_text(x.stride), field))
    return rows


def total_rows(summary: Summary) -> Rows:
    """What belongs to the whole model."""
    height, width, channels = summary.image
    return [
        ("model", summary.model),
        ("image", f"{height}x{width}x{channels}"),
        ("output", "x".join(map(str, summary.logits.shape[1:]))),
        ("margin", "{}, {} px".format(*summary.margin)),
        ("output stride", stride_text(summary.output_stride)),
        ("receptive field", f"{field_text(summary.logits.receptive_field)} px"),
        ("parameters", f"{summary.parameters:,}"),
        ("batch statistics", f"{summary.statistics:,}"),
        ("MACs", f"{summary.macs:,}"),
        ("FLOPs (2 x MACs)", f"{summary.flops:,}"),
        ("MACs of fixed resizing", f"{summary.fixed_macs:,}"),
        ("activations in training", f"{summary.activation_bytes / 2**20:,.1f} MiB"),
    ]


def model_rows(summaries: Mapping[str, Summary]) -> Rows:
    """One row per model."""
    rows = [
        (
            "model",
            "image",
            "output",
            "parameters",
            "GMACs",
            "GFLOPs",
            "stride",
            "field",
            "activations",
        )
    ]
    for name, x in summaries.items():
        rows.append(
            (
                name,
                "x".join(map(str, x.image)),
                "x".join(map(str, x.logits.shape[1:3])),
                f"{x.parameters:,}",
                f"{x.macs / 1e9:,.1f}",
                f"{x.flops / 1e9:,.1f}",
                stride_text(x.output_stride),
                field_text(x.logits.receptive_field),
                f"{x.activation_bytes / 2**20:,.0f} MiB",
            )
        )
    return rows


def stride_text(stride: float) -> str:
    return "global" if stride == math.inf else f"{stride:g}"


def field_text(field: Field) -> str:
    """404, 188..204 (smallest and largest) or global."""
    if math.inf in field:
        return "global"
    return f"{field[0]}" if field[0] == field[1] else f"{field[0]}..{field[1]}"


def text_table(rows: Rows) -> str:
    """Aligned columns, those of numbers to the right."""
    columns = []
    for column in zip(*rows, strict=True):
        width = max(map(len, column))
        first = column[1][:1].isdigit() and "x" not in column[1]
        columns.append([c.rjust(width) if first else c.ljust(width) for c in column])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns))


def markdown_table(rows: Rows) -> str:
    """GitHub's pipe tables."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
