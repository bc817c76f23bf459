"""The user's own data: a folder of images and a folder of masks.

::

    ROOT/images/STEM.{png,jpg,jpeg,tif,tiff,bmp,webp,gif,jp2,avif}
    ROOT/masks/STEM.png      ids in a palette or gray PNG, or the colors of classes.txt
    ROOT/classes.txt         optional: a name per line, or "name r g b"; line 1 is id 0
    ROOT/train.txt           optional lists of stems or file names;
    ROOT/val.txt             or validation.txt
    ROOT/test.txt

Everything is checked by ``scan`` before it is used: a file that does not belong, or a
value that is no class, is an error that names the file.
"""

import functools
import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segjax import tables
from segjax.data import folder_cache, folder_classes, folder_ranges
from segjax.data.folder_classes import UNKNOWN, Rule
from segjax.data.folder_files import Pair, find
from segjax.data.folder_layout import EXPECTED, LISTS, recognize
from segjax.data.images import WHOLE, ValueRange, decode_image, voc_palette
from segjax.data.masks import read_instances, read_mask
from segjax.data.source import Example
from segjax.errors import UserError
from segjax.files import find_folder
from segjax.labels import VOID

_LOOKED_AT = 8
"""Images of 16 bits whose values are looked at."""
_LARGE = 2**24
"""Images of more pixels take too long for that."""


class Scan(NamedTuple):
    """What ``scan`` found; arrays over classes have K entries."""

    root: str
    stems: tuple[str, ...]
    """Stems of the images that are used, sorted."""
    images: tuple[str, ...]
    masks: tuple[str, ...]
    instances: tuple[str, ...]
    """Instance maps; "" if none were asked for."""
    sizes: tuple[tuple[int, int], ...]
    """(H, W) of every image."""
    splits: dict[str, tuple[int, ...]]
    """Positions in ``stems`` by split: "train", "validation", perhaps "test"."""
    classes: tuple[str, ...]
    palette: np.ndarray
    """uint8 [K, 3]: the colors of the classes file, or those of PASCAL VOC."""
    channels: int
    """As asked for; otherwise 1 if every image is gray, and 3 if not."""
    value_range: ValueRange
    """As asked for, see ``images.decode_image``."""
    rule: Rule
    pixels: dict[str, np.ndarray]
    """Pixels of each class by split, int64 [K]."""
    void: dict[str, int]
    """Void pixels by split."""
    occurs: np.ndarray
    """Number of training images that hold each class, int64 [K]."""
    frequencies: np.ndarray
    """Shares of the training pixels that are not void, float64 [K]."""
    weights: np.ndarray
    """Median-frequency class weights of the training split, see ``median_weights``."""
    notes: tuple[str, ...]
    """Notes for the user, such as files that are not used."""


def scan(
    root: str,
    classes: str = "",
    *,
    void_values: Sequence[int] = (VOID,),
    data_dir: str = "",
    channels: int = 0,
    value_range: ValueRange = WHOLE,
    instances: bool = False,
) -> Scan:
    """Checks all files and counts the pixels of every class.

    All masks are decoded, in threads; of images only headers are read, but for a few
    of 16 bits, whose values are looked at.  Within a process, a second scan of
    unchanged files returns the first result.

    Args:
      root: the folder described above.
      classes: path of a classes file; "" takes ``ROOT/classes.txt`` or the
        ``ROOT/labelmap.txt`` of CVAT if there is one, and otherwise numbers the
        classes up to the largest mask value.
      void_values: raw values of palette and gray masks that mean void.
      data_dir: where counts are kept, so that unchanged masks need not be decoded
        again by the next program; "" keeps none.
      channels: of the images; 0: 1 if all are gray, otherwise 3.
      value_range: values of the images that become 0 and 255.
      instances: whether every image needs an instance map.

    Raises:
      UserError: missing or superfluous files, unequal sizes, undecodable files, images
        of other channels, mask values that are no class, fewer than 2 or more than 255
        classes.
    """
    folder = find_folder("--config.data.root", root, EXPECTED)
    for value in void_values:
        if not isinstance(value, int) or not 0 <= value < 2**16:
            raise UserError(
                f"--config.data.void_values: found {value!r}, expected integers "
                "0..65535"
            )
    source = Path(os.path.expanduser(classes)) if classes else folder / "classes.txt"
    if classes and not source.is_file():
        raise UserError(
            f"--config.data.classes: {classes} is not a file; expected one class name "
            "per line"
        )
    if not source.is_file() and (folder / "labelmap.txt").is_file():
        source = folder / "labelmap.txt"
    files = find(folder, instances)
    where = recognize(folder).lists
    lists = [where / name for names in LISTS.values() for name in names]
    used = [path for pair in files.pairs for path in pair.paths]
    return _scan(
        folder,
        source,
        void_values=tuple(void_values),
        data_dir=data_dir,
        reading=(channels, tuple(value_range), instances),
        stamp=_stamp([*used, *lists, source]) + "".join(files.notes),
    )


