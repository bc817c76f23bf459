"""The loop over images of any size: batches, large images in parts, faults by name.

:func:`plan` reads the headers and decides which images share a batch; :func:`run`
predicts them, while the next ones are decoded and further shapes compile.
"""

from __future__ import annotations

import collections
import concurrent.futures
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from segjax.data import batching, images, pipeline, windows
from segjax.errors import UserError
from segjax.inference import large
from segjax.inference.predictors import label_type
from segjax.inference.proposals import stack_regions
from segjax.inference.resizing import resized_rows
from segjax.inference.stored import Stored, file_version

if TYPE_CHECKING:  # the module trained imports this one
    import jax

    from segjax.inference.trained import Segmenter

MAX_PIXELS = 2**22
"""Maximum pixels per image, and per device and batch; larger images are tiled."""
CPU_BATCH_PIXELS = 2**17
"""On a CPU, maximum pixels of a batch of several images: its maps have to stay in the
cache, and a second batch keeps the other cores busy."""
MAX_AT_ONCE = 8
"""Batches that a CPU computes at once, at most: their maps need memory."""

Image = np.ndarray | str | os.PathLike | Stored
Size = tuple[int, int]


class Plan(NamedTuple):
    """How a collection is predicted; integers are indices of its images."""

    images: list[Image]
    sizes: dict[int, Size]
    """(height, width) of every readable image."""
    errors: dict[int, UserError]
    """The error of every image that cannot be read."""
    groups: list[batching.BatchGroup]
    """Batches of one compiled shape each."""
    large: list[int]
    """Images of more than ``max_pixels``, which are predicted in windows or tiles."""
    max_pixels: float


class Prediction(NamedTuple):
    """The result for one image."""

    image_index: int
    size: Size
    label: np.ndarray | None
    """uint8 or uint16 [H, W]; None if the image comes in parts."""
    probabilities: np.ndarray | None
    """float16 [H, W, K] if asked for."""
    parts: Iterator[np.ndarray] | None
    """For a large image, instead: probabilities float32 [h, W, K], from the top."""
    read: windows.ReadWindow
    """The pixels, uint8 [h, w, C], of slices of rows and columns."""
    version: tuple[int, ...]
    """``file_version`` before the image was read."""
    waited: float
    """Seconds spent waiting for the executable of its batch to compile."""


class Failure(NamedTuple):
    """An image that cannot be predicted."""

    image_index: int
    error: UserError


class _Decoded(NamedTuple):
    image: np.ndarray  # at its own size
    input: np.ndarray  # what the network gets
    regions: np.ndarray | None  # int32 [1 + P, 4], if it gets them, too
    version: tuple[int, ...]


def plan(
    segmenter: Segmenter,
    images: Sequence[Image],
    *,
    padding: float = batching.PADDING,
    max_pixels: float = MAX_PIXELS,
    finished: Sequence[Size] = (),
) -> Plan:
    """Reads the headers of all images and plans their batches.

    Args:
      segmenter: what will predict them.
      images: paths, or arrays of 8 or 16 bit [H, W], [H, W, 1] or [H, W, 3].
      padding: see ``batching.plan``.
      max_pixels: maximum pixels per image, and per device and batch; larger images are
        predicted in windows or tiles.
      finished: sizes of images of the same collection that are done already; padded
        shapes are chosen for all, so that the result of an image does not depend on
        which ones are left.

    Raises:
      UserError: ``padding`` or ``max_pixels`` is out of range.
    """
    check_limits(padding, max_pixels)
    sizes, errors = {}, {}
    for index, image in enumerate(images):
        try:
            sizes[index] = _size(image, segmenter, index)
        except UserError as error:
            errors[index] = error
    inputs = {index: segmenter.input_size(size) for index, size in sizes.items()}
    # Images resized to one size share a compiled shape, whatever that size is.
    limit = math.inf if any(segmenter.resize) else max_pixels
    small = [i for i, (h, w) in inputs.items() if h * w <= limit]
    others = [segmenter.input_size(size) for size in finished]
    groups = [
        group._replace(batches=[[small[i] for i in batch] for batch in group.batches])
        for group in batching.plan(
            [inputs[index] for index in small],
            segmenter.batch_size,
            padding=padding,
            devices=segmenter.mesh.size,
            max_pixels=max_pixels,
            batch_pixels=CPU_BATCH_PIXELS if _at_once(segmenter) > 1 else math.inf,
            others=[(h, w) for h, w in others if h * w <= limit],
        )
    ]
    in_parts = sorted(inputs.keys() - set(small))
    return Plan(list(images), sizes, errors, groups, in_parts, max_pixels)


def check_limits(padding: float, max_pixels: float) -> None:
    """Raises UserError unless both numbers are in range."""
    if not 0 <= padding < math.inf:
        raise UserError(f"--padding={padding}: expected a number of 0 or more")
    if not max_pixels >= 1:
        raise UserError(f"--max_pixels={max_pixels}: expected 1 or more")


