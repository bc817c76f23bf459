"""Evaluating the model of a config on a split of its data set."""

from collections.abc import Callable, Iterator

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from segjax import compilation, evaluators, inference, sharding
from segjax.data import datasets, pipeline
from segjax.inference.options import from_config


def make_predictor(config: ConfigDict, model: nn.Module) -> inference.Predictor:
    """The predictor of a config, as for ``experiments.predict`` without flags."""
    predictor = inference.compose((model,), from_config(config))
    return lambda variables, images: predictor((variables,), images)


def make_eval_step(
    config: ConfigDict, model: nn.Module, classes: int, mesh: jax.sharding.Mesh
) -> Callable:
    """The jitted ``evaluators.make_eval_step`` of a config."""
    step = evaluators.make_eval_step(make_predictor(config, model), classes)
    step = compilation.precision(config.precision)(step)
    shardings = sharding.replicated(mesh), sharding.split(mesh)
    return jax.jit(step, out_shardings=shardings)


def eval_batches(
    config: ConfigDict, source: datasets.Source, channels: int, regions: int = 0
) -> Iterator[dict]:
    """This process's share of the evaluation batches of a source.

    Args:
      config: of the run.
      source: the same on every process.
      channels: of its images.
      regions: see ``pipeline.eval_batches``.
    """
    return pipeline.eval_batches(
        source,
        batch_size=config.eval_batch_size,
        channels=channels,
        process=(jax.process_index(), jax.process_count()),
        threads=config.threads,
        regions=regions,
    )
