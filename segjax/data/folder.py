"""The user's own data: a folder of images and a folder of masks.

::

    ROOT/images/STEM.{png,jpg,jpeg,tif,tiff,bmp}
    ROOT/masks/STEM.png      ids in a palette or gray PNG, or the colors of classes.txt
    ROOT/classes.txt         optional: a name per line, or "name r g b"; line 1 is id 0
    ROOT/train.txt           optional lists of stems or file names;
    ROOT/val.txt             or validation.txt

Everything is checked by ``scan`` before it is used: a file that does not belong, or a
value that is no class, is an error that names the file.
"""

import functools
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segjax.data.images import (
    VOID,
    decode_image,
    decode_mask,
    image_header,
    voc_palette,
)
from segjax.data.listing import IMAGE_SUFFIXES, split_folder
from segjax.data.source import Example
from segjax.errors import UserError

LAYOUT = "ROOT/images/STEM.png (or jpg, tif, bmp) and ROOT/masks/STEM.png"
VALIDATION_SHARE = 0.2
_UNKNOWN = -1


class Classes(NamedTuple):
    """A classes file."""

    names: tuple[str, ...]
    colors: np.ndarray
    """uint8 [K, 3], or [0, 3] without colors."""
    void_line: bool
    """Whether a last line ``void`` makes id K void."""
    void_color: tuple[int, ...]
    """The color of that line, or ()."""


class Rule(NamedTuple):
    """How raw mask values become train ids; -1 where a value means nothing."""

    index: np.ndarray
    """Id of each palette index, int16 [65536]."""
    gray: np.ndarray
    """Id of each gray value, int16 [65536]."""
    codes: np.ndarray
    """Known colors r * 65536 + g * 256 + b, ascending, int32 [M]."""
    code_ids: np.ndarray
    """Their ids, int16 [M]."""


class Scan(NamedTuple):
    """What ``scan`` found; arrays over classes have K entries."""

    root: str
    stems: tuple[str, ...]
    images: tuple[str, ...]
    masks: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """(H, W) of every image."""
    splits: dict[str, tuple[int, ...]]
    """Positions in ``stems`` by split: "train", "validation"."""
    classes: tuple[str, ...]
    palette: np.ndarray
    """uint8 [K, 3]: the colors of the classes file, or those of PASCAL VOC."""
    channels: int
    """1 if every image is gray, otherwise 3."""
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


def scan(root: str, classes: str = "", void_values: Sequence[int] = (VOID,)) -> Scan:
    """Checks all files and counts the pixels of every class.

    All masks are decoded, in threads; of images only headers are read.  Within a
    process, a second scan of unchanged files returns the first result.

    Args:
      root: the folder described above.
      classes: path of a classes file; "" takes ``ROOT/classes.txt`` if it exists, and
        otherwise numbers the classes up to the largest mask value.
      void_values: raw values of palette and gray masks that mean void.

    Raises:
      UserError: missing or superfluous files, unequal sizes, undecodable files, mask
        values that are no class, fewer than 2 or more than 255 classes.
    """
    folder = Path(root).expanduser()
    if not root or not folder.is_dir():
        found = f"{root} is not a folder" if root else "data.root is empty"
        raise UserError(f"folder: {found}; expected {LAYOUT}")
    for value in void_values:
        if not isinstance(value, int) or not 0 <= value < 2**16:
            raise UserError(
                f"data.void_values: found {value!r}, expected integers 0..65535"
            )
    pairs = _pairs(folder)
    classes_file = Path(classes).expanduser() if classes else folder / "classes.txt"
    if classes and not classes_file.is_file():
        raise UserError(
            f"data.classes: {classes} is not a file; expected one class name per line"
        )
    files = [path for pair in pairs for path in pair[1:]]
    files += [str(folder / name) for name in ("train.txt", "val.txt", "validation.txt")]
    files.append(str(classes_file))
    return _scan(folder, pairs, classes_file, tuple(void_values), _stamp(files))