def _stamp(paths: Sequence[str | Path]) -> str:
    """Changes when a file changes, appears or disappears."""
    digest = hashlib.sha256()
    for path in paths:
        if os.path.exists(path):
            stat = os.stat(path)
            line = f"{stat.st_size}\0{stat.st_mtime_ns}\n".encode()
            digest.update(os.fsencode(path) + b"\0" + line)
    return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def _scan(
    folder: Path,
    source: Path,
    *,
    void_values: tuple[int, ...],
    data_dir: str,
    reading: tuple[int, ValueRange, bool],
    stamp: str,
) -> Scan:
    del stamp  # part of the key only
    channels, value_range, instances = reading
    pairs, splits, notes = find(folder, instances)
    stems, images, masks, maps = zip(*pairs)
    examined = _examine(pairs, data_dir, channels)
    channels = channels or (1 if all(each.gray for each in examined) else 3)
    values = [each.values for each in examined]
    if source.is_file():
        classes = folder_classes.read_classes(source)
    else:
        classes = folder_classes.number_classes(
            folder, masks, values=values, void_values=void_values
        )
    rule = folder_classes.make_rule(classes, void_values)
    ids = [folder_classes.to_ids(each, rule) for each in values]
    for mask, each, i in zip(masks, values, ids):
        if (i == UNKNOWN).any():
            raise folder_classes.no_class(
                mask,
                each,
                position=int(np.argmax(i == UNKNOWN)),
                classes=classes,
                source=source,
                void_values=void_values,
            )

    k = len(classes.names)
    table = np.zeros((len(stems), VOID + 1), np.int64)
    for row, i, pair in zip(table, ids, examined):
        np.add.at(row, i, pair.counts)
    train = table[list(splits["train"])]
    pixels = {name: table[list(at), :k].sum(0) for name, at in splits.items()}
    notes += _absent(folder, classes, pixels=pixels, source=source)
    deep = [
        path
        for path, each in zip(images, examined)
        if each.image_bits == 16 and math.prod(each.size) <= _LARGE
    ]
    if deep:
        damaged: list[str] = []  # named when they are read
        held = folder_ranges.observe(deep, channels, limit=_LOOKED_AT, bad=damaged)
        if held is not None and (note := folder_ranges.advice(held, value_range)):
            notes += (note,)
    return Scan(
        root=str(folder),
        stems=stems,
        images=images,
        masks=masks,
        instances=maps,
        sizes=tuple(each.size for each in examined),
        splits=splits,
        classes=classes.names,
        palette=classes.colors if len(classes.colors) else voc_palette(k),
        channels=channels,
        value_range=value_range,
        rule=rule,
        pixels=pixels,
        void={name: int(table[list(at), VOID].sum()) for name, at in splits.items()},
        occurs=(train[:, :k] > 0).sum(0),
        frequencies=pixels["train"] / max(pixels["train"].sum(), 1),
        weights=median_weights(train[:, :k], train.sum(1)),
        notes=notes,
    )


def _absent(
    folder: Path,
    classes: folder_classes.Classes,
    *,
    pixels: dict[str, np.ndarray],
    source: Path,
) -> tuple[str, ...]:
    """A note of the classes without training pixels; all but one are an error."""
    absent = [name for name, n in zip(classes.names, pixels["train"]) if not n]
    if len(absent) < len(classes.names) - 1:
        names = ", ".join(absent[:10]) + ", ..." * (len(absent) > 10)
        return (f"no training pixel is of {names}",) if absent else ()
    present = set(classes.names) - set(absent)
    raise UserError(
        f"folder: the training masks of {folder} hold no class but "
        f"{next(iter(present), 'void')}; expected at least 2 of the "
        f"{len(classes.names)} classes: list other images in train.txt; if 255 is a "
        f"class and not void, give {source} the gray levels: 'background 0 0 0', "
        "'foreground 255 255 255'"
    )


def _examine(
    pairs: Sequence[Pair], data_dir: str, channels: int
) -> list[folder_cache.Examined]:
    """Examines all pairs, or takes what was found in them before."""
    paths = [os.path.abspath(path) for pair in pairs for path in pair.paths]
    key = f"{_stamp(paths)}-{channels}" if channels else _stamp(paths)
    kept = folder_cache.read(data_dir, key, len(pairs))
    if kept is not None:
        return kept
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        repeated = itertools.repeat(channels)
        examined = list(pool.map(folder_cache.examine, pairs, repeated))
    folder_cache.write(data_dir, key, examined)
    return examined


