"""Latent labels of weakly labeled images: the E-step of WSSL.

Papandreou, Chen, Murphy and Yuille, ICCV 2015, section 3: the scores of the classes
that an image is known to show are raised, and the best class of each pixel is its label
in the loss (the M-step). The adaptive form follows the layer that the authors released
with DeepLab.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from segjax.labels import VOID

METHODS = ("none", "fixed", "adapt", "box_fixed")
"""Values of ``Options.em``."""

MARGIN = 1e-5
"""By how much a class that is absent stays below all that are present."""


class Options(NamedTuple):
    """How labels are inferred; the fields of the same names of ``config.loss``."""

    em: str = "none"
    """"none": the labels are as given. "fixed": constant biases of the classes of the
    image. "adapt": biases that give each of them a share of the pixels. "box_fixed":
    constant biases, those of foreground classes in the boxes of their objects only."""
    em_background_bias: float = 1.0
    """"fixed", "box_fixed": added to the scores of class 0."""
    em_foreground_bias: float = 2.0
    """"fixed", "box_fixed": added to the scores of the other classes."""
    em_background_share: float = 0.2
    """"adapt": the least share of the pixels of class 0."""
    em_foreground_share: float = 0.2
    """"adapt": the least share of each of the other classes."""
    em_iterations: int = 1
    """"adapt": rounds over the classes."""
    em_suppress: bool = True
    """Whether classes that the image does not show can win no pixel."""


def options(config: Any) -> Options:
    """The options of ``config.loss``."""
    return Options(**{name: getattr(config, name) for name in Options._fields})


def infer(
    scores: jax.Array,
    labels: jax.Array,
    present: jax.Array,
    *,
    options: Options,
    key: jax.Array,
) -> jax.Array:
    """The labels that the scores are compared with; no gradient flows through them.

    Args:
      scores: [N, h, w, K] of the network, before the softmax.
      labels: [N, h, w] integer train ids, 255 = void. Of weakly labeled images, where
        they are not void they are not looked at, except by "box_fixed": the class of
        the box that a pixel lies in, 0 outside of all boxes.
      present: [N, K], not 0 for the classes of a weakly labeled image, all 0 for an
        image with full labels. Class 0 is the background.
      options: see :class:`Options`.
      key: of the order in which "adapt" visits the foreground classes.

    Returns:
      [N, h, w] of the type of ``labels``: void where they are void, the labels
      themselves in images with full labels, latent labels elsewhere.
    """
    if options.em == "none":
        return labels
    scores = jax.lax.stop_gradient(scores.astype(jnp.float32))
    present = present > 0
    if options.em == "adapt":
        keys = jax.random.split(key, len(scores))
        scores = jax.vmap(
            lambda *image: adapt_scores(*image[:3], options=options, key=image[3])
        )(scores, labels != VOID, present, keys)
    else:
        boosted = present[:, None, None]
        if options.em == "box_fixed":
            classes = jnp.arange(scores.shape[-1])
            boosted &= (labels[..., None] == classes) | (classes == 0)
        scores = _fixed_scores(scores, boosted, options)
    latent = jnp.argmax(scores, axis=-1).astype(labels.dtype)
    weak = present.any(axis=-1)[:, None, None]
    return jnp.where(weak & (labels != VOID), latent, labels)


def _fixed_scores(scores: jax.Array, boosted: jax.Array, options: Options) -> jax.Array:
    """EM-Fixed: scores [N, h, w, K] with the biases of the classes that are boosted."""
    background = jnp.arange(scores.shape[-1]) == 0
    bias = jnp.where(background, options.em_background_bias, options.em_foreground_bias)
    others = -jnp.inf if options.em_suppress else scores
    return jnp.where(boosted, scores + bias, others)


def adapt_scores(
    scores: jax.Array,
    valid: jax.Array,
    present: jax.Array,
    *,
    options: Options,
    key: jax.Array,
) -> jax.Array:
    """EM-Adapt: the scores of one image with a bias for each class that it shows.

    Classes are visited one after the other, the background first and the others in
    random order. A class that is visited gets the smallest bias with which it reaches
    the best score in at least its share of the pixels; later visits may take some of
    them away. Finally all scores are shifted so that the mean of the best ones is what
    it was.

    Args:
      scores: float32 [h, w, K].
      valid: bool [h, w]; the other pixels do not count.
      present: bool [K]; the other classes get no bias.
      options: ``em_background_share``, ``em_foreground_share``, ``em_iterations``, and
        ``em_suppress``, which first lowers absent classes below all present ones.
      key: of the order.

    Returns:
      float32 [h, w, K].
    """
    shape, classes = scores.shape, scores.shape[-1]
    scores, valid = scores.reshape(-1, classes), valid.reshape(-1)
    if options.em_suppress:
        lowest = jnp.where(present, scores, jnp.inf).min(axis=-1, keepdims=True)
        scores = jnp.where(present, scores, jnp.minimum(scores, lowest - MARGIN))
    best = jnp.where(present, scores, -jnp.inf).max(axis=-1)
    count = valid.sum()

    def mean(values: jax.Array) -> jax.Array:
        return jnp.where(valid, values, 0.0).sum() / jnp.maximum(count, 1)

    def visit(carry: tuple, k: jax.Array) -> tuple[tuple, None]:
        scores, best = carry
        share = jnp.where(
            k == 0, options.em_background_share, options.em_foreground_share
        )
        missing = jnp.sort(jnp.where(valid, best - scores[:, k], jnp.inf))
        index = jnp.floor(share * count).astype(jnp.int32)
        bias = missing[jnp.clip(index, 0, jnp.maximum(count - 1, 0))]
        raised = scores[:, k] + jnp.where(present[k] & (count > 0), bias, 0.0)
        scores = scores.at[:, k].set(raised)
        best = jnp.where(present[k], jnp.maximum(best, raised), best)
        return (scores, best), None

    draws = jax.random.uniform(key, (options.em_iterations, classes - 1))
    foreground = jnp.argsort(draws, axis=1) + 1
    order = jnp.pad(foreground, ((0, 0), (1, 0)))  # the background first
    before = mean(best)
    (scores, best), _ = jax.lax.scan(visit, (scores, best), order.reshape(-1))
    return (scores + (before - mean(best))).reshape(shape)
