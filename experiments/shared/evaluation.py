"""Evaluating the model of a config on a split of its data set."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import linen as nn
from ml_collections import ConfigDict

from experiments.shared import run_description
from segjax import compilation, evaluators, inference, sharding
from segjax import config as config_lib
from segjax.data import datasets, pipeline
from segjax.inference.options import from_config

# Fields that do not change what an evaluation of a run measures. Tiles and CRFs are
# among them: what an evaluation takes of these, it says elsewhere in its results.
_FREE_FIELDS = run_description.FREE_FIELDS | {"seed", "init_from"}


def fields_that_matter(config: ConfigDict) -> dict[str, Any]:
    """The fields, by names with dots, that evaluations of one run must agree in."""
    values = config_lib.flatten(config)
    return {key: value for key, value in values.items() if key not in _FREE_FIELDS}


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
