"""The input pipeline: batch k is a pure function of (seed, k).

Grain's ``MapDataset`` is random-access: shuffling, epoch boundaries and the random
generator of every example are functions of its global index.  Processes take turns
at slices of each batch, workers at batches, and a restart begins at batch k; none of
them changes what batch k holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NotRequired, TypedDict

import cv2
import numpy as np

from segjax.data import batching, transforms
from segjax.data.channel_groups import by_group
from segjax.data.source import Example, Mixture, Selection, Size, Source
from segjax.data.workers import start_workers
from segjax.errors import UserError
from segjax.labels import VOID
from segjax.proposals import boxes

if TYPE_CHECKING:  # importing it takes 0.2 s, which no --help should wait for
    import grain

# Many examples are read at once; OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)

READ_AHEAD = 4
"""Batches that each process reads ahead, or one per thread if there are more."""


class Batch(TypedDict):
    """Examples of one size."""

    image: np.ndarray
    """uint8 [n, h, w, C]."""
    label: np.ndarray
    """uint8 [n, h, w], 255 = void."""
    id: np.ndarray
    """[n] of str."""
    instance: NotRequired[np.ndarray]
    """uint16 [n, h, w], 0 = no instance, if the source has instance maps."""
    added_weight: NotRequired[np.ndarray]
    """float32 [n, h, w], added to the class weights in the loss."""
    regions: NotRequired[np.ndarray]
    """int32 [n, 1 + P, 4], boxes of evaluation batches: see inference.proposals."""
    present: NotRequired[np.ndarray]
    """uint8 [n, K], 1 for the classes of an image with weak labels, all 0 for an image
    with full labels; of the sources of ``segjax.weak``."""


def train_batches(
    source: Source,
    options: transforms.Options,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
    threads: int = 4,
    mixture: Mixture | None = None,
) -> Iterator[Batch]:
    """An endless stream of shuffled, augmented batches, from batch ``start`` on.

    Args:
      source: of the training split.
      options: of ``transforms.augment``.
      batch_size: global; this process gets images ``[i * b, (i + 1) * b)`` of each
        batch, with b = batch_size / n and ``process`` = (i, n).
      seed: of order and augmentation.
      start: the number of batches already consumed.
      process: (i, n), which of how many processes this is.
      workers: worker processes; 0 reads in ``threads`` threads of this process.
      threads: reading threads per process.
      mixture: examples that are drawn more or less often than the others; None: all
        alike.

    Returns:
      Batches of ``batch_size / n`` examples.

    Raises:
      UserError: batch_size is no multiple of n.  While iterating: a file cannot be
        read or has changed, or a worker process has died.
    """
    local_size, index, count = _share(batch_size, process)
    dataset = (
        _shuffled(source, seed, mixture)
        .random_map(_Augment(options))
        .batch(local_size, drop_remainder=True)
    )
    # Local batch j of process i is batch j * count + i of the unsliced dataset.
    dataset = dataset[start * count + index :: count]
    iterable = dataset.to_iter_dataset(_read_options(threads))
    return start_workers(iterable, workers) if workers else iter(iterable)


def _shuffled(source: Source, seed: int, mixture: Mixture | None) -> grain.MapDataset:
    """All examples in random order, without end; those of a mixture at its share."""
    import grain

    if mixture is None:
        return grain.MapDataset.source(source).seed(seed).shuffle().repeat()
    chosen = set(mixture.chosen)
    others = [i for i in range(len(source)) if i not in chosen]
    parts = [
        grain.MapDataset.source(Selection(source, indices))
        .seed(seed)
        .shuffle()
        .repeat()
        for indices in (mixture.chosen, others)
    ]
    weights = [mixture.share, 1 - mixture.share]
    return grain.MapDataset.mix(parts, weights).seed(seed)


def _share(batch_size: int, process: tuple[int, int]) -> tuple[int, int, int]:
    """Images of each batch that a process gets, its position, number of processes."""
    index, count = process
    if batch_size % count:
        raise UserError(
            f"a batch of {batch_size} images cannot be split evenly over {count} "
            f"processes; expected a multiple of {count}"
        )
    return batch_size // count, index, count


def _read_options(threads: int) -> grain.ReadOptions:
    import grain

    # Every thread reads a batch: no more of them work than batches are read ahead.
    return grain.ReadOptions(threads, prefetch_buffer_size=max(READ_AHEAD, threads))


_KEYS = ("image", "label", "id", "instance", "added_weight", "present")


class _Augment:
    """``augment`` with its options bound; a class because workers pickle it."""

    def __init__(self, options: transforms.Options):
        self.options = options

    def __call__(self, example: Example, rng: np.random.Generator) -> dict:
        out = transforms.augment(example, rng, self.options)
        return {key: out[key] for key in _KEYS if key in out}


def eval_plan(
    sizes: Sequence[Size],
    batch_size: int,
    *,
    padding: float = batching.PADDING,
    max_pixels: float = math.inf,
    devices: int = 1,
) -> list[tuple[Size, list[int]]]:
    """Which images form which evaluation batch: ``[((h, w), indices), ...]``.

    Every image of at most ``max_pixels`` occurs exactly once; larger ones do not.
    Images of one size share batches; of more than four sizes, images share the padded
    shapes of ``batching.plan``, so that a mixed collection needs few compiled
    functions; they are extended by mirroring.

    Args:
      sizes: (h, w) of the images.
      batch_size: the most images of a batch.
      padding: see ``batching.padded_shapes``.
      max_pixels: of an image, and of each device's part of a batch.
      devices: how many share a batch.
    """
    small = [i for i, (h, w) in enumerate(sizes) if h * w <= max_pixels]
    groups = batching.plan(
        [sizes[i] for i in small],
        batch_size,
        padding=padding,
        devices=batch_size,  # a multiple of it: batches all have exactly that size
        max_pixels=max_pixels,
    )
    plan = []
    for group in groups:
        shape = group.padded_shape
        size = eval_batch_size(
            shape, batch_size, max_pixels=max_pixels, devices=devices
        )
        for batch in group.batches:
            indices = [small[i] for i in batch]
            parts = range(0, len(indices), size)
            plan += [(shape, indices[at : at + size]) for at in parts]
    return plan


def eval_batch_size(
    shape: Size, batch_size: int, *, max_pixels: float, devices: int
) -> int:
    """Images of an evaluation batch of that shape: see ``eval_plan``."""
    per_device = max(max_pixels // math.prod(shape), 1)
    return int(min(batch_size, devices * per_device))


def mirror_to(image: np.ndarray, size: Size) -> np.ndarray:
    """Extends [H, W, C] at the bottom and the right to ``size`` by mirroring.

    About the centers of the border pixels, as predictors do where a model needs more.
    """
    h, w = image.shape[:2]
    if (h, w) == tuple(size):
        return image
    below, right = size[0] - h, size[1] - w
    return by_group(
        lambda part: cv2.copyMakeBorder(
            part, 0, below, 0, right, cv2.BORDER_REFLECT_101
        ),
        image,
    )


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    channels: int,
    process: tuple[int, int] = (0, 1),
    threads: int = 4,
    padding: float = batching.PADDING,
    max_pixels: float = math.inf,
    devices: int = 1,
    regions: int = 0,
) -> Iterator[Batch]:
    """All examples once, unaugmented, in batches of static shape.

    Args:
      source: the same on every process.
      batch_size: global; the last batch of a shape is filled up with void examples,
        which count nowhere (id "").
      channels: of the images.
      process: (i, n): this process gets the i-th of n equal parts of each batch.
      threads: reading threads.
      padding: see ``eval_plan``.
      max_pixels: see ``eval_plan``.
      devices: see ``eval_plan``.
      regions: rows of the regions of an example; 0: examples have none.

    Returns:
      Batches of ``batch_size / n`` examples, or of fewer where ``max_pixels`` asks for
      it.
    """
    _, index, _ = _share(batch_size, process)
    plan = eval_plan(
        source.sizes,
        batch_size,
        padding=padding,
        max_pixels=max_pixels,
        devices=devices,
    )

    def read(item: tuple[Size, list[int]]) -> Batch:
        shape, indices = item
        size = eval_batch_size(
            shape, batch_size, max_pixels=max_pixels, devices=devices
        )
        local_size, *_ = _share(size, process)
        local = indices[index * local_size : (index + 1) * local_size]
        image = np.zeros((local_size, *shape, channels), np.uint8)
        label = np.full((local_size, *shape), VOID, np.uint8)
        ids = [""] * local_size
        instance: np.ndarray | None = None
        rows = np.zeros((local_size, regions, 4), np.int32)
        rows[:] = boxes.NONE
        for position, example in enumerate(source[i] for i in local):
            h, w = example["label"].shape
            image[position] = mirror_to(example["image"], shape)
            label[position, :h, :w] = example["label"]
            ids[position] = str(example["id"])
            if "instance" in example:
                if instance is None:
                    instance = np.zeros((local_size, *shape), np.uint16)
                instance[position, :h, :w] = example["instance"]
            if regions:
                rows[position] = example["regions"]
        batch: Batch = {"image": image, "label": label, "id": np.array(ids)}
        if instance is not None:
            batch["instance"] = instance
        if regions:
            batch["regions"] = rows
        return batch

    import grain

    return iter(
        grain.MapDataset.source(plan).map(read).to_iter_dataset(_read_options(threads))
    )
