"""What the values of masks mean: classes files, numbered classes, ids of values."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segjax import files
from segjax.data.masks import Mask
from segjax.errors import UserError
from segjax.labels import VOID

UNKNOWN = -1
"""The id of mask values that stand for no class."""
_VALUES = 2**16
_CVAT = re.compile(r"([^:]+):(\d+),(\d+),(\d+):[^:]*:[^:]*")
"""A line of the labelmap.txt of CVAT: label:color_rgb:parts:actions."""


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
    """How raw mask values become train ids; -1 for values of no class."""

    palette_index: np.ndarray
    """Id of each palette index, int16 [65536]."""
    gray: np.ndarray
    """Id of each gray value, int16 [65536]."""
    gray_levels: bool
    """Whether the classes have gray levels, so that masks count as they are shown."""
    void: np.ndarray
    """Whether a raw value means void whatever its color, bool [65536]."""
    codes: np.ndarray
    """Known colors r * 65536 + g * 256 + b, ascending, int32 [M]."""
    code_ids: np.ndarray
    """Their ids, int16 [M]."""


class Values(NamedTuple):
    """Distinct raw values of a mask."""

    values: np.ndarray
    """Gray values, indices, or colors as ``color_codes``; integers [M]."""
    kind: str
    """The kind of mask, see ``Mask.kind``."""
    bits: int
    shown: np.ndarray
    """Colors (as ``color_codes``) that a palette gives them, -1 outside of it; [M]."""
    ramp: bool
    """Whether the palette shows every index as the gray level of that number."""


def read_classes(path: Path) -> Classes:
    """Reads a classes file: ``name`` or ``name r g b`` on each line, line 1 is id 0.

    Lines that start with # are comments and count for nothing.  A last line called
    ``void`` is no class: its id and its color mean void.  The labelmap.txt of CVAT is
    read, too.

    Raises:
      UserError: empty or repeated lines, colors on some lines only or out of range,
        fewer than 2 or more than 255 classes.
    """

    def bad(number: int, problem: str) -> UserError:
        return UserError(
            f"{path}: line {number}: {problem}; expected 'name' or 'name r g b' on "
            "every line, colors 0..255 on all lines or on none"
        )

    names: list[str] = []
    colors: list[tuple[int, ...]] = []
    text = files.read_text(path, "a list of class names")
    for number, line in enumerate(text.rstrip().split("\n") if text.strip() else [], 1):
        if line.lstrip().startswith("#"):
            continue
        name, color = _parse(line)
        if not name:
            raise bad(number, "is empty")
        if max(color, default=0) > 255:
            raise bad(number, f"color {color} is out of range")
        if name in names:
            raise bad(number, f"repeats the name {name!r}")
        if color and color in colors:
            raise bad(number, f"repeats the color {color}")
        if colors and bool(color) != bool(colors[0]) and name != "void":
            raise bad(number, f"{'has a' if color else 'lacks the'} color")
        if names[-1:] == ["void"]:
            raise bad(number, "follows 'void', which is allowed on the last line only")
        names.append(name)
        colors.append(color)
    void_line = names[-1:] == ["void"]
    void_color = colors[-1] if void_line else ()
    if void_line:
        names, colors = names[:-1], colors[:-1]
    if not 2 <= len(names) <= 255:
        raise UserError(f"{path}: names {len(names)} classes, expected 2 to 255")
    table = np.array([color for color in colors if color], np.uint8).reshape(-1, 3)
    return Classes(tuple(names), table, void_line, void_color)


def _parse(line: str) -> tuple[str, tuple[int, ...]]:
    """Name and color, () without one."""
    cvat = _CVAT.fullmatch(line.strip())
    words = [*cvat[1].split(), *cvat.groups()[1:]] if cvat else line.split()
    numbers = words[-3:]
    if len(words) > 3 and all(w.isascii() and w.isdecimal() for w in numbers):
        # Longer numbers are out of range, too, and int() refuses thousands of digits.
        color = tuple(int(word) if len(word) < 10 else 256 for word in numbers)
        return " ".join(words[:-3]), color
    return " ".join(words), ()


def number_classes(
    folder: Path,
    masks: Sequence[str],
    *,
    values: Sequence[Values],
    void_values: tuple[int, ...],
) -> Classes:
    """Without a classes file, ids go up to the largest value.

    If fewer than half of them occur, they are hardly ids (gray levels, instances).
    """
    remedy = f"{folder / 'classes.txt'} with one class per line"
    for mask, each in zip(masks, values):
        if each.kind == "color":
            raise UserError(
                f"{mask}: an RGB mask says which colors, not which classes; add "
                f"{remedy} as 'name r g b', or store ids in a palette or gray PNG"
            )
    ids = np.setdiff1d(np.concatenate([each.values for each in values]), void_values)
    k = int(ids.max()) + 1 if ids.size else 0
    if k > 255:
        mask = next(m for m, each in zip(masks, values) if k - 1 in each.values)
        raise UserError(
            f"{mask}: holds the value {k - 1}, which makes {k} classes; expected ids "
            "0..254: instance masks are no class masks, and values that mean void "
            "belong in --config.data.void_values"
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


def make_rule(classes: Classes, void_values: tuple[int, ...]) -> Rule:
    """The mapping of raw values; a classes file of gray colors lists gray values."""
    k = len(classes.names)
    void = np.zeros(_VALUES, bool)
    void[list(void_values)] = True
    index = np.full(_VALUES, UNKNOWN, np.int16)
    index[:k] = np.arange(k)
    if classes.void_line:
        index[k] = VOID
    index[void] = VOID
    colors = [tuple(color) for color in classes.colors.tolist()]
    gray, gray_levels = index, bool(colors) and all(len(set(c)) == 1 for c in colors)
    if gray_levels:
        gray = np.full(_VALUES, UNKNOWN, np.int16)
        gray[void] = VOID
        if len(set(classes.void_color)) == 1:
            gray[classes.void_color[0]] = VOID
        gray[[r for r, _, _ in colors]] = np.arange(k)
    ids = dict(zip(colors, range(k)))
    if classes.void_color and colors:
        ids[classes.void_color] = VOID
    coded = sorted((r << 16 | g << 8 | b, i) for (r, g, b), i in ids.items())
    codes, code_ids = zip(*coded) if coded else ((), ())
    return Rule(
        palette_index=index,
        gray=gray,
        gray_levels=gray_levels,
        void=void,
        codes=np.array(codes, np.int32),
        code_ids=np.array(code_ids, np.int16),
    )


def color_codes(colors: np.ndarray) -> np.ndarray:
    """uint8 [..., 3] as one integer each: r * 65536 + g * 256 + b."""
    r, g, b = np.moveaxis(colors.astype(np.int32), -1, 0)
    return r << 16 | g << 8 | b


def describe(mask: Mask, values: np.ndarray) -> Values:
    """Raw values [M] of a mask (colors as codes), with the colors of its palette."""
    shown, ramp = np.full(values.shape, -1, np.int32), False
    palette = mask.palette if mask.kind == "index" else None
    if palette is not None:
        codes = np.full(256, -1, np.int32)
        codes[: len(palette)] = color_codes(palette)
        shown = codes[values]
        levels = np.arange(len(palette))[:, None]
        ramp = len(palette) > 1 and bool(np.equal(palette, levels).all())
    return Values(values, mask.kind, mask.bits, shown, ramp)


def to_ids(values: Values, rule: Rule) -> np.ndarray:
    """Train ids of raw values, int16 [M], -1 where unknown.

    Where classes have colors, the colors of a palette decide, not its indices: many
    programs reorder palettes when they save an image.
    """
    if values.kind == "color":
        return _ids_of_colors(values.values, rule)
    if values.kind == "gray" or values.ramp:
        raw = values.values
        if rule.gray_levels and values.kind == "gray" and values.bits < 8:
            raw = raw.astype(int) * (255 // (2**values.bits - 1))
        return rule.gray[raw]
    by_index = rule.palette_index[values.values]
    if not len(rule.codes):
        return by_index
    ids = _ids_of_colors(values.shown, rule)
    ids = np.where((ids == UNKNOWN) & (by_index == VOID), VOID, ids)
    return np.where(rule.void[values.values], VOID, ids).astype(np.int16)


def _ids_of_colors(codes: np.ndarray, rule: Rule) -> np.ndarray:
    if not len(rule.codes):
        return np.full(codes.shape, UNKNOWN, np.int16)
    at = np.searchsorted(rule.codes, codes).clip(max=len(rule.codes) - 1)
    return np.where(rule.codes[at] == codes, rule.code_ids[at], UNKNOWN)


def label_of(mask: Mask, rule: Rule) -> np.ndarray:
    """Train ids of every pixel of a mask, int16 [H, W], -1 where unknown."""
    if mask.kind == "color":
        return _ids_of_colors(color_codes(mask.values), rule)
    values = np.arange(int(mask.values.max()) + 1)
    return to_ids(describe(mask, values), rule)[mask.values]


def no_class(
    mask: str,
    values: Values,
    *,
    position: int,
    classes: Classes,
    source: Path,
    void_values: tuple[int, ...],
) -> UserError:
    """The error of the raw value at a position of ``values`` that is no class."""
    value, k = int(values.values[position]), len(classes.names)
    if values.kind == "color" and not len(classes.colors):
        return UserError(
            f"{mask}: an RGB mask needs the colors of the classes: write 'name r g b' "
            f"on every line of {source}"
        )
    if values.kind == "color":
        color = _text_of(value)
        return UserError(
            f"{mask}: holds the color {color}, expected one of the {k} colors of "
            f"{source}: add the class, or a last line 'void {color}' if it means void"
        )
    if values.kind == "index" and len(classes.colors) and not values.ramp:
        shown = int(values.shown[position])
        color = "no color" if shown < 0 else f"the color {_text_of(shown)}"
        return UserError(
            f"{mask}: its palette gives index {value} {color}, expected one of the {k} "
            f"colors of {source}: correct them, leave the colors out of the file if "
            f"the indices are the ids, or add {value} to --config.data.void_values if "
            "it means void"
        )
    expected = f"0..{k - 1}, the ids of the {k} classes of {source}"
    if values.kind != "index" and len(classes.colors) and _are_gray(classes):
        levels = ", ".join(str(level) for level in classes.colors[:10, 0])
        levels += ", ..." if k > 10 else ""
        expected = f"one of {levels}, the gray levels of the {k} classes of {source}"
        if values.bits < 8:
            value *= 255 // (2**values.bits - 1)
    return UserError(
        f"{mask}: holds the value {value}, expected {expected}, or void "
        f"{void_values}: add {value} to --config.data.void_values, or the class to "
        "the file"
    )


def _are_gray(classes: Classes) -> bool:
    return bool((classes.colors == classes.colors[:, :1]).all())


def _text_of(code: int) -> str:
    return f"{code >> 16} {code >> 8 & 255} {code & 255}"
