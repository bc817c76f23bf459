"""Multiply-adds, FLOPs and memory of traced programs; XLA's own as a cross-check.

**Multiply-adds (MACs)** count every tap of every kernel once per output location, taps
on zero padding included, as papers do: N * h * w * kh * kw * in / groups * out; once
per *input* location for a transposed convolution, whose inserted zeros are no work.
Additions, normalization, activations and pooling windows are not counted. **FLOPs are
twice the MACs**; many numbers published as FLOPs are MACs.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.extend import core

from segjax.analysis import tracing
from segjax.errors import UserError
from segjax.models.network import abstract_variables


def macs(jaxpr: core.Jaxpr) -> int:
    """Multiply-adds of all convolutions and matrix products of a traced program."""
    equations = tracing.equations(jaxpr)
    return sum(times * equation_macs(equation) for _, equation, times in equations)


def equation_macs(equation: core.JaxprEqn) -> int:
    """Multiply-adds of one equation that runs once.

    Raises:
      UserError: there are some in a loop or a choice that depend on data.
    """
    name = equation.primitive.name
    if name in ("while", "cond"):
        params = equation.params
        inner = params["branches"] if name == "cond" else [params["body_jaxpr"]]
        if any(macs(program.jaxpr) for program in inner):
            raise UserError(
                f"summary: {equation.source_info.name_stack} uses {name!r} with "
                f"multiply-adds, expected operations that run a known number of times"
            )
        return 0
    if name == "conv_general_dilated":
        return _convolution_macs(equation)
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        lhs = tracing.struct(equation.invars[0]).shape
        output = tracing.struct(equation.outvars[0]).shape
        return math.prod(output) * math.prod(lhs[axis] for axis in contracted)
    return 0


def _convolution_macs(equation: core.JaxprEqn) -> int:
    params, numbers = equation.params, equation.params["dimension_numbers"]
    source, kernel = (tracing.struct(x).shape for x in equation.invars)
    output = tracing.struct(equation.outvars[0]).shape
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


def activation_bytes(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Bytes kept from the forward to the backward pass of one (H, W, C) image.

    An estimate: the arrays that ``jax.vjp`` saves for the gradient of all outputs in
    training, without the parameters and the loss. XLA may merge some and recompute
    others, and needs room for what it works on; see :func:`xla_memory`.
    """
    variables = abstract_variables(model, image[-1])
    run = tracing.train(model)

    def saved(variables, images, key):
        def outputs(params):
            return run({**variables, "params": params}, images, key)

        return jax.tree.leaves(jax.vjp(outputs, variables["params"])[1])

    key = jax.eval_shape(lambda: jax.random.key(0))
    struct = tracing.image_struct(image)
    jaxpr = jax.make_jaxpr(saved)(variables, struct, key).jaxpr
    *_, images, key = jaxpr.invars
    # What comes from the image or from dropout; the rest is parameters and constants.
    dependent = {images, key}
    for equation in jaxpr.eqns:
        if any(isinstance(x, core.Var) and x in dependent for x in equation.invars):
            dependent.update(equation.outvars)
    outputs = {x for x in jaxpr.outvars if isinstance(x, core.Var)}
    kept = [tracing.struct(x) for x in outputs & dependent - {images, key}]
    return sum(x.size * x.dtype.itemsize for x in kept)


def xla_flops(model: nn.Module, image: tuple[int, int, int]) -> float:
    """XLA's own count for the prediction of one (H, W, C) image; not compiled.

    To cross-check ``Summary.flops``, from which it differs in what it counts: 2 per
    multiply-add, but none on padding, and 1 for every other arithmetic operation.
    """
    variables = abstract_variables(model, image[-1])
    struct = tracing.image_struct(image)
    lowered = jax.jit(tracing.predict(model)).lower(variables, struct)
    analysis = lowered.cost_analysis()
    if analysis is None:
        raise RuntimeError("this version of XLA counts no operations")
    return analysis["flops"]


def xla_memory(model: nn.Module, image: tuple[int, int, int]) -> int:
    """Bytes of temporary arrays of a compiled gradient for one (H, W, C) image.

    Compiles for the first device, which takes as long as a training step would.
    """
    run = tracing.train(model)

    def loss(params, statistics, images):
        variables = {"params": params, **statistics}
        logits, _ = run(variables, images, jax.random.key(0))
        return jnp.square(logits).sum()

    statistics = dict(abstract_variables(model, image[-1]))
    params = statistics.pop("params")
    struct = tracing.image_struct(image)
    lowered = jax.jit(jax.grad(loss)).lower(params, statistics, struct)
    analysis = lowered.compile().memory_analysis()
    if analysis is None:
        raise RuntimeError("XLA does not know the memory of this device")
    return analysis.temp_size_in_bytes