def _stamp(files: Sequence[str]) -> str:
    """Changes when a file changes, appears or disappears."""
    digest = hashlib.sha256()
    for path in files:
        if os.path.exists(path):
            stat = os.stat(path)
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=4)
def _scan(
    folder: Path,
    pairs: tuple[tuple[str, str, str], ...],
    classes_file: Path,
    void_values: tuple[int, ...],
    stamp: str,
) -> Scan:
    del stamp  # part of the key only
    stems, images, masks = zip(*pairs)
    splits = _splits(folder, pairs)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        found = list(pool.map(_examine, images, masks))
    sizes, grays, kinds, values, counts = zip(*found)
    if classes_file.is_file():
        given = read_classes(classes_file)
    else:
        given = _number_classes(folder, masks, kinds, values, void_values)
    rule = _rule(given, void_values)
    ids = [_to_ids(v, kind, rule) for v, kind in zip(values, kinds)]
    for mask, kind, v, i in zip(masks, kinds, values, ids):
        if (i == _UNKNOWN).any():
            value = int(v[i == _UNKNOWN][0])
            raise _no_class(mask, kind, value, given, classes_file, void_values)

    k = len(given.names)
    table = np.zeros((len(stems), VOID + 1), np.int64)
    for row, i, c in zip(table, ids, counts):
        np.add.at(row, i, c)
    train = table[list(splits["train"])]
    pixels = {name: table[list(at), :k].sum(0) for name, at in splits.items()}
    return Scan(
        root=str(folder),
        stems=stems,
        images=images,
        masks=masks,
        sizes=sizes,
        splits=splits,
        classes=given.names,
        palette=given.colors if len(given.colors) else voc_palette(k),
        channels=1 if all(grays) else 3,
        rule=rule,
        pixels=pixels,
        void={name: int(table[list(at), VOID].sum()) for name, at in splits.items()},
        occurs=(train[:, :k] > 0).sum(0),
        frequencies=pixels["train"] / max(pixels["train"].sum(), 1),
        weights=median_weights(train[:, :k], train.sum(1)),
    )


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


def report(found: Scan) -> str:
    """The text a program prints before training: sizes, class shares, weights."""
    train, validation = found.splits["train"], found.splits["validation"]
    low, high = (tuple(f(side) for side in zip(*found.sizes)) for f in (min, max))
    size = f"{low[0]}x{low[1]}"
    if low != high:
        size += f" to {high[0]}x{high[1]}"
    shares = {name: count / max(count.sum(), 1) for name, count in found.pixels.items()}
    labeled = int(found.pixels["train"].sum())
    void = found.void["train"] / max(labeled + found.void["train"], 1)
    width = max(len(name) for name in (*found.classes, "class"))
    lines = [
        f"{found.root}: {len(train)} training and {len(validation)} validation images, "
        f"{size} (height x width), {'gray' if found.channels == 1 else 'RGB'}",
        f"{len(found.classes)} classes, {labeled} labeled training pixels, "
        f"{void:.2%} of all void",
        f"{'id':>3}  {'class':{width}}  {'train':>8}  {'validation':>10}  "
        f"{'images':>6}  {'weight':>8}",
    ]
    for k, name in enumerate(found.classes):
        lines.append(
            f"{k:3d}  {name:{width}}  {shares['train'][k]:8.5f}  "
            f"{shares['validation'][k]:10.5f}  {found.occurs[k]:6d}  "
            f"{found.weights[k]:8.4f}"
        )
    weights = ", ".join(f"{weight:.4g}" for weight in found.weights)
    lines.append(f"median-frequency weights: ({weights})")
    return "\n".join(lines)


class FolderSource:
    """One split of a scanned folder: ``{"image", "label", "id"}`` by position."""

    def __init__(self, found: Scan, split: str):
        at = found.splits[split]
        self._root, self._split = found.root, split
        self._files = [(found.stems[i], found.images[i], found.masks[i]) for i in at]
        self.sizes = [found.sizes[i] for i in at]
        self._channels, self._rule = found.channels, found.rule

    def __len__(self) -> int:
        return len(self._files)

    @property
    def identities(self) -> list[str]:
        """Stem, size, and the bytes that the files of image and mask take."""
        return [
            f"{stem} {size} {os.path.getsize(image)} {os.path.getsize(mask)}"
            for (stem, image, mask), size in zip(self._files, self.sizes)
        ]

    def __getitem__(self, index: int) -> Example:
        stem, image_path, mask_path = self._files[index]
        values, kind = decode_mask(mask_path)
        label = _to_ids(_codes(values, kind), kind, self._rule)
        image = decode_image(image_path, self._channels)
        if label.min() == _UNKNOWN or label.shape != image.shape[:2]:
            raise UserError(
                f"{mask_path}: not the mask that was checked at the start (a value or "
                "the size differs); leave the files alone while a program reads them"
            )
        return {"image": image, "label": label.astype(np.uint8), "id": stem}

    def __repr__(self) -> str:
        return f"FolderSource({self._root!r}, {self._split!r}, {len(self)} images)"


