"""Statistics of batch normalization averaged over batches, after training.

DeconvNet's authors keep no running averages: after training they average the mean and
the unbiased variance of 501 batches of the training stream, all layers normalizing by
their batch, and use these from then on (BN_make_INFERENCE_script.py). Running averages
instead follow the last few batches, whose weights were others.
"""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax import sharding
from segjax.errors import UserError


def check(model: nn.Module, batch_stats: dict) -> None:
    """Raises UserError unless a model keeps statistics of its batches."""
    if not batch_stats or not hasattr(model, "bn_momentum"):
        raise UserError(
            f"{type(model).__name__} has no batch normalization to recalibrate"
        )


def make_step(model: nn.Module) -> Callable[[dict, dict, jax.Array], dict]:
    """A function ``(variables, sums, images) -> sums`` to be jitted.

    ``sums`` has the structure of the batch statistics; the mean and the variance,
    n / (n - 1) times that of the batch, of each layer are added. Layers that use
    running averages in training, too (frozen ones), add these.

    Raises:
      UserError: the model has no field ``bn_momentum``.
    """
    fields: dict[str, Any] = {"bn_momentum": 0.0}  # keeps the newest alone
    if hasattr(model, "bn_unbiased"):
        fields["bn_unbiased"] = True
    newest = model.clone(**fields)

    def step(variables: dict, sums: dict, images: jax.Array) -> dict:
        _, updated = newest.apply(
            variables,
            images,
            train=True,
            rngs={"dropout": jax.random.key(0)},
            mutable=["batch_stats"],
        )
        return jax.tree.map(jnp.add, sums, updated["batch_stats"])

    return step


def average(
    step: Callable[[dict, dict, jax.Array], dict],
    variables: dict,
    batches: Iterable[dict],
    *,
    mesh: jax.sharding.Mesh,
) -> dict:
    """The statistics averaged over batches.

    Args:
      step: of ``make_step``, jitted.
      variables: "params" and "batch_stats", replicated over the devices.
      batches: of this process, as training gets them; at least one.
      mesh: of the devices of all processes.

    Returns:
      ``batch_stats``, replicated.
    """
    sums, count = jax.tree.map(jnp.zeros_like, variables["batch_stats"]), 0
    for _, batch in sharding.prefetch(batches, mesh):
        sums, count = step(variables, sums, batch["image"]), count + 1
    return jax.tree.map(lambda x: x / count, sums)
