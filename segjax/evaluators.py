"""Evaluation: predictions of a whole dataset, as one confusion matrix."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from segjax import metrics, sharding


def make_eval_step(predictor: Callable, classes: int) -> Callable:
    """A function ``(variables, batch) -> (confusion, predictions)`` to be jitted.

    Args:
      predictor: ``(variables, images) -> probabilities`` [N, H, W, K].
      classes: K.

    Returns:
      ``confusion`` [K, K] int32 of the batch; ``predictions`` [N, H, W] uint8.
    """

    def step(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        probabilities = predictor(variables, batch["image"])
        predictions = jnp.argmax(probabilities, axis=-1).astype(jnp.uint8)
        return metrics.confusion(batch["label"], predictions, classes), predictions

    return step


def evaluate(
    eval_step: Callable,
    variables: dict,
    batches: Iterable[dict],
    mesh: jax.sharding.Mesh,
    pictures: int = 0,
) -> tuple[np.ndarray, list[dict]]:
    """Runs the jitted ``eval_step`` over ``batches``.

    Returns:
      The confusion matrix [K, K] int64 of all processes' images, and the first
      ``pictures`` examples of this process with their ``prediction`` added.
    """
    total, shown = 0, []
    for batch, on_device in sharding.prefetch(batches, mesh):
        confusion, predictions = eval_step(variables, on_device)
        total = total + np.asarray(confusion, np.int64)
        if len(shown) < pictures:
            local = [shard.data for shard in predictions.addressable_shards]
            rows = np.concatenate([np.asarray(part) for part in local])
            for image, label, name, prediction in zip(
                batch["image"], batch["label"], batch["id"], rows, strict=True
            ):
                if name and len(shown) < pictures:
                    shown.append(
                        {
                            "image": image,
                            "label": label,
                            "id": str(name),
                            "prediction": prediction,
                        }
                    )
    return total, shown