def _pairs(folder: Path) -> tuple[tuple[str, str, str], ...]:
    """(stem, image, mask), sorted by stem."""
    for name in ("images", "masks"):
        if not (folder / name).is_dir():
            raise UserError(f"folder: {folder / name} is missing; expected {LAYOUT}")
    images: dict[str, str] = {}
    for name in split_folder(folder / "images")[0]:
        stem = os.path.splitext(name)[0]
        if stem in images:
            raise UserError(
                f"folder: {folder / 'images'} holds both {images[stem]} and {name}; "
                "both belong to one mask: remove one"
            )
        images[stem] = name
    masks = {
        os.path.splitext(name)[0]: name
        for name in split_folder(folder / "masks")[0]
        if name.lower().endswith(".png")
    }
    if not images:
        raise UserError(f"folder: {folder / 'images'} holds no images")
    alone = sorted(images.keys() - masks.keys())
    if alone:
        raise UserError(
            f"folder: {len(alone)} of {len(images)} images have no mask, first "
            f"images/{images[alone[0]]}; expected {folder / 'masks' / alone[0]}.png"
        )
    alone = sorted(masks.keys() - images.keys())
    if alone:
        raise UserError(
            f"folder: {len(alone)} of {len(masks)} masks have no image, first "
            f"masks/{masks[alone[0]]}; expected {folder / 'images' / alone[0]}.png (or "
            "jpg, tif, bmp), or remove the mask"
        )
    return tuple(
        (
            stem,
            str(folder / "images" / images[stem]),
            str(folder / "masks" / masks[stem]),
        )
        for stem in sorted(images)
    )


def _splits(
    folder: Path, pairs: tuple[tuple[str, str, str], ...]
) -> dict[str, tuple[int, ...]]:
    """Lists if there are any; with only one of them the rest is the other split.

    Without lists, an image is for validation if the hash of its stem falls into the
    lowest fifth (at least the one with the lowest hash): adding images moves none of
    the others.
    """
    lists = {"train": folder / "train.txt", "validation": folder / "validation.txt"}
    short = folder / "val.txt"
    if short.is_file():
        if lists["validation"].is_file():
            raise UserError(
                f"folder: {folder} holds val.txt and validation.txt; keep one"
            )
        lists["validation"] = short
    splits = {
        name: _listed(path, pairs) for name, path in lists.items() if path.is_file()
    }
    everything = range(len(pairs))
    if len(splits) == 2:
        both = sorted(set(splits["train"]) & set(splits["validation"]))
        if both:
            raise UserError(
                f"folder: {len(both)} images are in both {lists['train'].name} and "
                f"{lists['validation'].name}, first {pairs[both[0]][0]}; scores on "
                "training images mean nothing: list each once"
            )
    elif splits:
        (taken,) = splits.values()
        rest = tuple(i for i in everything if i not in set(taken))
        splits = {"train": rest, "validation": rest} | splits
    else:
        hashes = [_hash(stem) for stem, _, _ in pairs]
        lowest = int(np.argmin(hashes))
        held = [i == lowest or hashes[i] < VALIDATION_SHARE for i in everything]
        splits = {
            "train": tuple(i for i in everything if not held[i]),
            "validation": tuple(i for i in everything if held[i]),
        }
    for name, at in splits.items():
        if not at:
            raise UserError(
                f"folder: no image is left for the {name} split of {folder} "
                f"({len(pairs)} in all); add images or list fewer in the other split"
            )
    return splits


def _hash(stem: str) -> float:
    """Uniform in [0, 1)."""
    return int.from_bytes(hashlib.sha256(stem.encode()).digest()[:6]) / 2**48


