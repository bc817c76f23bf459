"""The scores of the ISBI 2012 challenge: V_rand and V_info after border thinning.

Arganda-Carreras et al., Frontiers in Neuroanatomy 2015. For every slice and threshold
the true segments are the 4-connected components of the true interior, and the proposed
ones the basins of ``flooding.thin`` of "probability of interior > threshold". The
scores are averaged over the slices at each threshold, and the best threshold counts.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from segjax.errors import UserError
from segjax.scoring import flooding, partitions
from segjax.scoring.metric import ImageMetric, Scored

THRESHOLDS = tuple(accumulate([0.0] + [0.1] * 10))
"""0.0, 0.1, ... as the scorer adds them up: 0.30000000000000004, 0.9999999999999999."""


def interior_class(classes: tuple[str, ...]) -> int:
    """The class that is the interior of cells: "interior", or the second of two.

    Raises:
      UserError: there are other than two classes and none is called "interior".
    """
    if "interior" in classes:
        return classes.index("interior")
    if len(classes) != 2:
        raise UserError(
            "--metrics: em and em_2012 need a class called interior, or two classes, "
            f"of which the second is the interior; found {', '.join(classes)}"
        )
    return 1


def check(classes: tuple[str, ...]) -> None:
    """Raises UserError if no class is the interior of cells."""
    interior_class(classes)


def proposals(scored: Scored) -> Iterator[np.ndarray]:
    """The proposed interior, [H, W] bool, at each of THRESHOLDS."""
    assert scored.probabilities is not None
    # In float64 as in the scorer: float32(0.3) > 0.30000000000000004.
    interior = interior_class(scored.classes)
    probability = scored.probabilities[:, :, interior].astype(np.float64)
    for threshold in THRESHOLDS:
        yield probability > threshold


def truth_segments(scored: Scored) -> np.ndarray:
    """The true segments: int32 [H, W] 1, 2, ..., 0 = membrane or void."""
    return flooding.components(scored.label == interior_class(scored.classes))


def thinned_scores(truth: np.ndarray, interior: np.ndarray) -> np.ndarray:
    """V_rand and V_info with their split and merge scores, of one slice.

    Args:
      truth: [H, W] integers, true segments >= 1, 0 = does not count.
      interior: [H, W] bool, the proposal before thinning.

    Returns:
      [6] float64: the ``partitions.Scores`` of V_rand, then those of V_info.
    """
    shared = partitions.overlap(truth, flooding.thin(interior))
    return np.array([*partitions.rand(shared), *partitions.information(shared)])


def _measure(scored: Scored) -> np.ndarray:
    truth = truth_segments(scored)
    return np.stack([thinned_scores(truth, p) for p in proposals(scored)]).ravel()


def by_threshold(images: Sequence[np.ndarray]) -> np.ndarray:
    """The vectors of all slices as [N, T, M], without slices that have no score."""
    stack = np.stack(images).reshape(len(images), len(THRESHOLDS), -1)
    return stack[~np.isnan(stack).any(axis=(1, 2))]


def _combine(images: Sequence[np.ndarray]) -> dict[str, float]:
    stack = by_threshold(images)
    means = stack.mean(0) if len(stack) else np.full(stack.shape[1:], np.nan)
    found = {}
    for name, column in (("v_rand", 0), ("v_info", 3)):
        best = int(means[:, column].argmax())
        for suffix, value in zip(("", "_split", "_merge"), means[best, column:]):
            found[name + suffix] = float(value)
        found[f"{name}_threshold"] = THRESHOLDS[best] if len(stack) else float("nan")
    return found


EM = ImageMetric("ISBI 2012", frozenset({"probabilities"}), _measure, _combine, check)
