"""Optimizers and schedules as the papers mean them.

Weight decay is L2 regularization: ``decay * w`` joins the gradient before the momentum
(Caffe, PyTorch's SGD), not the decoupled decay of AdamW.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from segjax.errors import UserError

# Excluded from weight decay by default. A network need not have such parameters.
DECAY_EXCLUDE = ("bias", "scale")

# Each makes a schedule of optax from ``config.optim`` and the number of steps.
SCHEDULES: dict[str, Callable[[ConfigDict, int], optax.Schedule]] = {
    # DeepLab v2 (section 4.1.1), PSPNet (section 5): lr (1 - step / total_steps)^power.
    "poly": lambda options, total_steps: optax.polynomial_schedule(
        options.lr, 0.0, options.power, total_steps
    ),
    "step": lambda options, _: optax.exponential_decay(
        options.lr, options.step_every, options.step_factor, staircase=True
    ),
    "cosine": lambda options, total_steps: optax.cosine_decay_schedule(
        options.lr, total_steps
    ),
    "constant": lambda options, _: optax.constant_schedule(options.lr),
}


def schedule(options: ConfigDict, total_steps: int) -> optax.Schedule:
    """The learning rate of a 0-based step.

    Args:
      options: ``config.optim``: a schedule of SCHEDULES, not below ``lr_floor``, times
        a linear warmup from 0 over ``warmup_steps``.
      total_steps: where "poly" and "cosine" reach 0.
    """
    decay = SCHEDULES[options.schedule](options, total_steps)
    floor, warmup = options.lr_floor, options.warmup_steps

    def rate(step: jax.Array | int) -> jax.Array:
        lr = jnp.asarray(decay(step))
        if floor:
            lr = jnp.maximum(lr, floor)
        return lr * jnp.minimum(1.0, (step + 1) / warmup) if warmup else lr

    return rate


def names(params: dict) -> dict:
    """A tree like ``params`` whose leaves are names: ``conv1_1/kernel``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "/".join(key.key for key in path), params
    )


def multipliers(params: dict, rules: tuple[str, ...]) -> dict:
    """A tree of learning-rate factors from rules ``regex=factor``.

    A parameter matched by several rules gets the product of their factors, so
    ``("score.*=10", "bias=2")`` gives the biases of the score layers 20, as in Caffe.

    Raises:
      UserError: a rule that matches no parameter (a typo would change nothing).
    """
    parts = [str(rule).rpartition("=") for rule in rules]
    _check_all_match(params, "lr_mult", [pattern for pattern, _, _ in parts])

    def factor(name: str) -> float:
        product = 1.0
        for pattern, _, value in parts:
            if re.search(pattern, name):
                product *= float(value)
        return product

    return jax.tree.map(factor, names(params))


def decayed(params: dict, exclude: tuple[str, ...]) -> dict:
    """A tree of bools: which parameters the weight decay applies to.

    Args:
      params: of the network.
      exclude: regular expressions of parameters that are not decayed.

    Raises:
      UserError: an expression that matches no parameter, unless it is a default.
    """
    chosen = [pattern for pattern in exclude if pattern not in DECAY_EXCLUDE]
    _check_all_match(params, "decay_exclude", chosen)
    return jax.tree.map(
        lambda name: not any(re.search(pattern, name) for pattern in exclude),
        names(params),
    )


def _check_all_match(params: dict, field: str, patterns: list[str]) -> None:
    known = jax.tree.leaves(names(params))
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in known):
            raise UserError(
                f"--config.optim.{field}: {pattern!r} matches no parameter; names look "
                f"like {known[0]!r}"
            )


def _momentum(options: ConfigDict) -> optax.GradientTransformation:
    # A momentum of 0 is the identity, but would keep a buffer.
    if not options.momentum:
        return optax.identity()
    return optax.trace(options.momentum, options.nesterov)


# The transformations behind clipping and weight decay, from ``config.optim``, the
# learning rate (which also turns gradients into descents) and the factors of lr_mult.
OPTIMIZERS: dict[str, Callable[..., tuple[optax.GradientTransformation, ...]]] = {
    "sgd": lambda options, rate, factors: (_momentum(options), rate, factors),
    # Caffe keeps lr inside the buffer: h = m h + lr (g + decay w); w -= h.
    "caffe_sgd": lambda options, rate, factors: (rate, factors, _momentum(options)),
    "adam": lambda options, rate, factors: (
        optax.scale_by_adam(options.momentum, options.b2),
        rate,
        factors,
    ),
    # Dozat, 2016, as optax has it: a constant momentum. FusionNet's Keras lets it grow
    # in the first steps.
    "nadam": lambda options, rate, factors: (
        optax.scale_by_adam(options.momentum, options.b2, nesterov=True),
        rate,
        factors,
    ),
}


def create(
    options: ConfigDict,
    params: dict[str, Any],
    total_steps: int,
    *,
    frozen: Sequence[str] = (),
) -> optax.GradientTransformation:
    """The optimizer of ``config.optim`` for parameters of this structure.

    Args:
      options: ``config.optim``.
      params: of the network.
      total_steps: of the schedule.
      frozen: modules of the network that never change: no gradient reaches them, but
        weight decay would.

    Raises:
      UserError: an expression of ``lr_mult`` or ``decay_exclude`` matches no parameter.
    """
    held = tuple(f"^{name}/=0" for name in frozen)
    factors = multipliers(params, (*options.lr_mult, *held))
    scale_by_factors = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors)
    )
    rate = optax.scale_by_learning_rate(schedule(options, total_steps))
    clip = [optax.clip_by_global_norm(options.clip_norm)] if options.clip_norm else []
    return optax.chain(
        *clip,
        optax.add_decayed_weights(
            options.weight_decay, decayed(params, options.decay_exclude)
        ),
        *OPTIMIZERS[options.name](options, rate, scale_by_factors),
    )
