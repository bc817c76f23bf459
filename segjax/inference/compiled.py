"""Predictors compiled ahead of time for one shape of images."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax import compilation, sharding
from segjax.inference.crf import refine
from segjax.inference.predictors import Predictor, most_probable
from segjax.ops import mean_field

OUTPUTS = ("labels", "probabilities", "scores")

Executable = Callable[..., dict[str, jax.Array]]


def compile_predictor(
    predictor: Predictor,
    variables: Any,
    *,
    shape: Sequence[int],
    mesh: jax.sharding.Mesh,
    outputs: Sequence[str] = ("labels",),
    crf: mean_field.Settings | None = None,
    precision: str = "default",
    regions: int = 0,
) -> Executable:
    """Compiles a predictor; calling the result compiles nothing more.

    With a CRF, calls may compile further programs (``crf.refine``).

    Args:
      predictor: ``(variables, images) -> probabilities``.
      variables: of the model, on the devices of ``mesh``.
      shape: (N, H, W, C) of the images; N is split over the devices.
      mesh: of this process.
      outputs: any of "labels", uint8 or uint16 [N, H, W]; "probabilities", float16
        [N, H, W, K]; and "scores", the same as float32.
      crf: refines the probabilities; None: no CRF.
      precision: of products, see ``compilation.precision``.
      regions: rows of the regions of an image (``inference.proposals``), if the
        predictor takes them; 0: it takes images alone.

    Returns:
      A function of images, uint8 of that shape, and of regions, int32
      [N, regions, 4], if there are any; it does not wait for its results. With a CRF
      it also takes ``sizes``, see ``crf.refine``.
    """
    split = sharding.split(mesh)

    def select(probabilities: jax.Array) -> dict[str, jax.Array]:
        values = {
            "labels": lambda: most_probable(probabilities),
            "probabilities": lambda: probabilities.astype(jnp.float16),
            "scores": lambda: probabilities,
        }
        return {name: values[name]() for name in outputs}

    def compiled(function: Callable, *arguments) -> jax.stages.Compiled:
        function = compilation.precision(precision)(function)
        jitted = jax.jit(function, out_shardings=split)
        return jitted.lower(*arguments).compile()

    images = jax.ShapeDtypeStruct(tuple(shape), np.uint8, sharding=split)
    inputs = [images]
    if regions:
        rows = (shape[0], regions, 4)
        inputs.append(jax.ShapeDtypeStruct(rows, np.int32, sharding=split))
    if crf is None:
        run = compiled(lambda v, *x: select(predictor(v, *x)), variables, *inputs)
        return lambda *x: run(variables, *jax.device_put(x, split))

    network = compiled(predictor, variables, *inputs)
    info = network.out_info
    scores = jax.ShapeDtypeStruct(info.shape, info.dtype, sharding=split)
    last = compiled(select, scores)

    def run_with_crf(
        *x: np.ndarray, sizes: Sequence[tuple[int, int]] | None = None
    ) -> dict[str, jax.Array]:
        images, *more = jax.device_put(x, split)
        scores = network(variables, images, *more)
        refined = refine(scores, images, settings=crf, mesh=mesh, sizes=sizes)
        return last(refined)

    return run_with_crf
