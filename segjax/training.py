"""The training state and the training step: pure functions under ``jax.jit``."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from segjax import losses
from segjax.errors import UserError
from segjax.labels import STEP_INPUTS
from segjax.models.network import CoarseScores, Network
from segjax.ops import geometry, resize
from segjax.weak import latent


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes.

    ``step`` is the number of batches consumed: batch ``step`` comes next.
    """

    step: jax.Array  # int32 scalar
    params: dict  # float32
    batch_stats: dict  # float32; {} for models without batch normalization
    opt_state: optax.OptState


def create_state(
    model: Network,
    optimizer_of: Callable[[dict], optax.GradientTransformation],
    *,
    image_shape: tuple[int, int, int],
    seed: int,
) -> TrainState:
    """A newly initialized state; call under ``jax.jit`` or ``jax.eval_shape``.

    Args:
      model: called as ``model(images, train=False)``.
      optimizer_of: makes the optimizer from the parameters.
      image_shape: (H, W, C) of one training image.
      seed: of the initialization; the same bits on the same kind of device.
    """
    images = jnp.zeros((1, *image_shape), jnp.uint8)
    # train=True, so that heads which exist in training only get parameters too.
    # The default generator takes XLA on CPU longer to compile than the training step.
    keys = dict(
        zip(
            ("params", "dropout"),
            jax.random.split(jax.random.key(seed, impl="rbg")),
        )
    )
    variables = model.init(keys, images, train=True)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer_of(params).init(params),
    )


_LATENT_STREAM = 1
"""Tells the random order of the E-step from the dropout masks of the same step."""


class Term(NamedTuple):
    """One part of the loss: scores, and the labels they are compared with."""

    scores: jax.Array  # [N, h, w, K]
    stride: int  # 1: all labels; s: those of every s-th row and column
    weight: jax.Array | float


def check_loss(model: Network, options: ConfigDict) -> None:
    """Checks that a network has the scores that ``config.loss`` compares.

    Raises:
      UserError: ``resolution`` is "output_stride", and it has no such scores, or has
        them at several scales where latent labels are to be inferred.
    """
    if options.resolution == "output_stride" and model.coarse_scores is None:
        raise UserError(
            "--config.loss.resolution is 'output_stride', but "
            f"{type(model).__name__} has no scores at its output stride (DeepLab and "
            "Dilation have); expected 'full'"
        )
    coarse = model.coarse_scores
    if (
        options.em != "none"
        and options.resolution == "output_stride"
        and coarse is not None
        and set(coarse.scale_strides) - {coarse.stride}
    ):
        raise UserError(
            "--config.loss.resolution is 'output_stride' with --config.loss.em="
            f"{options.em} and a network of several scales, which do not share labels; "
            "expected 'full'"
        )


def loss_terms(
    model: Network,
    logits: jax.Array,
    endpoints: dict[str, Any],
    *,
    options: ConfigDict,
    step: jax.Array | int,
) -> list[Term]:
    """All parts of the loss at a 0-based step; the first one is the main one.

    The logits or, with ``resolution`` "output_stride", the endpoint ``scores`` that
    they are interpolated from; DeepLab v2's ``scale_logits`` with a weight of 1 each;
    and every ``aux_logits*`` (PSPNet, section 4.1; Deep Contextual Network).

    Args:
      model: the network that returned the next two.
      logits: [N, h, w, K].
      endpoints: a dict of maps.
      options: ``config.loss``.
      step: of the schedule of the auxiliary weight.
    """
    full = options.resolution == "full"
    coarse = model.coarse_scores
    if full or coarse is None:
        terms = [Term(logits, 1, 1.0)]
    else:
        terms = [Term(endpoints["scores"], coarse.stride, 1.0)]
    if coarse is not None:
        for i, scores in enumerate(endpoints.get("scale_logits", ())):
            stride = coarse.scale_strides[i]
            if full:
                size = geometry.sides(logits)
                scores = _interpolate(scores, coarse, stride=stride, size=size)
            terms.append(Term(scores, 1 if full else stride, 1.0))
    weight = losses.auxiliary_weight(
        step,
        initial=options.aux_weight,
        factor=options.aux_factor,
        every=options.aux_every,
        floor=options.aux_floor,
    )
    names = sorted(name for name in endpoints if name.startswith("aux_logits"))
    return terms + [Term(endpoints[name], 1, weight) for name in names]


def _interpolate(
    scores: jax.Array, coarse: CoarseScores, *, stride: int, size: tuple[int, int]
) -> jax.Array:
    """Scores of one scale of the image, interpolated to all of its pixels."""
    start = coarse.start * Fraction(stride, coarse.stride)
    grid = geometry.Grid(Fraction(stride), start)
    return resize.interpolate(scores, grid, target=geometry.Grid(), size=size)


