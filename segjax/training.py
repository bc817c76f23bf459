"""The training state and the training step: pure functions under ``jax.jit``."""

import math
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax import losses
from segjax.errors import UserError
from segjax.models import contextual, deeplab, dilation
from segjax.ops import geometry, resize


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes.

    ``step`` is the number of batches consumed: batch ``step`` comes next.
    """

    step: jax.Array  # int32 scalar
    params: dict  # float32
    batch_stats: dict  # float32; {} for models without batch normalization
    opt_state: optax.OptState


def create_state(
    model: nn.Module,
    optimizer_of: Callable[[dict], optax.GradientTransformation],
    image_shape: tuple[int, int, int],
    seed: int,
) -> TrainState:
    """A fresh state; call under ``jax.jit`` or ``jax.eval_shape``.

    Args:
      model: called as ``model(images, train=False)``.
      optimizer_of: makes the optimizer from the parameters.
      image_shape: (H, W, C) of one training image.
      seed: of the initialization; the same bits on the same kind of device.
    """
    images = jnp.zeros((1, *image_shape), jnp.uint8)
    # train=True, so that heads which exist in training only get parameters too.
    # The default generator takes XLA on CPU longer to compile than the training step.
    keys = jax.random.split(jax.random.key(seed, impl="rbg"))
    keys = dict(zip(("params", "dropout"), keys))
    variables = model.init(keys, images, train=True)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer_of(params).init(params),
    )


class Term(NamedTuple):
    """One part of the loss: scores, and the labels they are compared with."""

    scores: jax.Array  # [N, h, w, K]
    stride: int  # 1: all labels; s: those of every s-th row and column
    weight: jax.Array | float


def first_label(model: nn.Module) -> int | None:
    """Row and column of the label of the first cell; None: `model` has no ``scores``.

    The first pixel at or behind the center of the cell. For DeepLab that is 0 and, with
    2x2 poolings, 1: what its networks do. Dilation's programs put cell i on pixel 8i,
    and so does its upsampling "interp", whatever its receptive field.
    """
    if isinstance(model, deeplab.DeepLab):
        return math.ceil(model.grid.start)
    if isinstance(model, dilation.Dilation):
        if model.upsampling == "interp":
            return 0
        return math.ceil(model.grid.start - model.margin)
    return None


def check_loss(model: nn.Module, options) -> None:
    """Raises a UserError if `model` has not the scores that ``config.loss`` needs."""
    if options.resolution == "cells" and first_label(model) is None:
        raise UserError(
            f"config.loss.resolution is 'cells'; {type(model).__name__} has no scores "
            "of its own cells to compare (DeepLab and Dilation have): expected 'full'"
        )


def loss_terms(
    model: nn.Module,
    logits: jax.Array,
    endpoints: dict,
    options,
    step: jax.Array | int,
) -> list[Term]:
    """All parts of the loss at a 0-based step; the first one is the main one.

    The logits or, with ``resolution`` "cells", the endpoint ``scores`` that they are
    interpolated from; DeepLab v2's ``scale_logits`` with a weight of 1 each; and every
    ``aux_logits*`` (PSPNet, section 4.1; Deep Contextual Network).
    """
    full = options.resolution == "full"
    if full:
        terms = [Term(logits, 1, 1.0)]
    else:
        terms = [Term(endpoints["scores"], int(model.grid.step), 1.0)]
    for i, scores in enumerate(endpoints.get("scale_logits", ())):
        stride = model.scale_strides[i]
        if full:
            coarser = Fraction(stride) / model.grid.step
            grid = geometry.Grid(Fraction(stride), model.grid.start * coarser)
            size = logits.shape[1:3]
            scores = resize.interpolate(scores, grid, geometry.Grid(), size)
        terms.append(Term(scores, 1 if full else stride, 1.0))
    weight = contextual.auxiliary_weight(
        step,
        options.aux_weight,
        options.aux_factor,
        options.aux_every,
        options.aux_floor,
    )
    names = sorted(name for name in endpoints if name.startswith("aux_logits"))
    return terms + [Term(endpoints[name], 1, weight) for name in names]


def make_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    options,
    seed: int,
    accumulate: int = 1,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The training step, a pure function to be jitted with the state donated.

    Args:
      model: returns ``(logits, endpoints)``; see :func:`loss_terms`.
      optimizer: from ``optim.create``.
      options: ``config.loss``.
      seed: of the dropout masks; step k always draws the same ones.
      accumulate: the batch is processed in so many parts, whose gradients are summed.
        Each term of the loss is divided by the number of valid pixels of the whole
        batch: the same step as with the whole batch at once, except for batch
        statistics and dropout.

    Returns:
      ``step(state, batch) -> (state, metrics)``; ``batch`` holds ``image``
      [N, H, W, C] uint8 and ``label`` [N, H, W]; ``metrics`` are the float32 scalars
      ``loss`` (what is minimized, without weight decay), ``main_loss`` and
      ``grad_norm``.

    Raises:
      UserError: the model has not the scores that the loss needs.
    """
    check_loss(model, options)
    first = first_label(model)
    weights, bootstrap = tuple(options.class_weights), options.bootstrap
    margin = model.tiling.margin

    def targets(labels: jax.Array, stride: int) -> jax.Array:
        """The labels that scores with cells every `stride` pixels are compared with."""
        sides = tuple(side - 2 * margin for side in labels.shape[1:3])
        labels = losses.center_crop(labels, sides)
        return labels if stride == 1 else labels[:, first::stride, first::stride]

    def divisor(labels: jax.Array, stride: int) -> jax.Array:
        if options.normalize == "images":
            return jnp.float32(len(labels))
        count = losses.count(targets(labels, stride), weights, bootstrap)
        return jnp.maximum(count, 1.0)  # a batch that is all void: loss 0

    def mean(term: Term, labels: jax.Array, divisors: dict[int, jax.Array]):
        labels, scores = targets(labels, term.stride), term.scores
        if term.stride > 1:  # cells beyond the image have no labels
            scores = scores[:, : labels.shape[1], : labels.shape[2]]
        if bootstrap:
            total, _ = losses.bootstrapped_cross_entropy(scores, labels, bootstrap)
        else:
            total, _ = losses.cross_entropy(scores, labels, weights)
        return total / divisors[term.stride]

    def loss(params, batch_stats, part, key, step, divisors):
        """The loss of one part; auxiliary (the main term, statistics)."""
        variables = {"params": params, "batch_stats": batch_stats}
        (logits, endpoints), updated = model.apply(
            variables,
            part["image"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        terms = loss_terms(model, logits, endpoints, options, step)
        means = [mean(term, part["label"], divisors) for term in terms]
        total = sum(term.weight * value for term, value in zip(terms, means))
        return total, (means[0], updated.get("batch_stats", {}))

    gradient = jax.value_and_grad(loss, has_aux=True)
    strides = {1, *getattr(model, "scale_strides", ())}
    if first is not None:
        strides.add(int(model.grid.step))

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = {name: batch[name] for name in ("image", "label")}
        # Of the whole batch, so that parts and devices may hold unlike numbers of them.
        divisors = {stride: divisor(batch["label"], stride) for stride in strides}

        def part_step(carry, inputs):
            stats, sums = carry
            part, part_key = inputs
            (total, (main, stats)), grads = gradient(
                state.params, stats, part, part_key, state.step, divisors
            )
            sums = jax.tree.map(jnp.add, sums, (grads, total, main))
            return (stats, sums), None

        zeros = jax.tree.map(jnp.zeros_like, state.params), 0.0, 0.0
        carry = state.batch_stats, zeros
        if accumulate == 1:
            carry, _ = part_step(carry, (batch, key))
        else:
            parts = jax.tree.map(lambda x: _split_parts(x, accumulate), batch)
            keys = jax.random.split(key, accumulate)
            carry, _ = jax.lax.scan(part_step, carry, (parts, keys))
        batch_stats, (grads, total, main) = carry
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        metrics = {
            "loss": total,
            "main_loss": main,
            "grad_norm": optax.tree.norm(grads),
        }
        return state, metrics

    return step


def _split_parts(x: jax.Array, parts: int) -> jax.Array:
    """[N, ...] -> [parts, N / parts, ...] such that each part spans all devices.

    Row i goes to part i % parts: with N split contiguously over the devices, every
    device holds an equal share of every part and nothing moves between devices.
    """
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)


def non_finite(metrics: list[dict]) -> int | None:
    """The index of the first of several steps' metrics with a NaN or infinity."""
    for index, row in enumerate(metrics):
        if not all(np.isfinite(np.asarray(value)) for value in row.values()):
            return index
    return None