def run(
    segmenter: Segmenter,
    plan: Plan,
    *,
    outputs: Sequence[str] = ("labels",),
    threads: int = 4,
) -> Iterator[Prediction | Failure]:
    """Predicts the images of a plan, those with errors left out.

    Two batches are decoded ahead and one is on the devices while the caller handles
    the results of the one before it; a CPU computes as many as it has cores.
    Executables compile in threads of their own.
    Take ``parts`` of a prediction before asking for the next one.

    Args:
      segmenter: as for ``plan``.
      plan: of this collection.
      outputs: "labels", or "labels" and "probabilities".
      threads: that decode, and resize results.
    """
    # Results go back to the size of the image by way of its scores.
    resized = any(segmenter.input_size(size) != size for size in plan.sizes.values())
    kinds = ("scores",) if resized else tuple(outputs)
    launched: collections.deque = collections.deque()
    at_once = _at_once(segmenter)
    with (
        concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool,
        concurrent.futures.ThreadPoolExecutor(_compile_threads()) as compiler,
        concurrent.futures.ThreadPoolExecutor(at_once) as runner,
    ):
        compiling = [
            compiler.submit(
                segmenter.executable,
                (group.batch_size, *group.padded_shape),
                outputs=kinds,
            )
            for group in plan.groups
        ]

        def decoding() -> Iterator[tuple]:
            for group, executable in zip(plan.groups, compiling):
                for indices in group.batches:
                    futures = [
                        pool.submit(_decode, segmenter, plan, index, group.padded_shape)
                        for index in indices
                    ]
                    yield group, executable, indices, futures

        def launch(compiled: Callable, *arrays, **more) -> Callable[[], dict]:
            """Starts a batch; the function waits for its results."""
            if at_once > 1:
                return runner.submit(lambda: _fetched(compiled(*arrays, **more))).result
            return functools.partial(_fetched, compiled(*arrays, **more))

        def results() -> Iterator[Prediction]:
            """Waits for the oldest batch on the devices."""
            decoded, fetch, waited = launched.popleft()
            arrays = fetch()
            futures = []
            for row, (index, one) in enumerate(decoded.items()):
                height, width = one.input.shape[:2]
                own = {k: array[row, :height, :width] for k, array in arrays.items()}
                seconds = 0.0 if row else waited
                futures.append(
                    pool.submit(
                        _finish,
                        one,
                        own,
                        index=index,
                        plan=plan,
                        outputs=outputs,
                        waited=seconds,
                    )
                )
            for future in futures:
                yield future.result()

        try:
            for group, executable, indices, futures in _ahead(decoding(), 1 + at_once):
                decoded = {}
                for index, future in zip(indices, futures, strict=True):
                    one = future.result()
                    if isinstance(one, UserError):
                        yield Failure(index, one)
                    else:
                        decoded[index] = one
                if not decoded:
                    continue
                began = time.perf_counter()
                compiled = executable.result()
                waited = time.perf_counter() - began
                arrays = [stack([one.input for one in decoded.values()], group)]
                if segmenter.search:
                    found = [one.regions for one in decoded.values()]
                    arrays.append(stack_regions(found, group.batch_size))
                more = {}
                if segmenter.crf:
                    sizes = [one.input.shape[:2] for one in decoded.values()]
                    missing = group.batch_size - len(sizes)
                    more["sizes"] = sizes + missing * [(0, 0)]
                launched.append((decoded, launch(compiled, *arrays, **more), waited))
                if len(launched) > at_once:
                    yield from results()
            while launched:
                yield from results()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            runner.shutdown(wait=False, cancel_futures=True)
            compiler.shutdown(wait=False, cancel_futures=True)
    for index in plan.large:
        yield _in_parts(segmenter, plan, index)


def stack(inputs: Sequence[np.ndarray], group: batching.BatchGroup) -> np.ndarray:
    """A batch of one compiled shape: images mirrored to it, then zeros.

    Args:
      inputs: uint8 [h, w, C], at most as many and as large as the group allows.
      group: its padded shape and batch size.

    Returns:
      uint8 [N, H, W, C].
    """
    channels = inputs[0].shape[2]
    batch = np.zeros((group.batch_size, *group.padded_shape, channels), np.uint8)
    for row, image in zip(batch, inputs):
        row[:] = pipeline.mirror_to(image, group.padded_shape)
    return batch


def whole_label(prediction: Prediction, classes: int) -> np.ndarray:
    """The label map [H, W] of a prediction, also of one in parts."""
    if prediction.label is not None:
        return prediction.label
    if prediction.parts is None:
        raise ValueError("the prediction has neither labels nor parts")
    label: np.ndarray = np.empty(prediction.size, label_type(classes))
    top = 0
    for rows in prediction.parts:
        label[top : top + len(rows)] = rows.argmax(-1)
        top += len(rows)
    return label