def _listed(path: Path, pairs: tuple[tuple[str, str, str], ...]) -> tuple[int, ...]:
    """Positions of the images of a list of stems or file names."""
    at = {os.path.basename(image): i for i, (_, image, _) in enumerate(pairs)}
    at |= {stem: i for i, (stem, _, _) in enumerate(pairs)}
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    names = [line.strip().replace("\\", "/").split("/")[-1] for line in lines]
    names = [name for name in names if name]
    for name in names:  # images may have been stored in another format since
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and stem in at:
            at.setdefault(name, at[stem])
    unknown = [name for name in names if name not in at]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of {len(names)} entries name no image of "
            f"{path.parent / 'images'}, first {unknown[0]!r}; expected a stem or file "
            "name per line"
        )
    listed = tuple(at[name] for name in names)
    twice = [name for i, name in enumerate(names) if listed[i] in listed[:i]]
    if twice:
        raise UserError(f"{path}: lists {twice[0]!r} twice; list each image once")
    return listed


def read_classes(path: Path) -> Classes:
    """Reads a classes file: ``name`` or ``name r g b`` on each line, line 1 is id 0.

    A last line called ``void`` is no class: its id and its color mean void.

    Raises:
      UserError: empty or repeated lines, colors on some lines only or out of range,
        fewer than 2 or more than 255 classes.
    """

    def bad(number: int, problem: str) -> UserError:
        return UserError(
            f"{path}: line {number}: {problem}; expected 'name' or 'name r g b' on "
            "every line, colors 0..255 on all lines or on none"
        )

    names, colors = [], []
    lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            raise bad(number, "is empty")
        colored = len(words) > 3 and all(word.isdecimal() for word in words[-3:])
        color = tuple(int(word) for word in words[-3:]) if colored else ()
        name = " ".join(words[:-3] if colored else words)
        if max(color, default=0) > 255:
            raise bad(number, f"color {color} is out of range")
        if name in names:
            raise bad(number, f"repeats the name {name!r}")
        if color and color in colors:
            raise bad(number, f"repeats the color {color}")
        if colors and bool(color) != bool(colors[0]) and name != "void":
            raise bad(number, f"{'has a' if color else 'lacks the'} color")
        names.append(name)
        colors.append(color)
    if "void" in names[:-1]:
        raise bad(names.index("void") + 1, "'void' is allowed on the last line only")
    void_line = names[-1:] == ["void"]
    void_color = colors[-1] if void_line else ()
    if void_line:
        names, colors = names[:-1], colors[:-1]
    if not 2 <= len(names) <= 255:
        raise UserError(f"{path}: names {len(names)} classes, expected 2 to 255")
    table = np.array([color for color in colors if color], np.uint8).reshape(-1, 3)
    return Classes(tuple(names), table, void_line, void_color)


def _number_classes(
    folder: Path,
    masks: Sequence[str],
    kinds: Sequence[str],
    values: Sequence[np.ndarray],
    void_values: tuple[int, ...],
) -> Classes:
    """Without a classes file, ids go up to the largest value.

    If fewer than half of them occur, they are hardly ids (gray levels, instances).
    """
    remedy = f"{folder / 'classes.txt'} with one class per line"
    for mask, kind in zip(masks, kinds):
        if kind == "color":
            raise UserError(
                f"{mask}: an RGB mask says which colors, not which classes; add "
                f"{remedy} as 'name r g b', or store ids in a palette or gray PNG"
            )
    ids = np.setdiff1d(np.concatenate(values), void_values)
    k = int(ids.max()) + 1 if ids.size else 0
    if k > 255:
        mask = next(m for m, v in zip(masks, values) if k - 1 in v)
        raise UserError(
            f"{mask}: holds the value {k - 1}, which makes {k} classes; expected ids "
            "0..254: instance masks are no class masks, and values that mean void "
            "belong in data.void_values"
        )
    if k < 2:
        raise UserError(
            f"folder: the masks of {folder} hold no class but {ids.tolist()} besides "
            f"void {void_values}; if 255 is a class, add {folder / 'classes.txt'} with "
            "a gray level per class: 'background 0 0 0', 'foreground 255 255 255'"
        )
    unused = np.setdiff1d(np.arange(k), [*ids, *void_values])
    if unused.size > k / 2:
        raise UserError(
            f"folder: the masks of {folder} hold the value {k - 1} but never "
            f"{unused[0]} ({unused.size} of 0..{k - 1} do not occur); if that is "
            f"right, add {remedy}, or 'name v v v' if the values v are gray levels"
        )
    names = tuple(f"class{i}" for i in range(k))
    return Classes(names, np.zeros((0, 3), np.uint8), False, ())


