"""What every array of a traced program depends on: the image rows behind each element.

An array's *reach* is an int64 array [*shape, 2]: for each element the first image row
it depends on, and *minus* the last one, so that the reach of a union is the minimum.
Axes along which it does not change have length 1. No row at all is NOTHING.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from segjax.analysis import tracing
from segjax.analysis.tracing import Path, struct
from segjax.errors import UserError

NOTHING = 2**40

# Above this size, arrays that are computed from constants are not evaluated.
_FOLDED = 2**16
# Padding of axes up to this long, such as taps of a kernel, is followed element by
# element.
_SHORT = 8

Visit = Callable[[Path, core.JaxprEqn, list["Value"]], None]  # see propagate


class Value(NamedTuple):
    """What is known of an array."""

    reach: np.ndarray
    constant: np.ndarray | None = None  # its value, where it is known


def _nothing(ndim: int) -> np.ndarray:
    return np.full((1,) * ndim + (2,), NOTHING)


def constant(value: Any) -> Value:
    """An array of the program's own."""
    array = np.asarray(value)
    return Value(_nothing(array.ndim), array)


def unknown(variable: core.Var) -> Value:
    """An array that does not depend on the image, such as a parameter."""
    return Value(_nothing(struct(variable).ndim))


def propagate(
    jaxpr: core.Jaxpr,
    constants: Iterator[Value],
    *,
    inputs: Sequence[Value],
    visit: Visit,
    scope: Path = (),
) -> list[Value]:
    """The reach of a program's outputs, given that of its inputs.

    Constants keep their values: the weights of a resizing, of which most are zero, say
    what its outputs depend on. Whatever else is unknown counts as nonzero.

    Args:
      visit: called with scope, equation and outputs, in the order of execution.

    Raises:
      UserError: an operation without a rule.
    """
    values = dict(zip(jaxpr.constvars, constants, strict=True))
    values |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom):
        return constant(atom.val) if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        inner_scope = tracing.inside(scope, equation)
        operands = [read(x) for x in equation.invars]
        outputs = _apply(equation, operands, visit=visit, scope=inner_scope)
        if outputs:
            visit(inner_scope, equation, outputs)
        values |= dict(zip(equation.outvars, outputs, strict=True))
    return [read(x) for x in jaxpr.outvars]


def _apply(
    equation: core.JaxprEqn, inputs: list[Value], *, visit: Visit, scope: Path
) -> list[Value]:
    name, outvars = equation.primitive.name, equation.outvars
    inner = tracing.callee(equation)
    if inner is not None:
        operands = inputs[inner.first :]
        constants = map(constant, inner.constants)
        return propagate(
            inner.jaxpr, constants, inputs=operands, visit=visit, scope=scope
        )
    if all((x.reach == NOTHING).all() for x in inputs):
        # Nothing of the image is in it, but it may be weights of a resizing.
        size = sum(struct(x).size for x in outvars)
        if size <= _FOLDED and all(x.constant is not None for x in inputs):
            values = (x.constant for x in inputs)
            results = equation.primitive.bind(*values, **equation.params)
            several = equation.primitive.multiple_results
            return [constant(x) for x in (results if several else [results])]
        return [unknown(x) for x in outvars]
    if name in _ELEMENTWISE:
        return [_union(inputs)]
    if name in _ANYWHERE:
        seen = functools.reduce(np.minimum, (_hull(x.reach) for x in inputs))

        def everything(variable):
            return Value(np.minimum(_nothing(struct(variable).ndim), seen))

        if name == "scan":  # the layers in it are seen as well
            body = equation.params["jaxpr"].jaxpr
            for inner_scope, step, _ in tracing.equations(body, scope):
                visit(inner_scope, step, [everything(x) for x in step.outvars])
        return [everything(x) for x in outvars]
    if name not in _RULES:
        raise UserError(
            f"receptive field: {'/'.join(scope)} uses {name!r}, expected an operation "
            f"with a rule in segjax/analysis/dependencies.py"
        )
    outputs = _RULES[name](equation, *inputs)
    return [Value(x) for x in (outputs if isinstance(outputs, list) else [outputs])]


