"""Whether one arm of an experiment scores higher than another, paired over seeds.

Runs of one seed share the order of the data and the draws of the augmentation, so that
the difference of two arms is taken seed by seed; its mean has the interval of Student's
t (as in a paired t-test), which supposes that the differences are normal.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

LEVEL = 0.95
REPRODUCED, NOT_REPRODUCED = "reproduced", "not reproduced"
UNDECIDED, NOT_RUN = "undecided", "not run"


class Difference(NamedTuple):
    """The higher arm minus the lower one; NaN: of too few seeds."""

    seeds: tuple[int, ...]  # of the pairs
    mean: float
    deviation: float  # of the sample, n - 1
    low: float  # of the interval for the mean
    high: float


def difference(lower: Mapping[int, float], higher: Mapping[int, float]) -> Difference:
    """Differences of the seeds that both arms know.

    Args:
      lower: score by seed of the arm that is claimed to have less; NaN is not known.
      higher: of the other arm.

    Returns:
      Mean, sample deviation and 95 % interval of ``higher[seed] - lower[seed]``.
    """
    known = [
        seed
        for seed in sorted(lower.keys() & higher.keys())
        if not math.isnan(lower[seed]) and not math.isnan(higher[seed])
    ]
    values = np.array([higher[seed] - lower[seed] for seed in known], np.float64)
    mean = float(values.mean()) if known else math.nan
    if len(known) < 2:
        return Difference(tuple(known), mean, math.nan, math.nan, math.nan)
    from scipy.stats import t  # takes a third of a second

    deviation = float(values.std(ddof=1))
    half = deviation / math.sqrt(len(known)) * t.ppf((1 + LEVEL) / 2, len(known) - 1)
    return Difference(
        tuple(known), mean, deviation, float(mean - half), float(mean + half)
    )


def verdict(found: Difference, margin: float = 0.0) -> str:
    """What the interval says of the claim that the difference is positive.

    Args:
      found: the difference.
      margin: an interval around zero and inside of it is no effect; 0: no such limit.

    Returns:
      "reproduced" if the interval is above zero, "not reproduced" if it is below, or
      inside of the margin around zero; otherwise "undecided".
    """
    if found.low > 0:
        return REPRODUCED
    if found.high < 0 or (-margin < found.low and found.high < margin):
        return NOT_REPRODUCED
    return UNDECIDED
