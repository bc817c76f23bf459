"""The input pipeline: batch k is a pure function of (seed, k).

Grain's ``MapDataset`` is random-access: shuffling, epoch boundaries and the random
generator of every example are functions of its global index.  Processes take turns
at slices of each batch, workers at batches, and a restart begins at batch k; none of
them changes what batch k holds.
"""

from collections.abc import Iterator, Sequence

import cv2
import grain
import numpy as np

from segjax.data import batching, transforms
from segjax.labels import VOID

# Many examples are in work at once; OpenCV's own threads would only compete with them.
cv2.setNumThreads(1)


def train_batches(
    source,
    options: transforms.Options,
    batch_size: int,
    seed: int,
    start: int = 0,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
    threads: int = 4,
) -> Iterator[dict]:
    """An endless stream of shuffled, augmented batches, from batch ``start`` on.

    Args:
      source: random access to ``{"image", "label", "id"}``.
      options: of ``transforms.augment``.
      batch_size: global; this process gets rows ``[i * b, (i + 1) * b)`` of it, with
        b = batch_size / n and ``process`` = (i, n).
      seed: of order and augmentation.
      start: the number of batches already consumed.
      workers: worker processes; 0 reads in ``threads`` threads of this process.
      threads: reading threads per process.

    Yields:
      ``image`` uint8 [b, h, w, C], ``label`` uint8 [b, h, w], ``id`` [b] of str.
    """
    index, count = process
    dataset = (
        grain.MapDataset.source(source)
        .seed(seed)
        .shuffle()
        .repeat()
        .random_map(_Augment(options))
        .batch(batch_size // count, drop_remainder=True)
    )
    # Local batch j of process i is batch j * count + i of the unsliced dataset.
    dataset = dataset[start * count + index :: count]
    iterable = dataset.to_iter_dataset(
        # Workers read ahead themselves; a second buffer per worker is enough.
        grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    )
    if workers:
        iterable = iterable.mp_prefetch(grain.MultiprocessingOptions(workers, 2))
    return iter(iterable)


class _Augment:
    """``augment`` with its options bound; a class because workers pickle it."""

    def __init__(self, options: transforms.Options):
        self.options = options

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        example = transforms.augment(example, rng, self.options)
        return {key: example[key] for key in ("image", "label", "id")}


def eval_plan(
    sizes: Sequence[tuple[int, int]], batch_size: int
) -> list[tuple[tuple[int, int], list[int]]]:
    """Which images form which evaluation batch: ``[((h, w), indices), ...]``.

    Every image occurs exactly once.  Images of one size share batches; with more than
    four sizes, images share the frames of ``batching.frames``, so that a mixed
    collection needs few compiled shapes; they are extended by mirroring.
    """
    frames = batching.frames(sizes)
    groups: dict[tuple[int, int], list[int]] = {}
    for i, size in enumerate(sizes):
        groups.setdefault(frames[tuple(size)], []).append(i)
    return [
        (frame, indices[at : at + batch_size])
        for frame, indices in sorted(groups.items())
        for at in range(0, len(indices), batch_size)
    ]


def mirror_to(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Extends [H, W, C] at the bottom and the right to ``size`` by mirroring.

    About the centers of the border pixels, as predictors do where a model needs more.
    """
    h, w = image.shape[:2]
    if (h, w) == tuple(size):
        return image
    extended = cv2.copyMakeBorder(
        image, 0, size[0] - h, 0, size[1] - w, cv2.BORDER_REFLECT_101
    )
    return extended.reshape(*size, image.shape[2])  # OpenCV drops a single channel


def eval_batches(
    source,
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    channels: int,
    process: tuple[int, int] = (0, 1),
    threads: int = 4,
) -> Iterator[dict]:
    """All examples once, unaugmented, in batches of static shape.

    Args:
      source: random access to ``{"image", "label", "id"}``.
      sizes: (h, w) of every example, the same on every process.
      batch_size: global; the last batch of a size is filled up with void examples,
        which count nowhere (id "").
      channels: of the images.
      process: (i, n): this process gets its n-th of the rows of each batch.

    Yields:
      As ``train_batches``.
    """
    index, count = process
    rows = batch_size // count
    plan = eval_plan(sizes, batch_size)

    def batch_of(item: tuple) -> dict:
        bucket, indices = item
        mine = indices[index * rows : (index + 1) * rows]
        examples = [source[i] for i in mine]
        image = np.zeros((rows, *bucket, channels), np.uint8)
        label = np.full((rows, *bucket), VOID, np.uint8)
        for row, example in enumerate(examples):
            h, w = example["label"].shape
            image[row] = mirror_to(example["image"], bucket)
            label[row, :h, :w] = example["label"]
        ids = [str(example["id"]) for example in examples]
        ids += [""] * (rows - len(ids))
        return {"image": image, "label": label, "id": np.array(ids)}

    return iter(
        grain.MapDataset.source(plan)
        .map(batch_of)
        .to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=4))
    )