def median_weights(pixels: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Median frequency balancing (SegNet, PAMI 2017, section 4).

    The frequency of a class is the number of its pixels over the number of all pixels,
    void included, in the images that hold it; its weight is the median of all
    frequencies over its own.

    Args:
      pixels: of each class in each image, integers [N, K].
      totals: of each image, height times width, integers [N].

    Returns:
      float64 [K]; 0 for a class without pixels, which takes no part in the median.
    """
    own = pixels.sum(0)
    around = ((pixels > 0) * totals[:, None]).sum(0)
    present = own > 0
    frequencies = own[present] / around[present]
    weights = np.zeros(pixels.shape[1])
    if present.any():
        weights[present] = np.median(frequencies) / frequencies
    return weights


def report(scanned: Scan) -> str:
    """The text a program prints before training: sizes, class shares, weights."""
    counts = {name: len(at) for name, at in scanned.splits.items()}
    number = f"{counts['train']} training and {counts['validation']} validation images"
    if "test" in counts:
        number += f", {counts['test']} for testing"
    low, high = (tuple(f(side) for side in zip(*scanned.sizes)) for f in (min, max))
    size = f"{low[0]}x{low[1]}"
    if low != high:
        size += f" to {high[0]}x{high[1]}"
    shares = {
        name: count / max(count.sum(), 1) for name, count in scanned.pixels.items()
    }
    labeled = int(scanned.pixels["train"].sum())
    void = scanned.void["train"] / max(labeled + scanned.void["train"], 1)
    rows = [("id", "class", "train", "validation", "images", "weight")]
    rows += [
        (
            str(k),
            name,
            f"{shares['train'][k]:.5f}",
            f"{shares['validation'][k]:.5f}",
            str(scanned.occurs[k]),
            f"{scanned.weights[k]:.4f}",
        )
        for k, name in enumerate(scanned.classes)
    ]
    lines = [
        f"{scanned.root}: {number}, {size} (height x width), "
        + {1: "gray", 3: "RGB"}.get(scanned.channels, f"{scanned.channels} channels"),
        f"{len(scanned.classes)} classes, {labeled} labeled training pixels, "
        f"{void:.2%} of all void",
        tables.text_table(rows),
    ]
    weights = ", ".join(f"{weight:.4g}" for weight in scanned.weights)
    lines += [f"note: {note}" for note in scanned.notes]
    lines.append(f"median-frequency weights: ({weights})")
    return "\n".join(lines)


class FolderSource:
    """One split of a scanned folder: see ``Example``."""

    def __init__(self, scanned: Scan, split: str):
        at = scanned.splits[split]
        self._root, self._split = scanned.root, split
        self._files = [
            Pair(
                scanned.stems[i],
                scanned.images[i],
                scanned.masks[i],
                scanned.instances[i],
            )
            for i in at
        ]
        self.sizes = [scanned.sizes[i] for i in at]
        self._channels, self._rule = scanned.channels, scanned.rule
        self._value_range = scanned.value_range

    def __len__(self) -> int:
        return len(self._files)

    @property
    def identities(self) -> list[str]:
        """Stem, size, and the bytes that the files of image and masks take."""
        return [
            " ".join(
                [f"{pair.stem} {size}", *map(str, map(os.path.getsize, pair.paths))]
            )
            for pair, size in zip(self._files, self.sizes)
        ]

    def __getitem__(self, index: int) -> Example:
        stem, image_path, mask_path, instance_path = self._files[index]
        label = folder_classes.label_of(read_mask(mask_path), self._rule)
        image = decode_image(image_path, self._channels, value_range=self._value_range)
        if label.min() == UNKNOWN or label.shape != image.shape[:2]:
            raise _changed(mask_path, "mask")
        example: Example = {
            "image": image,
            "label": label.astype(np.uint8),
            "id": stem,
        }
        if instance_path:
            example["instance"] = read_instances(instance_path)
            if example["instance"].shape != label.shape:
                raise _changed(instance_path, "instance map")
        return example

    def __repr__(self) -> str:
        return f"FolderSource({self._root!r}, {self._split!r}, {len(self)} images)"


def _changed(path: str, what: str) -> UserError:
    return UserError(
        f"{path}: not the {what} that was checked at the start (a value or the size "
        "differs); leave the files alone while a program reads them"
    )
