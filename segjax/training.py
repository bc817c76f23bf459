"""The training state and the training step: pure functions under ``jax.jit``."""

from collections.abc import Callable

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax import losses


class TrainState(flax.struct.PyTreeNode):
    """Everything that training changes.

    ``step`` is the number of batches consumed: batch ``step`` comes next.
    """

    step: jax.Array  # int32 scalar
    params: dict  # float32
    batch_stats: dict  # float32; {} for models without batch normalisation
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
      seed: of the initialisation; the same bits on the same kind of device.
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


def make_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    options,
    seed: int,
    accumulate: int = 1,
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
    """The training step, a pure function to be jitted with the state donated.

    Args:
      model: returns ``(logits, endpoints)``; every endpoint ``aux_logits*`` adds an
        auxiliary loss (PSPNet, section 4.1; Deep Contextual Network).
      optimizer: from ``optim.create``.
      options: ``config.loss``: ``normalize``, ``class_weights``, ``aux_weight``.
      seed: of the dropout masks; step k always draws the same ones.
      accumulate: the batch is processed in so many parts, whose gradients are summed
        before the one division by the number of valid pixels: the same step as with
        the whole batch at once, except for batch statistics and dropout.

    Returns:
      ``step(state, batch) -> (state, metrics)``; ``batch`` holds ``image``
      [N, H, W, C] uint8 and ``label`` [N, H, W]; ``metrics`` are the float32 scalars
      ``loss`` (what is minimised, without weight decay), ``main_loss`` and
      ``grad_norm``.
    """

    def loss_sum(params, batch_stats, part, key):
        """Loss sum of one part; auxiliary (main sum, count, statistics)."""
        variables = {"params": params, "batch_stats": batch_stats}
        (logits, endpoints), updated = model.apply(
            variables,
            part["image"],
            train=True,
            rngs={"dropout": key},
            mutable=["batch_stats"],
        )
        weights = tuple(options.class_weights)
        main, count = losses.cross_entropy(logits, part["label"], weights)
        total = main
        for name in sorted(endpoints):
            if name.startswith("aux_logits"):
                aux, _ = losses.cross_entropy(endpoints[name], part["label"], weights)
                total += options.aux_weight * aux
        return total, (main, count, updated.get("batch_stats", {}))

    gradient = jax.value_and_grad(loss_sum, has_aux=True)

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = {name: batch[name] for name in ("image", "label")}

        def part_step(carry, inputs):
            stats, sums = carry
            part, part_key = inputs
            (total, (main, count, stats)), grads = gradient(
                state.params, stats, part, part_key
            )
            sums = jax.tree.map(jnp.add, sums, (grads, total, main, count))
            return (stats, sums), None

        zeros = jax.tree.map(jnp.zeros_like, state.params), 0.0, 0.0, 0.0
        carry = state.batch_stats, zeros
        if accumulate == 1:
            carry, _ = part_step(carry, (batch, key))
        else:
            parts = jax.tree.map(lambda x: _split_parts(x, accumulate), batch)
            keys = jax.random.split(key, accumulate)
            carry, _ = jax.lax.scan(part_step, carry, (parts, keys))
        batch_stats, (grads, total, main, count) = carry
        if options.normalize == "images":
            count = jnp.float32(batch["image"].shape[0])
        count = jnp.maximum(count, 1.0)  # a batch that is all void: loss 0
        grads = jax.tree.map(lambda g: g / count, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        metrics = {
            "loss": total / count,
            "main_loss": main / count,
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
