"""What an evaluation keeps of each image, over all processes."""

import collections
import concurrent.futures
import heapq
import pickle
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments.shared.evaluation_stages import ScoredImage
from segjax import errors, metrics, scoring

IMAGE_SCORES = ("pixel_accuracy", "miou")
"""Scores of the confusion matrix of a single image."""


class Row(NamedTuple):
    """The numbers of one image."""

    id: str
    size: tuple[int, int]
    """(height, width)."""
    scores: list[dict[str, float]]
    """IMAGE_SCORES of each stage; NaN where all pixels are void."""
    measured: list[dict[str, np.ndarray]]
    """What each metric measured, of each stage."""


class Collected(NamedTuple):
    """The images of all processes."""

    confusion: np.ndarray
    """int64 [n, radius + 1, K, K], summed over the images."""
    rows: list[Row]
    """In the order of the source."""
    shown: list[ScoredImage]
    """The first images of this process."""
    worst: list[tuple[int, ScoredImage]]
    """Those of this process that are among the worst of all: (rank, image)."""


def choose_metrics(
    names: Sequence[str], classes: tuple[str, ...]
) -> dict[str, scoring.ImageMetric]:
    """The metrics of these names.

    Raises:
      UserError: an unknown name, or a metric that cannot score these classes.
    """
    chosen = {}
    for name in names:
        if name not in scoring.IMAGE_METRICS:
            raise errors.unknown("--metrics", name, scoring.IMAGE_METRICS)
        chosen[name] = scoring.IMAGE_METRICS[name]
        chosen[name].check(classes)
    return chosen


def collect(
    images: Iterable[ScoredImage],
    expected: Sequence[int],
    *,
    chosen: dict[str, scoring.ImageMetric],
    classes: tuple[str, ...],
    shown: int,
    worst: int,
    threads: int,
) -> Collected:
    """Measures the images, in threads, and gathers the numbers of all processes.

    Args:
      images: of this process.
      expected: indices of the images of all processes together.
      chosen: metrics of whole images, by name.
      classes: names of the classes.
      shown: how many of the first images to keep.
      worst: how many images of the lowest mIoU in the last stage to keep.
      threads: that measure.

    Raises:
      RuntimeError: an image was scored twice or not at all.
    """
    total: np.ndarray = np.zeros((), np.int64)
    first: list[ScoredImage] = []
    lowest: list[tuple[float, int, ScoredImage]] = []  # a heap, the best one on top
    rows: list[tuple[int, Row]] = []
    pending: collections.deque = collections.deque()

    def finish() -> None:
        index, future = pending.popleft()
        rows.append((index, future.result()))

    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        for image in images:
            total = total + image.confusion.astype(np.int64)
            scores = [image_scores(h[-1]) for h in image.confusion]
            first += [_copied(image)] if len(first) < shown else []
            miou = scores[-1]["miou"]
            if worst and not np.isnan(miou):
                entry = (-miou, -image.index)
                if len(lowest) < worst:
                    heapq.heappush(lowest, (*entry, _copied(image)))
                elif entry > lowest[0][:2]:
                    heapq.heapreplace(lowest, (*entry, _copied(image)))
            task = pool.submit(measure, image, scores, chosen=chosen, classes=classes)
            pending.append((image.index, task))
            while len(pending) > 2 * max(threads, 1):
                finish()
        while pending:
            finish()
    parts = gather((total, rows))
    everything = [row for _, part in parts for row in part]
    if sorted(index for index, _ in everything) != sorted(expected):
        raise RuntimeError("an image was scored twice or not at all")
    by_index = dict(everything)
    ranked = sorted(
        (row.scores[-1]["miou"], index)
        for index, row in by_index.items()
        if not np.isnan(row.scores[-1]["miou"])
    )
    rank = {index: place for place, (_, index) in enumerate(ranked[:worst])}
    return Collected(
        confusion=sum(part for part, _ in parts),
        rows=[by_index[index] for index in sorted(by_index)],
        shown=first,
        worst=sorted(
            ((rank[image.index], image) for *_, image in lowest if image.index in rank),
            key=lambda entry: entry[0],
        ),
    )


def _copied(image: ScoredImage) -> ScoredImage:
    """The arrays of a picture, not as a view that holds the whole batch."""
    return image._replace(
        image=image.image.copy(),
        label=image.label.copy(),
        predictions=image.predictions.copy(),
        probabilities=(),
        instances=None,
    )


def image_scores(confusion: np.ndarray) -> dict[str, float]:
    """IMAGE_SCORES of the confusion matrix [K, K] of one image."""
    scores = metrics.scores(confusion)
    return {name: scores[name] for name in IMAGE_SCORES}


def measure(
    image: ScoredImage,
    scores: list[dict[str, float]],
    *,
    chosen: dict[str, scoring.ImageMetric],
    classes: tuple[str, ...],
) -> Row:
    """Applies the metrics to every stage of an image."""
    measured = []
    for stage, prediction in enumerate(image.predictions):
        scored = scoring.Scored(
            label=image.label,
            prediction=prediction,
            probabilities=image.probabilities[stage] if image.probabilities else None,
            instances=image.instances,
            classes=classes,
        )
        measured.append({n: metric.measure(scored) for n, metric in chosen.items()})
    return Row(image.id, image.label.shape, scores, measured)


def gather(value: Any) -> list[Any]:
    """The values of all processes, which call this together, in their order."""
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(pickle.dumps(value), np.uint8)
    lengths = multihost_utils.process_allgather(np.int64([len(data)])).ravel()
    padded = np.pad(data, (0, int(lengths.max()) - len(data)))
    parts = multihost_utils.process_allgather(padded)
    return [
        pickle.loads(part[:length].tobytes())
        for part, length in zip(parts, lengths.tolist(), strict=True)
    ]