def make_step(
    model: Network,
    optimizer: optax.GradientTransformation,
    *,
    options: ConfigDict,
    seed: int,
    grad_accum_steps: int = 1,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The training step, a pure function to be jitted with the state donated.

    Args:
      model: returns ``(logits, endpoints)``; see :func:`loss_terms`.
      optimizer: from ``optim.create``.
      options: ``config.loss``.
      seed: of the dropout masks; step k always draws the same ones.
      grad_accum_steps: number of micro-batches that the batch is split into; their
        gradients are summed. Each term of the loss is divided by the count of the whole
        batch: the same step as with the whole batch at once, except for batch
        statistics, dropout, and losses over the regions of a batch.

    Returns:
      ``step(state, batch) -> (state, metrics)``; ``batch`` holds ``image``
      [N, H, W, C] uint8, ``label`` [N, H, W], and perhaps ``added_weight`` [N, H, W],
      which is added to the class weights of its pixels, and ``present`` [N, K], the
      classes of weakly labeled images (``weak.latent``); ``metrics`` are the float32
      scalars ``loss`` (what is minimized, without weight decay), ``main_loss`` and
      ``grad_norm``.

    Raises:
      UserError: the model does not have the scores that the loss needs.
    """
    check_loss(model, options)
    loss_function = losses.LOSSES[options.name]
    loss_options = losses.options(options)
    latent_options = latent.options(options)
    margin, coarse = model.tiling.margin, model.coarse_scores

    def targets(batch: dict, stride: int) -> tuple[jax.Array, jax.Array | None]:
        """Labels and added weights for the scores of this stride in pixels."""
        height, width = geometry.sides(batch["label"])
        inner = height - 2 * margin, width - 2 * margin

        def at_scores(pixels: jax.Array) -> jax.Array:
            pixels = losses.center_crop(pixels, inner)
            if stride == 1 or coarse is None:
                return pixels
            first = coarse.label_offset
            return pixels[:, first::stride, first::stride]

        added = batch.get("added_weight")
        return at_scores(batch["label"]), None if added is None else at_scores(added)

    def divisor(batch: dict, stride: int) -> jax.Array:
        if options.normalize == "images":
            return jnp.float32(len(batch["label"]))
        labels, added = targets(batch, stride)
        count = losses.count(
            loss_function,
            labels,
            num_classes=model.num_classes,
            options=loss_options,
            added=added,
        )
        return jnp.where(count > 0, count, 1.0)  # a batch that is all void: loss 0

    def where_labeled(term: Term, labels: jax.Array) -> jax.Array:
        """Scores without the locations beyond the image, which have no labels."""
        if term.stride == 1:
            return term.scores
        return term.scores[:, : labels.shape[1], : labels.shape[2]]

    def infer(term: Term, batch: dict, key: jax.Array) -> jax.Array:
        """Latent labels of the main term, which all other terms share."""
        labels, _ = targets(batch, term.stride)
        return latent.infer(
            where_labeled(term, labels),
            labels,
            batch["present"],
            options=latent_options,
            key=jax.random.fold_in(key, _LATENT_STREAM),
        )

    def mean(
        term: Term, batch: dict, divisors: dict[int, jax.Array], latent_labels: Any
    ):
        labels, added = targets(batch, term.stride)
        scores = where_labeled(term, labels)
        if latent_labels is not None:
            labels = latent_labels
        total, _ = loss_function(scores, labels, loss_options, added)
        return total / divisors[term.stride]

    def loss(params, batch_stats, micro_batch, key, step, divisors):
        """The loss of a micro-batch; auxiliary (the main term, statistics)."""
        variables = {"params": params, "batch_stats": batch_stats}
        (logits, endpoints), updated = model.apply(
            variables,
            micro_batch["image"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        terms = loss_terms(model, logits, endpoints, options=options, step=step)
        labels = None
        if latent_options.em != "none":
            labels = infer(terms[0], micro_batch, key)
        means = [mean(term, micro_batch, divisors, labels) for term in terms]
        total = sum(term.weight * value for term, value in zip(terms, means))
        return total, (means[0], updated.get("batch_stats", {}))

    gradient = jax.value_and_grad(loss, has_aux=True)
    strides = {1}
    if coarse is not None:
        strides |= {coarse.stride, *coarse.scale_strides}

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = {name: batch[name] for name in STEP_INPUTS if name in batch}
        if options.weak_weight != 1 and "added_weight" not in batch:
            # The weight of a pixel is 1 plus what is added.
            weak = (batch["present"] > 0).any(axis=-1)[:, None, None]
            added = jnp.where(weak, options.weak_weight - 1.0, 0.0)
            batch["added_weight"] = jnp.broadcast_to(added, batch["label"].shape)
        # Counts of the whole batch: void pixels may be spread unevenly over the
        # micro-batches and devices.
        divisors = {stride: divisor(batch, stride) for stride in strides}

        def accumulate(carry, inputs):
            stats, sums = carry
            micro_batch, micro_key = inputs
            (total, (main, stats)), grads = gradient(
                state.params, stats, micro_batch, micro_key, state.step, divisors
            )
            sums = jax.tree.map(jnp.add, sums, (grads, total, main))
            return (stats, sums), None

        zeros = jax.tree.map(jnp.zeros_like, state.params), 0.0, 0.0
        carry = state.batch_stats, zeros
        if grad_accum_steps == 1:
            carry, _ = accumulate(carry, (batch, key))
        else:
            micro_batches = jax.tree.map(lambda x: _split(x, grad_accum_steps), batch)
            keys = jax.random.split(key, grad_accum_steps)
            carry, _ = jax.lax.scan(accumulate, carry, (micro_batches, keys))
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


def _split(x: jax.Array, parts: int) -> jax.Array:
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
