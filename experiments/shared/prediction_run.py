"""The loops of experiments.predict: reading, devices and writing at the same time."""

import collections
import concurrent.futures
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tqdm

from experiments.shared import prediction_files
from segjax.data import batching, windows
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference import predictor, trained
from segjax.ops import mean_field

OVERLAY_SIDE = 2048
"""Overlays of images that are predicted in parts are reduced to about this side."""


def predict_batches(
    model: trained.Trained,
    results: prediction_files.Results,
    names: dict[str, str],
    files: Sequence[str],
    plan: Sequence[batching.Bucket],
    crf: mean_field.Settings | None,
    threads: int,
    failed: Callable[[str, UserError], None],
    finished: Callable[[int], Any],
) -> float:
    """Segments images in batches, and writes them.

    Two batches are decoded ahead and one is on the devices while the one before it is
    written; programs compile ahead in threads of their own.

    Args:
      model: what predicts.
      results: where to write.
      names: of the results, by file.
      files: the images that ``plan`` has indices of.
      plan: of ``batching.plan``.
      crf: refines the probabilities.
      threads: that decode and write.
      failed: told of a file that cannot be read, and why.
      finished: told how many more files are done with.

    Returns:
      Seconds spent waiting for programs.

    Raises:
      UserError: results cannot be written.
    """
    kinds = ["labels"] + ["probabilities"] * ("probabilities" in results.outputs)
    launched, writes = collections.deque(), collections.deque()
    waited, versions = 0.0, {}

    def decode(file: str, frame: tuple[int, int]) -> np.ndarray | UserError:
        versions[file] = prediction_files.version_of(file)
        try:
            image = image_files.decode_image(file, model.info.channels)
        except UserError as error:
            return error
        size = image.shape[:2]
        if size[0] > frame[0] or size[1] > frame[1]:
            return UserError(
                f"{file}: holds {size[0]}x{size[1]} pixels, its header said less: it "
                "is damaged or has changed meanwhile; replace or remove it"
            )
        return image

    def decoded() -> Iterator[tuple]:
        for bucket, program in zip(plan, programs):
            for indices in bucket.batches:
                batch = [files[i] for i in indices]
                futures = [pool.submit(decode, file, bucket.frame) for file in batch]
                yield bucket, program, batch, futures

    def collect() -> None:
        """Waits for a batch from the devices and hands it to the writers."""
        images, found = launched.popleft()
        found = {kind: np.asarray(array) for kind, array in found.items()}
        while len(writes) > 2 * len(images):  # writing may be slower than predicting
            writes.popleft().result()
        for row, (file, image) in enumerate(images.items()):
            height, width = image.shape[:2]
            made = [found[kind][row, :height, :width] for kind in kinds]
            version = versions.pop(file)
            arguments = results, names[file], file, image, made[0], version, *made[1:]
            writes.append(pool.submit(prediction_files.write, *arguments))
        finished(len(images))

    with (
        concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool,
        concurrent.futures.ThreadPoolExecutor(max(os.cpu_count() // 2, 1)) as compiler,
    ):
        programs = [
            compiler.submit(trained.program, model, shape, kinds, crf)
            for shape in [(bucket.rows, *bucket.frame) for bucket in plan]
        ]
        try:
            for bucket, program, batch, futures in _ahead(decoded(), 2):
                images = {}
                for file, future in zip(batch, futures, strict=True):
                    image = future.result()
                    if isinstance(image, UserError):
                        failed(file, image)
                        finished(1)
                    else:
                        images[file] = image
                if not images:
                    continue
                began = time.perf_counter()
                run = program.result()
                waited += time.perf_counter() - began
                launched.append(
                    (images, run(trained.stack([*images.values()], bucket)))
                )
                if len(launched) > 1:
                    collect()
            while launched:
                collect()
            for future in writes:
                future.result()
        finally:
            compiler.shutdown(wait=False, cancel_futures=True)
    return waited


def _ahead(items: Iterator, count: int) -> Iterator:
    """``items``, started ``count`` early."""
    first = list(itertools.islice(items, count))
    while first:
        first += itertools.islice(items, 1)
        yield first.pop(0)


def predict_large(
    model: trained.Trained,
    results: prediction_files.Results,
    name: str,
    file: str,
    version: list[int],
    read: windows.ReadWindow,
    size: tuple[int, int],
    max_pixels: int,
) -> None:
    """Segments one image in windows or tiles, whose rows go to disk as they come.

    Args:
      model: what predicts.
      results: where to write.
      name: of the results.
      file: of the image.
      version: of the file.
      read: its windows.
      size: (h, w) of it.
      max_pixels: of windows in one program.

    Raises:
      UserError: the method cannot work in parts, or results cannot be written.
    """
    classes = len(model.info.classes)
    dtype = predictor.label_type(classes)
    rows = trained.stream(model, read, size, max_pixels)
    probabilities = prediction_files.probability_rows(results, name, (*size, classes))
    bar = tqdm.tqdm(total=size[0], desc=name, unit="row", leave=False)
    with prediction_files.label_array(results, name, size, dtype) as label:
        with probabilities as add_probabilities, bar:
            for part in rows:
                label[bar.n : bar.n + len(part)] = part.argmax(-1)
                add_probabilities(part)
                bar.update(len(part))
        step = -(-max(size) // OVERLAY_SIDE)
        every = (slice(0, length, step) for length in size)
        image = read(*every)
        prediction_files.write(results, name, file, image, label, version, step=step)
