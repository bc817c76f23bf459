"""DeconvNet's two training stages (ICCV 2015, section 4.1): a source of object crops.

Stage 1 shows every object in the middle of a crop of its own, and everything else in it
is background. Stage 2 shows object proposals that overlap an object, with the labels of
all classes. Crops are resized to one size; the augmentation takes its own crops and
mirrors images of that. The authors' data layer decides what the paper leaves
open: boxes count pixels inclusively and may exceed the image, which continues black,
its labels void (window_seg_data_layer of their Caffe).
"""

import logging
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np
import tqdm

from segjax import proposals
from segjax.data.channel_groups import by_group
from segjax.data.images import resize_label
from segjax.data.layout import DataConfig
from segjax.data.source import Dataset, Example, Size, Source
from segjax.errors import UserError
from segjax.labels import VOID
from segjax.proposals import Settings, boxes, stored

STAGES = ("none", "stage1", "stage2")
"""Values of ``config.data.objects``."""
FACTOR = 1.2
"""Crops are so many times as wide and as high as the box of an object or a proposal."""
OVERLAP = 0.5
"""Least intersection over union of a proposal with the box of an object."""
BACKGROUND = "background"
"""The name of class 0 if it is no class of objects."""

_log = logging.getLogger(__name__)


class Crop(NamedTuple):
    """One example of an :class:`ObjectCrops`."""

    image: int
    """Index in the source of whole images."""
    box: tuple[int, int, int, int]
    """Enlarged, inclusive, perhaps beyond the image."""
    object: int
    """Its number in ``object_map``; in stage 2 that of the most overlapping one."""
    class_id: int
    """Of that object."""


