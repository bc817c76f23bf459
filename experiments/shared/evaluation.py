"""Evaluating the model of a config on a split of its data set."""

from collections.abc import Callable, Iterator

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from segjax import compilation, evaluators, inference, sharding
from segjax.data import datasets, pipeline


def make_predictor(config: ConfigDict, model: nn.Module) -> inference.Predictor:
    """The config's way of predicting whole images: at once, or in ``config.tile``s."""
    if config.tile:
        return inference.overlap_tile(model, config.tile)
    return inference.whole(model)


def make_eval_step(
    config: ConfigDict, model: nn.Module, classes: int, mesh: jax.sharding.Mesh
) -> Callable:
    """The jitted ``evaluators.make_eval_step`` of a config."""
    step = evaluators.make_eval_step(make_predictor(config, model), classes)
    step = compilation.precision(config.precision)(step)
    places = sharding.replicated(mesh), sharding.split(mesh)
    return jax.jit(step, out_shardings=places)


def eval_batches(
    config: ConfigDict, source: datasets.Source, channels: int
) -> Iterator[dict]:
    """This process's share of the evaluation batches of a source."""
    return pipeline.eval_batches(
        source,
        batch_size=config.eval_batch_size,
        channels=channels,
        process=(jax.process_index(), jax.process_count()),
        threads=config.threads,
    )
