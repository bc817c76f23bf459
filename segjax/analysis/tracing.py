"""Programs of models, traced and not compiled, for the modules of the summary.

A module is named by its path, ("backbone", "conv1_1"); a scope is the names of the
modules and transformations around an equation of the program.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import numpy as np
from flax import linen as nn
from jax.extend import core

from segjax.models import crfrnn

LOGITS = "logits"
# Fields of models that are another form of the same computation.
_FORMS = ("folded", "framed", "packed")

Path = tuple[str, ...]


class Program(NamedTuple):
    """The prediction of one image."""

    jaxpr: core.ClosedJaxpr  # of the variables' leaves, then the image [1, H, W, C]
    outputs: dict[str, tuple[int, ...]]  # shapes by name, "logits" first, in order


def predict(model: nn.Module) -> Callable:
    """(variables, images) -> (logits, endpoints) of prediction."""
    return lambda variables, images: model.apply(variables, images, train=False)


def train(model: nn.Module) -> Callable:
    """(variables, images, key) -> (logits, endpoints) of training."""

    def run(variables, images, key):
        keys, mutable = {"dropout": key}, ["batch_stats"]
        return model.apply(variables, images, train=True, rngs=keys, mutable=mutable)[0]

    return run


def plain_form(model: nn.Module) -> nn.Module:
    """The same network, computed as the paper writes it down.

    That is without the fields of :data:`_FORMS`, as far as it has them, or the base
    network of a CRF-RNN: same parameters, same outputs but for rounding, and the
    multiply-adds that publications count.
    """
    plain: dict[str, Any] = {name: False for name in _FORMS if getattr(model, name, 0)}
    if isinstance(model, crfrnn.CRFRNN):
        fields = crfrnn.base_fields(model.base, model.base_options)
        if options := tuple(f"{name}=False" for name in _FORMS if fields.get(name)):
            plain["base_options"] = (*model.base_options, *options)
    return model.clone(**plain) if plain else model


def image_struct(image: Sequence[int]) -> jax.ShapeDtypeStruct:
    """A batch of one uint8 image of (H, W, C)."""
    return jax.ShapeDtypeStruct((1, *image), np.uint8)


def trace(
    model: nn.Module, variables: Mapping[str, Any], image: Sequence[int]
) -> Program:
    """The program of prediction for an image of (H, W, C)."""
    run = jax.make_jaxpr(predict(model), return_shape=True)
    jaxpr, (logits, endpoints) = run(variables, image_struct(image))
    outputs = {LOGITS: logits.shape}
    for keys, output in jax.tree_util.tree_leaves_with_path(endpoints):
        name = jax.tree_util.keystr(keys, simple=True, separator="/")
        outputs[name] = output.shape
    return Program(jaxpr, outputs)


# --- equations ------------------------------------------------------------------------


def struct(atom: core.Var | core.Literal) -> jax.ShapeDtypeStruct:
    """Shape and type of an input or output of an equation."""
    # jax declares `aval` as its base class, which has neither.
    return cast(jax.ShapeDtypeStruct, atom.aval)


class Callee(NamedTuple):
    """A program that an equation runs once, on its inputs from `first` on."""

    jaxpr: core.Jaxpr
    constants: Sequence[Any]
    first: int = 0


def callee(equation: core.JaxprEqn) -> Callee | None:
    """The program that an equation runs, None if there is none or it is a loop."""
    params, inner = equation.params, None
    if equation.primitive.name not in ("scan", "while", "cond"):
        keys = "jaxpr", "call_jaxpr", "fun_jaxpr"
        inner = next((params[key] for key in keys if key in params), None)
    elif params.get("branches_platforms"):
        # The choice of the same computation for each platform, the default last.
        return Callee(params["branches"][-1].jaxpr, params["branches"][-1].consts, 1)
    if isinstance(inner, core.ClosedJaxpr):
        return Callee(inner.jaxpr, inner.consts)
    return inner and Callee(inner, ())


def inside(scope: Path, equation: core.JaxprEqn) -> Path:
    """The scope of an equation in a program that is itself in `scope`."""
    names = str(equation.source_info.name_stack)
    return (*scope, *names.split("/")) if names else scope


def equations(
    jaxpr: core.Jaxpr, scope: Path = (), times: int = 1
) -> Iterator[tuple[Path, core.JaxprEqn, int]]:
    """All equations, inner programs unrolled: (scope, equation, repetitions).

    But for "while" and "cond": it is not known how often they run what.
    """
    for equation in jaxpr.eqns:
        inner_scope, name = inside(scope, equation), equation.primitive.name
        inner = callee(equation)
        if inner is not None:
            yield from equations(inner.jaxpr, inner_scope, times)
        elif name == "scan":
            body, length = equation.params["jaxpr"].jaxpr, equation.params["length"]
            yield from equations(body, inner_scope, times * length)
        elif equation.outvars:
            yield inner_scope, equation, times


def owner_of(paths: Sequence[Path]) -> Callable[[Path], Path | None]:
    """A function from a scope to the innermost of the modules `paths` around it."""

    @functools.cache
    def owner(scope):
        # A scope has more names than a path: the model, einsum formulas, loops.
        def around(path):
            names = iter(scope)
            return all(name in names for name in path)

        return max(filter(around, paths), key=len, default=None)

    return owner


def outputs_of_modules(calls: Sequence[tuple]) -> dict[Path, tuple]:
    """The output of each module: of the first of its largest calls.

    Args:
      calls: (path or None, shape, ..) of each equation, in the order of execution.
        Those of one call follow each other; its output is their last map [N, H, W, C].
    """
    outputs: dict[Path, tuple] = {}
    for path, call in itertools.groupby(calls, key=lambda output: output[0]):
        maps = [output for output in call if len(output[1]) == 4]
        if path is None or not maps:
            continue
        if path not in outputs or maps[-1][1][1] > outputs[path][1][1]:
            outputs[path] = maps[-1]
    return outputs
