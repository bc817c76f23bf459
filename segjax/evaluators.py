"""Evaluation: predictions of a whole dataset, as one confusion matrix."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from segjax import metrics, sharding
from segjax.inference.predictors import most_probable


def make_score(classes: int, radius: int = 0) -> Callable:
    """A function ``(labels, *probabilities) -> (confusion, predictions)`` to be jitted.

    Args:
      classes: K.
      radius: see ``metrics.band_confusion``.

    Returns:
      For n arrays of probabilities [N, H, W, K], ``confusion`` of every image
      [N, n, radius + 1, K, K] int32 and ``predictions`` [N, n, H, W], uint8 (uint16
      for K > 255).
    """
    confusion = make_confusion(classes, radius)

    def score(labels: jax.Array, *probabilities) -> tuple[jax.Array, jax.Array]:
        predictions = jnp.stack([most_probable(p) for p in probabilities], axis=1)
        return confusion(labels, predictions), predictions

    return score


def make_confusion(classes: int, radius: int = 0) -> Callable:
    """A function ``(labels, predictions) -> confusion`` of every image, to be jitted.

    Args:
      classes: K.
      radius: see ``metrics.band_confusion``.

    Returns:
      For labels [N, H, W] and n predictions of each, [N, n, H, W], int32
      [N, n, radius + 1, K, K].
    """

    def one(label: jax.Array, prediction: jax.Array) -> jax.Array:
        return metrics.band_confusion(
            label[None], prediction[None], classes=classes, radius=radius
        )

    return jax.vmap(jax.vmap(one, in_axes=(None, 0)))


def make_eval_step(predictor: Callable, classes: int) -> Callable:
    """A function ``(variables, batch) -> (confusion, predictions)`` to be jitted.

    Args:
      predictor: ``(variables, images) -> probabilities`` [N, H, W, K].
      classes: K.

    Returns:
      ``confusion`` [K, K] int32 of the batch; ``predictions`` [N, H, W] uint8.
    """
    score = make_score(classes)

    def step(variables: dict, batch: dict) -> tuple[jax.Array, jax.Array]:
        probabilities = predictor(variables, batch["image"])
        confusion, predictions = score(batch["label"], probabilities)
        return confusion[:, 0, 0].sum(0), predictions[:, 0]

    return step


def evaluate(
    eval_step: Callable,
    variables: dict,
    *,
    batches: Iterable[dict],
    mesh: jax.sharding.Mesh,
    pictures: int = 0,
) -> tuple[np.ndarray, list[dict]]:
    """Runs ``eval_step`` over ``batches``.

    Args:
      eval_step: ``(variables, batch) -> (confusion, predictions)``; the first axis of
        the predictions is that of the images.
      variables: of the model.
      batches: of this process.
      mesh: whose devices get them.
      pictures: how many examples to return.

    Returns:
      The sum of the confusion matrices, int64, over all processes' images, and the
      first ``pictures`` examples of this process with their ``prediction`` added.
    """
    total: np.ndarray = np.zeros((), np.int64)
    shown: list[dict] = []
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