def _union(values: Sequence[Value]) -> Value:
    return Value(functools.reduce(np.minimum, (x.reach for x in values)))


def _hull(reach: np.ndarray) -> np.ndarray:
    """What all elements together depend on, [2]."""
    return reach.reshape(-1, 2).min(axis=0)


# --- rules ----------------------------------------------------------------------------


def _windows(
    reach: np.ndarray,
    axis: int,
    *,
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
      padding: before the first element.
      holes: 1 + number of zeros between the elements of the input.
    """
    length = reach.shape[axis]
    if length == 1:
        return reach
    first = np.arange(output) * stride - padding
    out = np.full_like(reach, NOTHING, shape=_resized(reach, axis, output))
    for tap in range(size):
        position = first + tap * dilation
        source = position // holes
        inside = (position % holes == 0) & (source >= 0) & (source < length)
        part = reach.take(np.where(inside, source, 0), axis)
        shape = [1] * reach.ndim
        shape[axis] = -1
        part = np.where(inside.reshape(shape), part, NOTHING)
        out = np.minimum(out, part)
    return out


def _resized(array: np.ndarray, axis: int, length: int) -> tuple[int, ...]:
    return (*array.shape[:axis], length, *array.shape[axis + 1 :])


def _convolve(equation: core.JaxprEqn, x: Value, kernel: Value) -> np.ndarray:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    reach = x.reach.transpose(*numbers.lhs_spec, -1).min(axis=1, keepdims=True)
    for i in range(2, reach.ndim - 1):
        reach = _windows(
            reach,
            i,
            size=struct(equation.invars[1]).shape[numbers.rhs_spec[i]],
            output=struct(equation.outvars[0]).shape[numbers.out_spec[i]],
            stride=params["window_strides"][i - 2],
            padding=params["padding"][i - 2][0],
            dilation=params["rhs_dilation"][i - 2],
            holes=params["lhs_dilation"][i - 2],
        )
    reach = np.minimum(reach, _hull(kernel.reach))
    return reach.transpose(*np.argsort(numbers.out_spec), -1)


def _reduce_window(equation: core.JaxprEqn, x: Value, *_: Value) -> np.ndarray:
    params, reach = equation.params, x.reach
    for axis, size in enumerate(params["window_dimensions"]):
        reach = _windows(
            reach,
            axis,
            size=size,
            output=struct(equation.outvars[0]).shape[axis],
            stride=params["window_strides"][axis],
            padding=params["padding"][axis][0],
            dilation=params["window_dilation"][axis],
            holes=params["base_dilation"][axis],
        )
    return reach


def _multiply(equation: core.JaxprEqn, lhs: Value, rhs: Value) -> np.ndarray:
    (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = equation.params["dimension_numbers"]
    left = _contract(lhs, rhs, axes=lhs_axes, batch=lhs_batch, other_axes=rhs_axes)
    right = _contract(rhs, lhs, axes=rhs_axes, batch=rhs_batch, other_axes=lhs_axes)
    # The output is [batch, free of lhs, free of rhs].
    batch, total = len(lhs_batch), left.ndim - 1
    middle = total - (lhs.reach.ndim - 1 - len(lhs_axes) - batch)
    order = [*range(batch), *range(middle, total), *range(batch, middle), total]
    return np.minimum(left, right.transpose(order))


def _contract(
    x: Value,
    other: Value,
    *,
    axes: Sequence[int],
    batch: Sequence[int],
    other_axes: Sequence[int],
) -> np.ndarray:
    """Reach [batch, free of x, free of other, 2] of a product through its factor x."""
    ndim = x.reach.ndim - 1
    free = [i for i in range(ndim) if i not in (*axes, *batch)]
    reach = x.reach.transpose(*batch, *free, *axes, ndim)
    matrix = other.constant if len(axes) == 1 and not batch else None
    if matrix is not None and reach.shape[-2] > 1:
        # Only the nonzero entries of a constant matrix matter.
        used = np.moveaxis(np.not_equal(matrix, 0), other_axes[0], -1)
        output, source = np.nonzero(used.reshape(-1, used.shape[-1]))
        elements = np.moveaxis(reach, -2, 0)
        out = np.full((math.prod(used.shape[:-1]), *elements.shape[1:]), NOTHING)
        np.minimum.at(out, output, elements[source])
        return np.moveaxis(out, 0, -2).reshape(*reach.shape[:-2], *used.shape[:-1], 2)
    reach = reach.min(axis=tuple(range(ndim - len(axes), ndim)))
    free_of_other = other.reach.ndim - 1 - len(axes) - len(batch)
    return reach.reshape(*reach.shape[:-1], *[1] * free_of_other, 2)


def _product(equation: core.JaxprEqn, *factors: Value) -> np.ndarray:
    """Elementwise; what is multiplied by a constant zero does not matter."""
    reaches = []
    for one, other in zip(factors, factors[::-1], strict=True):
        reach, zero = one.reach, np.asarray(other.constant == 0)
        if other.constant is not None and zero.size <= _FOLDED and zero.any():
            reach = np.where(zero[..., None], NOTHING, reach)
        reaches.append(reach)
    return np.minimum(*reaches)


def _reduce(equation: core.JaxprEqn, x: Value) -> np.ndarray:
    return x.reach.min(axis=tuple(equation.params["axes"]))


def _broadcast(equation: core.JaxprEqn, x: Value) -> np.ndarray:
    shape = [1] * len(equation.params["shape"])
    for axis, length in zip(equation.params["broadcast_dimensions"], x.reach.shape):
        shape[axis] = length
    return x.reach.reshape(*shape, 2)


def _reshape(equation: core.JaxprEqn, x: Value) -> np.ndarray:
    old, new = (struct(x).shape for x in (equation.invars[0], equation.outvars[0]))
    source: list[int] = []
    target: list[int] = []
    # Groups of neighboring axes that become each other.
    while len(source) < len(old) or len(target) < len(new):
        i, j = len(source), len(target)
        group, new_group = list(old[i : i + 1]), list(new[j : j + 1])
        while math.prod(group) != math.prod(new_group):
            if math.prod(group) < math.prod(new_group):
                group.append(old[i + len(group)])
            else:
                new_group.append(new[j + len(new_group)])
        constant = x.reach.shape[i : i + len(group)] == (1,) * len(group)
        source += [1] * len(group) if constant else group
        target += [1] * len(new_group) if constant else new_group
    return np.broadcast_to(x.reach, (*source, 2)).reshape(*target, 2)


def _transpose(equation: core.JaxprEqn, x: Value) -> np.ndarray:
    return x.reach.transpose(*equation.params["permutation"], -1)


def _squeeze(equation: core.JaxprEqn, x: Value) -> np.ndarray:
    return x.reach.squeeze(axis=tuple(equation.params["dimensions"]))


def _cut(reach: np.ndarray, slices: Sequence[slice]) -> np.ndarray:
    """`reach[slices]`, leaving alone the axes along which it does not change."""
    kept = zip(slices, reach.shape)
    return reach[tuple(s if length > 1 else slice(None) for s, length in kept)]


def _slice(equation: core.JaxprEqn, x: Value) -> np.ndarray:
    starts, limits = (equation.params[f"{k}_indices"] for k in ("start", "limit"))
    strides = equation.params["strides"] or [1] * len(starts)
    return _cut(x.reach, [slice(*s) for s in zip(starts, limits, strides, strict=True)])


def _split(equation: core.JaxprEqn, x: Value) -> list[np.ndarray]:
    axis, stops = equation.params["axis"], np.cumsum(equation.params["sizes"])
    before = [slice(None)] * axis
    starts = [0, *stops[:-1]]
    return [_cut(x.reach, [*before, slice(*s)]) for s in zip(starts, stops)]


def _reverse(equation: core.JaxprEqn, x: Value) -> np.ndarray:
    return np.flip(x.reach, equation.params["dimensions"])


def _pad(equation: core.JaxprEqn, x: Value, padding: Value) -> np.ndarray:
    reach, shape = x.reach, struct(equation.invars[0]).shape
    for axis, (low, high, holes) in enumerate(equation.params["padding_config"]):
        changed = low > 0 or high > 0 or holes > 0
        if reach.shape[axis] == 1 and not (changed and shape[axis] <= _SHORT):
            continue
        length = struct(equation.outvars[0]).shape[axis]
        position = low + (1 + holes) * np.arange(shape[axis])
        inside = (position >= 0) & (position < length)
        elements = np.broadcast_to(reach, _resized(reach, axis, shape[axis]))
        padded = np.full(_resized(reach, axis, length), NOTHING)
        before = (slice(None),) * axis
        padded[*before, position[inside]] = elements[*before, inside]
        reach = padded
    return np.minimum(reach, padding.reach)


def _concatenate(equation: core.JaxprEqn, *inputs: Value) -> np.ndarray:
    axis, first = equation.params["dimension"], inputs[0].reach
    if all(np.array_equal(x.reach, first) for x in inputs) and first.shape[axis] == 1:
        return first
    lengths = [struct(x).shape[axis] for x in equation.invars]
    if not any(n == x.reach.shape[axis] for n, x in zip(lengths, inputs, strict=True)):
        # Channels of different origin, followed as one: the next layer mixes them.
        return _union(inputs).reach
    shape = np.broadcast_shapes(*(_resized(x.reach, axis, 1) for x in inputs))
    parts = [
        np.broadcast_to(x.reach, (*shape[:axis], length, *shape[axis + 1 :]))
        for length, x in zip(lengths, inputs, strict=True)
    ]
    return np.concatenate(parts, axis)


def _stack(equation: core.JaxprEqn, *inputs: Value) -> np.ndarray:
    parts = np.broadcast_arrays(*(x.reach for x in inputs))
    return np.stack(parts, equation.params["axis"])


# fmt: off
_ELEMENTWISE = frozenset({
    "abs", "add", "add_any", "and", "ceil", "clamp", "convert_element_type", "copy",
    "div", "eq", "erf", "exp", "exp2", "expm1", "floor", "ge", "gt", "integer_pow",
    "is_finite", "le", "log", "log1p", "logistic", "lt", "max", "min", "ne", "neg",
    "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sign", "sqrt", "square",
    "stop_gradient", "sub", "tanh", "xor",
})
# Whose outputs may depend on anything: what is read, or how often, is data.
_ANYWHERE = frozenset({
    "cond", "cumsum", "dynamic_slice", "gather", "scan", "scatter", "scatter-add",
    "scatter-max", "scatter-min", "sort", "while",
})
# fmt: on
_RULES: dict[str, Callable] = {
    "argmax": _reduce,
    "argmin": _reduce,
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "conv_general_dilated": _convolve,
    "dot_general": _multiply,
    "mul": _product,
    "optimization_barrier": lambda equation, *inputs: [x.reach for x in inputs],
    "pad": _pad,
    "reduce_and": _reduce,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "reduce_sum": _reduce,
    "reduce_window": _reduce_window,
    "reduce_window_max": _reduce_window,
    "reduce_window_sum": _reduce_window,
    "reshape": _reshape,
    "rev": _reverse,
    "slice": _slice,
    "split": _split,
    "squeeze": _squeeze,
    "stack": _stack,
    "transpose": _transpose,
}