def _rule(given: Classes, void_values: tuple[int, ...]) -> Rule:
    """The mapping of raw values; a classes file of gray colors lists gray values."""
    k = len(given.names)
    index = np.full(2**16, _UNKNOWN, np.int16)
    index[:k] = np.arange(k)
    if given.void_line:
        index[k] = VOID
    index[list(void_values)] = VOID
    colors = [tuple(color) for color in given.colors.tolist()]
    gray = index
    if colors and all(r == g == b for r, g, b in colors):
        gray = np.full(2**16, _UNKNOWN, np.int16)
        gray[list(void_values)] = VOID
        if len(set(given.void_color)) == 1:
            gray[given.void_color[0]] = VOID
        gray[[r for r, _, _ in colors]] = np.arange(k)
    ids = dict(zip(colors, range(k)))
    if given.void_color and colors:
        ids[given.void_color] = VOID
    coded = sorted((r << 16 | g << 8 | b, i) for (r, g, b), i in ids.items())
    codes, code_ids = zip(*coded) if coded else ((), ())
    return Rule(index, gray, np.array(codes, np.int32), np.array(code_ids, np.int16))


def _codes(values: np.ndarray, kind: str) -> np.ndarray:
    """Gray values and indices as they are, colors as one integer; integers [H, W]."""
    if kind != "color":
        return values
    r, g, b = np.moveaxis(values.astype(np.int32), -1, 0)
    return r << 16 | g << 8 | b


def _to_ids(codes: np.ndarray, kind: str, rule: Rule) -> np.ndarray:
    """Train ids of any shape, int16, -1 where unknown."""
    if kind != "color":
        return (rule.index if kind == "index" else rule.gray)[codes]
    if not len(rule.codes):
        return np.full(codes.shape, _UNKNOWN, np.int16)
    at = np.searchsorted(rule.codes, codes).clip(max=len(rule.codes) - 1)
    return np.where(rule.codes[at] == codes, rule.code_ids[at], _UNKNOWN)


def _examine(
    image: str, mask: str
) -> tuple[tuple[int, int], bool, str, np.ndarray, np.ndarray]:
    """Size of the image, whether it is gray; kind of the mask, its values, counts."""
    size, gray = image_header(image)
    values, kind = decode_mask(mask)
    if values.shape[:2] != size:
        raise UserError(
            f"{mask}: {values.shape[0]}x{values.shape[1]}, but {image} is "
            f"{size[0]}x{size[1]} (height x width, after EXIF rotation); expected "
            "equal sizes"
        )
    codes = _codes(values, kind)
    if kind == "color":
        return size, gray, kind, *np.unique(codes, return_counts=True)
    counts = np.bincount(codes.ravel())
    held = np.flatnonzero(counts)
    return size, gray, kind, held, counts[held]


def _no_class(
    mask: str,
    kind: str,
    value: int,
    given: Classes,
    classes_file: Path,
    void_values: tuple[int, ...],
) -> UserError:
    if kind == "color" and not len(given.colors):
        return UserError(
            f"{mask}: an RGB mask needs the colors of the classes: write 'name r g b' "
            f"on every line of {classes_file}"
        )
    if kind == "color":
        color = f"{value >> 16} {value >> 8 & 255} {value & 255}"
        return UserError(
            f"{mask}: holds the color {color}, expected one of the "
            f"{len(given.names)} colors of {classes_file}: add the class, or a last "
            f"line 'void {color}' if it means void"
        )
    return UserError(
        f"{mask}: holds the value {value}, expected 0..{len(given.names) - 1} (the "
        f"{len(given.names)} classes of {classes_file}, or their gray levels) or void "
        f"{void_values}: add {value} to data.void_values, or the class to the file"
    )