class ObjectCrops:
    """Crops of a source of whole images, all of one size: see ``Source``."""

    def __init__(
        self, source: Source, crops: Sequence[Crop], *, side: int, background: bool
    ):
        """Wraps a source.

        Args:
          source: of whole images.
          crops: of its images.
          side: height and width of the resized crops, in pixels.
          background: whether all but the object itself is background (stage 1).
        """
        self.images = source
        self._crops, self._side, self._background = list(crops), side, background

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, index: int) -> Example:
        crop = self._crops[index]
        example = self.images[crop.image]
        label = example["label"]
        if self._background:
            others = (object_map(example) != crop.object) & (label != VOID)
            label = np.where(others, 0, label).astype(label.dtype)
        size = self._side, self._side
        box = np.array(crop.box)
        cropped: Example = {
            "image": _resize(boxes.cut(example["image"], box, 0), size),
            "label": resize_label(boxes.cut(label, box, VOID), size),
            "id": f"{example['id']}@{','.join(map(str, crop.box))}",
        }
        if "instance" in example:
            instance = boxes.cut(example["instance"], box, 0)
            cropped["instance"] = resize_label(instance, size)
        return cropped

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of every example."""
        return [(self._side, self._side)] * len(self)

    @property
    def identities(self) -> list[str]:
        """See ``Source``; with the boxes."""
        images = self.images.identities
        kind = "object" if self._background else "all"
        return [
            f"{images[crop.image]} {crop.box} {kind} {crop.object} {self._side}"
            for crop in self._crops
        ]

    def __repr__(self) -> str:
        return f"ObjectCrops({self.images!r}, {len(self)} crops)"


def _resize(image: np.ndarray, size: Size) -> np.ndarray:
    """Bilinear between half-pixel centers, as the authors resize crops."""
    h, w = size
    return by_group(
        lambda part: cv2.resize(part, (w, h), interpolation=cv2.INTER_LINEAR), image
    )


def object_map(example: Example) -> np.ndarray:
    """Which pixel shows which object, integers [H, W], 0 = none.

    The instance map if the example has one. Otherwise the connected parts (eight
    neighbors) of every class but class 0, numbered class by class.
    """
    if "instance" in example:
        return example["instance"]
    from scipy import ndimage  # takes 0.2 s, which no --help should wait for

    label = example["label"]
    found = np.zeros(label.shape, np.int32)
    count = 0
    for k in np.unique(label):
        if k not in (0, VOID):
            parts, number = ndimage.label(label == k, np.ones((3, 3)))
            found += np.where(parts > 0, parts + count, 0).astype(np.int32)
            count += number
    return found


class Object(NamedTuple):
    """An object in an image."""

    number: int
    box: tuple[int, int, int, int]
    class_id: int


def objects(example: Example, *, least: int, background: bool) -> list[Object]:
    """The objects of an image; the class of each is that of most of its pixels.

    Args:
      example: a whole image.
      least: objects whose box has a shorter side are left out.
      background: whether class 0 is no class of objects.
    """
    numbers, label = object_map(example), example["label"]
    found = []
    for number, box in boxes.tight(numbers).items():
        left, top, right, bottom = box
        inside = slice(top, bottom + 1), slice(left, right + 1)
        classes = label[inside][numbers[inside] == number]
        counts = np.bincount(classes, minlength=VOID + 1)[:VOID]
        k = int(counts.argmax())
        tall = min(right - left, bottom - top) + 1 >= least
        if counts[k] and tall and not (background and k == 0):
            found.append(Object(number, box, k))
    return found


def stage1(images: Sequence[Sequence[Object]]) -> list[Crop]:
    """A crop around every object, given the objects of every image."""
    return [
        Crop(i, _enlarged(found.box), found.number, found.class_id)
        for i, objects_of_image in enumerate(images)
        for found in objects_of_image
    ]


def stage2(
    images: Sequence[Sequence[Object]], proposed: Sequence[np.ndarray]
) -> list[Crop]:
    """A crop around every proposal that overlaps an object by ``OVERLAP`` or more."""
    crops = []
    for i, (found, own) in enumerate(zip(images, proposed, strict=True)):
        if not found or not len(own):
            continue
        overlaps = boxes.iou(own, np.array([one.box for one in found]))
        for box, row in zip(own, overlaps):
            best = found[int(row.argmax())]
            if row.max() >= OVERLAP:
                crops.append(Crop(i, _enlarged(box), best.number, best.class_id))
    return crops


def _enlarged(box: Iterable[int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = boxes.enlarge(np.array(box), FACTOR).tolist()
    return left, top, right, bottom


def balance(crops: Sequence[Crop], share: float) -> list[Crop]:
    """Repeats the crops of rare classes (the paper: "redundant examples").

    Args:
      crops: of all classes.
      share: every class that occurs gets at least this share of the crops of the most
        frequent class, all of its crops equally often; 0: as they are.
    """
    counts = np.bincount([crop.class_id for crop in crops], minlength=1)
    wanted = share * counts.max()
    times = np.ceil(wanted / np.maximum(counts, 1)).astype(int).clip(1)
    return [crop for crop in crops for _ in range(times[crop.class_id])]


def wrap(
    source: Source,
    info: Dataset,
    data: DataConfig,
    *,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
    threads: int = 4,
) -> Source:
    """The crops of ``data.objects``, or the source itself for "none".

    Reads all images once, with progress bars; proposals are kept in ``data.data_dir``.

    Args:
      source: of whole images.
      info: its data set.
      data: of the config: ``objects``, ``object_side``, ``object_least``,
        ``object_balance``, ``proposals``, ``edge_model``, ``data_dir``.
      process: see ``proposals.stored.collect``.
      workers: see ``proposals.stored.collect``.
      threads: that read.

    Raises:
      UserError: stage 1 of a data set whose class 0 is not "background", or there are
        no crops.
    """
    stage = data["objects"]
    if stage == "none":
        return source
    background = info.classes[0] == BACKGROUND
    if stage == "stage1" and not background:
        raise UserError(
            "--config.data.objects is 'stage1', where all but one object becomes "
            f"class 0, but class 0 of {info.name} is {info.classes[0]!r}; expected "
            f"'stage2', or a data set whose class 0 is called {BACKGROUND!r}"
        )
    if stage == "stage2":
        proposals.check(settings(data), info.channels)
    least = data["object_least"]
    with ThreadPoolExecutor(max(threads, 1)) as pool:
        numbers = range(len(source))
        read = pool.map(
            lambda i: objects(source[i], least=least, background=background), numbers
        )
        bar = tqdm.tqdm(
            read, "objects", len(source), unit="image", disable=process[0] > 0
        )
        images = list(bar)
    if stage == "stage1":
        crops = stage1(images)
    else:
        proposed = stored.collect(
            source,
            settings(data),
            stored.folder_of(data["data_dir"]),
            process=process,
            workers=workers,
            threads=threads,
        )
        crops = stage2(images, proposed)
    if not crops:
        what = "objects" if stage == "stage1" else "proposals that overlap an object"
        raise UserError(
            f"--config.data.objects is {stage!r}, but the {len(source)} images have no "
            f"{what} of --config.data.object_least={least} px; expected 'none', or "
            "labels that show objects"
        )
    crops = balance(crops, data["object_balance"])
    _log.info(_summary(crops, images, info))
    return ObjectCrops(
        source, crops, side=data["object_side"], background=stage == "stage1"
    )


def settings(data: DataConfig) -> Settings:
    """The settings of the proposals that a config trains on."""
    return Settings(method=data["proposals"], edge_model=data["edge_model"])


def _summary(
    crops: Sequence[Crop], images: Sequence[Sequence[Object]], info: Dataset
) -> str:
    counts = np.bincount([c.class_id for c in crops], minlength=len(info.classes))
    named = [f"{n} {name}" for name, n in zip(info.classes, counts) if n]
    return (
        f"{len(crops)} crops of {sum(map(len, images))} objects in {len(images)} "
        f"images: {', '.join(named)}"
    )
