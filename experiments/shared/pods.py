"""Variants of recipes for TPU slices: a larger batch, the rate that goes with it."""

import math

from ml_collections import ConfigDict

from segjax import models

WARMUP = 0.05  # of the steps, as their 5 of 90 epochs
PER_CHIP = 8  # images; with 1 a chip mostly waits (docs/plan.md)


def scaled(config: ConfigDict, chips: int = 0) -> ConfigDict:
    """The recipe on a slice: PER_CHIP images on each chip, as many epochs as before.

    With k times the batch, SGD gets k times the learning rate and a warm-up (Goyal et
    al. 2017, arXiv:1706.02677, section 2.1), Adam sqrt(k) times (Malladi et al. 2022,
    arXiv:2205.10287).  Steps, and the steps between two evaluations, checkpoints or
    lines of the log, are k times fewer.  Whether it reaches the same score has not been
    measured.

    Args:
      config: of a recipe that is counted in steps; it is changed.
      chips: of the slice; 0: the recipe as it is.
    """
    if not chips:
        return config
    before, after = config.batch_size, chips * PER_CHIP
    factor = after / before
    adam = config.optim.name.startswith("adam")
    config.optim.lr *= math.sqrt(factor) if adam else factor
    config.batch_size = after
    config.eval_batch_size = 2 * chips
    for field in ("total_steps", "eval_every", "save_every", "log_every"):
        config[field] = math.ceil(config[field] / factor)
    if "packed" in models.model_fields(config.model_name):
        config.model.packed = True
    warmup = math.ceil(config.total_steps * WARMUP)
    config.optim.warmup_steps = max(warmup, config.optim.warmup_steps)
    return config
