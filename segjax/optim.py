"""Optimizers and schedules as the papers mean them.

Weight decay is L2 regularisation: ``decay * w`` joins the gradient before the
momentum (Caffe, PyTorch's SGD), not the decoupled decay of AdamW.
"""

import re

import jax
import jax.numpy as jnp
import optax


def schedule(options, total_steps: int) -> optax.Schedule:
    """Learning rate of a 0-based step; ``options`` is ``config.optim``."""
    name, lr = options.schedule, options.lr
    if name == "poly":  # DeepLab v2 (section 4.1.1), PSPNet (section 5)

        def base(step):
            left = 1 - jnp.minimum(step, total_steps) / total_steps
            return lr * left**options.power

    elif name == "step":

        def base(step):
            return lr * options.step_factor ** (step // options.step_every)

    elif name == "constant":

        def base(step):
            return jnp.full((), lr)

    else:
        raise ValueError(f"unknown schedule {name!r}")
    warmup = options.warmup_steps
    if not warmup:
        return base
    return lambda step: base(step) * jnp.minimum(1.0, (step + 1) / warmup)


def names(params) -> dict:
    """A tree like ``params`` whose leaves are names: ``conv1_1/kernel``."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: "/".join(key.key for key in path), params
    )


def multipliers(params, rules: tuple[str, ...]) -> dict:
    """A tree of learning-rate factors from rules ``regex=factor``.

    A parameter matched by several rules gets the product of their factors, so
    ``("score.*=10", "bias=2")`` gives the biases of the score layers 20, as in Caffe.

    Raises:
      ValueError: a rule that matches no parameter (a typo would change nothing).
    """
    rules = [str(rule).rpartition("=") for rule in rules]
    used = set()

    def factor(name: str) -> float:
        product = 1.0
        for pattern, _, value in rules:
            if re.search(pattern, name):
                used.add(pattern)
                product *= float(value)
        return product

    tree = jax.tree.map(factor, names(params))
    unused = [pattern for pattern, _, _ in rules if pattern not in used]
    if unused:
        raise ValueError(
            f"config.optim.lr_mult: {unused[0]!r} matches no parameter; names look "
            f"like {jax.tree.leaves(names(params))[0]!r}"
        )
    return tree


def create(options, params, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of ``config.optim`` for parameters of this structure."""
    rate = schedule(options, total_steps)
    decayed = jax.tree.map(
        lambda name: not any(re.search(p, name) for p in options.decay_exclude),
        names(params),
    )
    factors = multipliers(params, options.lr_mult)
    scale_by_factors = optax.stateless(
        lambda updates, _: jax.tree.map(lambda u, f: u * f, updates, factors)
    )
    decay = optax.add_decayed_weights(options.weight_decay, decayed)
    # Momentum of 0 is the identity but would keep a buffer.
    momentum = (
        optax.trace(options.momentum, options.nesterov)
        if options.momentum
        else optax.identity()
    )
    descend = optax.scale_by_learning_rate(rate)
    steps = {
        "sgd": (momentum, descend, scale_by_factors),
        # Caffe keeps lr inside the buffer: h = m h + lr (g + decay w); w -= h.
        "caffe_sgd": (descend, scale_by_factors, momentum),
        "adam": (
            optax.scale_by_adam(options.momentum, options.b2),
            descend,
            scale_by_factors,
        ),
    }[options.name]
    clip = optax.clip_by_global_norm(options.clip_norm) if options.clip_norm else None
    return optax.chain(*([clip] if clip else []), decay, *steps)