def _size(image: Image, segmenter: Segmenter, index: int) -> Size:
    if isinstance(image, Stored):
        return image.size
    channels = segmenter.info.channels
    if isinstance(image, np.ndarray):
        images.to_pixels(image[:1], channels, f"images[{index}]")
        return image.shape[:2]
    return images.image_header(image, channels)[0]


def _at_once(segmenter: Segmenter) -> int:
    """How many batches are computed at the same time.

    JAX computes one after the other, and many operations do not use all cores of a CPU.
    """
    device = segmenter.mesh.devices.flat[0]
    if segmenter.mesh.size > 1 or device.platform != "cpu":
        return 1
    return min(os.cpu_count() or 1, MAX_AT_ONCE)


def _fetched(arrays: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Arrays of the devices, as soon as they are computed."""
    return {kind: np.asarray(array) for kind, array in arrays.items()}


def _compile_threads() -> int:
    return max((os.cpu_count() or 1) // 2, 1)


def _decode(
    segmenter: Segmenter, plan: Plan, index: int, padded: Size
) -> _Decoded | UserError:
    source, channels = plan.images[index], segmenter.info.channels
    version, value_range = file_version(source), segmenter.value_range
    try:
        if isinstance(source, Stored):
            image = source.read()
        elif isinstance(source, np.ndarray):
            image = images.to_pixels(
                source, channels, f"images[{index}]", value_range=value_range
            )
        else:
            image = images.decode_image(source, channels, value_range=value_range)
        size = image.shape[0], image.shape[1]
        if any(segmenter.resize):
            resized = size != segmenter.resize
            scaled = images.resize_image(image, segmenter.resize) if resized else image
            return _Decoded(image, scaled, segmenter.regions_of(scaled), version)
    except UserError as error:
        return error
    except MemoryError:
        return UserError(f"{source}: there is not enough memory to decode it")
    if size[0] > padded[0] or size[1] > padded[1]:
        return UserError(
            f"{source}: holds {size[0]}x{size[1]} pixels, its header said less: it is "
            "damaged or has changed meanwhile; replace or remove it"
        )
    return _Decoded(image, image, segmenter.regions_of(image), version)


def _finish(
    decoded: _Decoded,
    arrays: dict[str, np.ndarray],
    *,
    index: int,
    plan: Plan,
    outputs: Sequence[str],
    waited: float,
) -> Prediction:
    """The prediction at the size of the image, from that of its input."""
    image = decoded.image
    height, width, channels = image.shape
    label, probabilities, parts = (
        arrays.get("labels"),
        arrays.get("probabilities"),
        None,
    )
    if "scores" in arrays:
        parts = resized_rows(arrays["scores"], (height, width))
        if height * width <= plan.max_pixels:
            rows, parts = list(parts), None
            dtype = label_type(arrays["scores"].shape[-1])
            label = np.concatenate([part.argmax(-1) for part in rows]).astype(dtype)
            if "probabilities" in outputs:
                probabilities = np.concatenate(rows).astype(np.float16)
    elif label is not None:
        label = label.copy()  # not to hold the whole batch
    return Prediction(
        image_index=index,
        size=(height, width),
        label=label,
        probabilities=probabilities,
        parts=parts,
        read=windows.array_windows(image, channels),
        version=decoded.version,
        waited=waited,
    )


def _in_parts(segmenter: Segmenter, plan: Plan, index: int) -> Prediction | Failure:
    """A large image; it is opened here and predicted while its parts are taken."""
    source, size = plan.images[index], plan.sizes[index]
    version = file_version(source)
    try:
        # Says what cannot be predicted in parts before the file is read.
        large.layout(segmenter.models, segmenter.options, size)
        if segmenter.crf:
            raise UserError(
                "a CRF needs the whole image: raise --max_pixels above its "
                f"{math.prod(size)} pixels, or leave --crf out"
            )
        channels, value_range = segmenter.info.channels, segmenter.value_range
        if isinstance(source, Stored):
            read = windows.array_windows(source.read(), channels)
        elif isinstance(source, np.ndarray):
            read = windows.array_windows(source, channels, value_range=value_range)
        else:
            size, read = windows.open_windows(source, channels, value_range=value_range)
        parts = segmenter.stream(read, size, max_pixels=plan.max_pixels)
    except UserError as error:
        return Failure(index, error)
    except MemoryError:
        text = f"{source}: there is not enough memory to decode it"
        return Failure(index, UserError(text))
    return Prediction(
        image_index=index,
        size=size,
        label=None,
        probabilities=None,
        parts=parts,
        read=read,
        version=version,
        waited=0.0,
    )


def _ahead(items: Iterator, count: int) -> Iterator:
    """``items``, started ``count`` early."""
    first = list(itertools.islice(items, count))
    while first:
        first += itertools.islice(items, 1)
        yield first.pop(0)
