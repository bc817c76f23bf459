"""Two partitions of the same pixels compared: V_rand and V_info of ISBI 2012.

Arganda-Carreras et al., Frontiers in Neuroanatomy 2015. Only pixels of the true
segments count (foreground restriction). Pixels there that lie in no segment of the
proposal are segments of one pixel each. With n_ij pixels of true segment i in proposed
segment j, t_i = sum_j n_ij, s_j = sum_i n_ij and z pixels in no segment:

* A = sum_ij n_ij^2 + z, T = sum_i t_i^2, S = sum_j s_j^2 + z
* Rand split score A / T, Rand merge score A / S, V_rand = 2 A / (S + T)
* H(T), H(S) entropies of the segments, I their mutual information
* information split score I / H(S), merge score I / H(T), V_info = 2 I / (H(S) + H(T))

A pixel forms a pair with itself here, as in the challenge's scorer. scikit-image's
``adapted_rand_error`` counts pairs of different pixels, and takes label 0 of the
proposal for one segment.
"""

from typing import NamedTuple

import numpy as np


class Overlap(NamedTuple):
    """Pixels of the true segments, float64."""

    both: np.ndarray
    """n_ij of the pairs that occur, [P]."""
    truth: np.ndarray
    """t_i of the true segments, [I]."""
    proposal: np.ndarray
    """s_j of the proposed segments, [J]."""
    single: float
    """z, pixels in no segment of the proposal."""


class Scores(NamedTuple):
    """In 0..1, 1 = the same partition; NaN without a true segment."""

    f: float
    """The harmonic mean of both: V_rand or V_info."""
    split: float
    """Lower the more true segments are split."""
    merge: float
    """Lower the more true segments are merged."""


def overlap(truth: np.ndarray, proposal: np.ndarray) -> Overlap:
    """Counts the pixels that two partitions share.

    Args:
      truth: [H, W] integers, segments >= 1, 0 = does not count.
      proposal: [H, W] integers, segments >= 1, 0 = no segment.
    """
    inside = truth > 0
    true, proposed = truth[inside].astype(np.int64), proposal[inside].astype(np.int64)
    within = proposed > 0
    pairs = (true * (proposal.max(initial=0) + 1) + proposed)[within]
    return Overlap(
        both=_counts(pairs),
        truth=_counts(true),
        proposal=_counts(proposed[within]),
        single=float(np.count_nonzero(~within)),
    )


def _counts(ids: np.ndarray) -> np.ndarray:
    return np.unique(ids, return_counts=True)[1].astype(np.float64)


def pairs(o: Overlap) -> tuple[float, float, float]:
    """A, T and S: ordered pairs of pixels, of a pixel with itself, too."""
    return (
        float((o.both**2).sum() + o.single),
        float((o.truth**2).sum()),
        float((o.proposal**2).sum() + o.single),
    )


def rand(o: Overlap) -> Scores:
    """V_rand with its split and merge scores."""
    if not o.truth.size:
        return Scores(*[float("nan")] * 3)
    both, truth, proposal = pairs(o)
    return Scores(2 * both / (truth + proposal), both / truth, both / proposal)


def information(o: Overlap) -> Scores:
    """V_info with its split and merge scores.

    A partition without information, that is of one segment, scores 0 as in the
    challenge's scorer, even if the other one is the same.
    """
    if not o.truth.size:
        return Scores(*[float("nan")] * 3)
    total = o.truth.sum()
    single = float(o.single / total * np.log(total))
    h_truth = _entropy(o.truth / total)
    h_proposal = _entropy(o.proposal / total) + single
    if h_proposal == 0:
        return Scores(0.0, 0.0, 1.0)
    if h_truth == 0:
        return Scores(0.0, 1.0, 0.0)
    shared = h_truth + h_proposal - (_entropy(o.both / total) + single)
    shared = max(shared, 0.0)  # rounding
    return Scores(
        2 * shared / (h_truth + h_proposal), shared / h_proposal, shared / h_truth
    )


def _entropy(shares: np.ndarray) -> float:
    """In nats; + 0.0 turns -0.0 of a single segment into 0.0."""
    return float(-(shares * np.log(shares)).sum()) + 0.0
