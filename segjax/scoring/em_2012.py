"""The scores that ISBI 2012 was first ranked by, without thinning; lower is better.

From the challenge's page on evaluation, with the formulas of Fiji's Trainable
Segmentation (PixelError, RandError, WarpingError), with which it was scored:

* pixel error: 1 - the best F-score of the interior pixels;
* Rand error: 1 - the best foreground-restricted Rand F-score;
* warping error: the share of pixels that after warping still split or merge objects.

The counts of all slices are added before anything is divided; each score takes the
threshold that is best for it.
"""

from collections.abc import Sequence

import numpy as np

from segjax.labels import VOID
from segjax.scoring import em, flooding, partitions, warping
from segjax.scoring.metric import ImageMetric, Scored
from segjax.scoring.per_image import ratio


def _measure(scored: Scored) -> np.ndarray:
    """Nine counts at each of ``em.THRESHOLDS``."""
    assert scored.probabilities is not None
    interior = em.interior_class(scored.classes)
    known = scored.label != VOID
    truth, segments = scored.label == interior, em.truth_segments(scored)
    probability = scored.probabilities[:, :, interior].astype(np.float64)
    rows = []
    for threshold, proposal in zip(em.THRESHOLDS, em.proposals(scored), strict=True):
        shared = partitions.overlap(segments, flooding.components(proposal))
        # The order in float32 as in Fiji, which decides the ties.
        order = np.abs(probability - threshold).astype(np.float32)
        warped = warping.warp(truth, proposal, order=order, allowed=known)
        rows.append(
            (
                np.count_nonzero(truth & proposal),
                np.count_nonzero(~truth & proposal & known),
                np.count_nonzero(truth & ~proposal),
                np.count_nonzero(known),
                *partitions.pairs(shared),
                np.count_nonzero(warped.wrong),
                warping.splits_and_merges(warped),
            )
        )
    return np.array(rows, np.float64).ravel()


def _combine(images: Sequence[np.ndarray]) -> dict[str, float]:
    both, extra, missed, pixels, pairs, truth, proposal, wrong, cuts = (
        em.by_threshold(images).sum(0).T
    )
    return {
        "pixel_error": 1 - _best(2 * both, 2 * both + extra + missed),
        "pixel_difference": -_best(-(extra + missed), pixels),
        "rand_error": 1 - _best(2 * pairs, truth + proposal),
        "warping_error": -_best(-cuts, pixels),
        "warping_error_all": -_best(-wrong, pixels),
    }


def _best(numerator: np.ndarray, denominator: np.ndarray) -> float:
    """The largest quotient of all thresholds."""
    return float(ratio(numerator, denominator).max())


EM_2012 = ImageMetric(
    title="ISBI 2012, first scores",
    needs=frozenset({"probabilities"}),
    measure=_measure,
    combine=_combine,
    check=em.check,
)
