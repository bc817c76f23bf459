"""What a network costs and what it sees: parameters, MACs, strides, fields, memory.

All of it is read from the traced program: nothing is compiled or computed, so any size
is cheap. MACs and FLOPs are explained in analysis/counts.py, receptive fields and
strides in analysis/receptive_field.py.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from jax.extend import core

from segjax.analysis import counts, receptive_field, tracing
from segjax.analysis.receptive_field import Field, View
from segjax.analysis.tracing import LOGITS, Path
from segjax.models.network import abstract_variables


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
    """Of the form that the paper writes down, which is what publications count."""
    computed_macs: int = 0
    """Of the form that is computed, fixed interpolation inside of it included."""
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
    """See counts.activation_bytes; 0 if it was not asked for."""
    computed_macs: int
    """All MACs of the form that is computed, those with constant matrices included."""

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def statistics(self) -> int:
        return sum(layer.statistics for layer in self.layers)

    @property
    def macs(self) -> int:
        """MACs of the layers with parameters, which is what publications count.

        Those of the form that the paper writes down, also where the network computes
        the same with fewer (``tracing.plain_form``).
        """
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
    """Summarizes `model` for an image of (H, W, C).

    Strides, fields and MACs are read from its plain form (``tracing.plain_form``),
    computed MACs and activations from the form that it has.

    Args:
      model: a network of segjax.models, or any module with a `tiling` that is applied
        to (images [N, H, W, C], train) and returns (logits, endpoints).
      activations: trace the backward pass too, for `activation_bytes`.

    Raises:
      UserError: the model does not take such an image, or uses an operation that cannot
        be followed here.
    """
    variables = abstract_variables(model, image[-1])
    plain = tracing.plain_form(model)
    jaxpr, shapes = tracing.trace(plain, variables, image)
    layers = _layers(variables, type(model).__name__)
    own = tracing.trace(model, variables, image).jaxpr if plain is not model else jaxpr
    computed, computed_fixed = _with_calls(layers, own.jaxpr)
    layers, fixed_macs = _with_calls(layers, jaxpr.jaxpr)
    paths = tuple(layers)
    seen, outputs = receptive_field.views(
        model, variables, paths=paths, channels=image[-1]
    )
    unused = View(0, (0, 0))
    for path, layer in layers.items():
        stride, field = seen.get(path, unused)
        layers[path] = layer._replace(
            stride=stride,
            receptive_field=field,
            computed_macs=computed[path].macs,
        )
    maps = {name: Map(shapes[name], *view) for name, view in outputs.items()}
    return Summary(
        model=type(model).__name__,
        image=image,
        layers=tuple(layers.values()),
        logits=maps.pop(LOGITS),
        endpoints=maps,
        fixed_macs=fixed_macs,
        computed_macs=computed_fixed + sum(x.macs for x in computed.values()),
        activation_bytes=counts.activation_bytes(model, image) if activations else 0,
    )


def _layers(variables: Mapping[str, Any], root: str) -> dict[Path, Layer]:
    """The modules with parameters, by path."""
    trees = [variables["params"], variables.get("batch_stats", {})]
    numbers: dict[Path, list[int]] = {}
    kernels: dict[Path, tuple[int, ...]] = {}
    for kind, tree in enumerate(trees):
        for keys, leaf in jax.tree_util.tree_leaves_with_path(tree):
            *modules, name = (key.key for key in keys)
            path = tuple(modules)
            numbers.setdefault(path, [0, 0])[kind] += math.prod(leaf.shape)
            if name == "kernel":
                kernels[path] = leaf.shape
    return {
        path: Layer("/".join(path) or root, kernels.get(path, ()), count, averages)
        for path, (count, averages) in numbers.items()
    }


def _with_calls(
    layers: dict[Path, Layer], jaxpr: core.Jaxpr
) -> tuple[dict[Path, Layer], int]:
    """Layers in the order of execution with what they compute; MACs of no layer."""
    owner = tracing.owner_of(tuple(layers))
    used: dict[Path, Layer] = {}
    calls = []
    fixed_macs = 0
    for scope, equation, times in tracing.equations(jaxpr):
        path, macs = owner(scope), times * counts.equation_macs(equation)
        calls.append((path, tracing.struct(equation.outvars[0]).shape))
        if path is None:
            fixed_macs += macs
            continue
        layer = used.setdefault(path, layers[path])
        dilation = equation.params.get("rhs_dilation", (layer.dilation,))[0]
        used[path] = layer._replace(dilation=dilation, macs=layer.macs + macs)
    for path, (_, shape) in tracing.outputs_of_modules(calls).items():
        used[path] = used[path]._replace(output=shape)
    return used | {
        path: x for path, x in layers.items() if path not in used
    }, fixed_macs
