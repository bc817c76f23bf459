"""How a data set lies on disk: its frames, and the functions that read them."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.data.images import decode_image

DataConfig = Mapping[str, Any]
"""The ``data`` section of a config; docs/data.md explains its fields."""


class Format(NamedTuple):
    """Name and features of prepared records.

    Features: ``image`` uint8 [H, W, channels]; ``label`` uint8 [H, W, 1] train ids,
    255 = void; ``id`` text; ``maps`` uint16 [H, W, 1].
    """

    name: str
    version: str
    """To be raised whenever the records of the same raw files change."""
    channels: int = 3
    maps: tuple[str, ...] = ()


Record = dict[str, str | bytes]
"""One example: ``image``, ``label`` and the maps (bytes of image files), and ``id``.

``identity``, if it is there, is what ``Source.identities`` says of the example where it
is read in place; it is noted beside the records.
"""


class Recipe(NamedTuple):
    """How the records of a data set are made."""

    form: Format
    key: str
    """Differs where the records differ; a name of files."""
    splits: Mapping[str, Sequence[Any]]
    """The items of each split, in the order of its records; picklable."""
    record: Callable[[str, Any], Record]
    """The record of an item, from the name of its split and the item; picklable.
    Raises UserError for a damaged file."""


class Frame(NamedTuple):
    """One image of a split, and the files that hold its labels."""

    id: str
    image: Path
    label: Path | None = None
    """None: its labels were never released, and all its pixels are void."""
    instance: Path | None = None
    """None: it has no instance map, or the label file holds it."""
    parts: tuple[Path, ...] = ()
    """Further files that hold its labels, such as one mask per object."""
    detail: Any = None
    """What else its readers need, such as the page of a volume; picklable."""


def read_image(frame: Frame, channels: int) -> np.ndarray:
    """The image file of a frame, uint8 [H, W, channels]."""
    return decode_image(frame.image, channels)


class Layout(NamedTuple):
    """The files of a published data set.

    All functions are those of a module, because worker processes pickle them.
    """

    form: Format
    """Of the records that are made of it; ``maps`` is ("instance",) if it has
    instances."""
    find: Callable[[DataConfig], tuple[Path, dict[str, list[Frame]]]]
    """The folder and the frames of each split, in order.  Raises UserError for a wrong
    folder, with the layout that is expected, and for missing files."""
    read_label: Callable[[Frame], np.ndarray]
    """uint8 [H, W], train ids and 255 = void.  Raises UserError for a damaged file or a
    value that is no class.  Not called for frames without label."""
    read_instance: Callable[[Frame], np.ndarray] | None = None
    """uint16 [H, W], 0 = no instance; None if the data set has no instances."""
    read_image: Callable[[Frame, int], np.ndarray] = read_image
    """uint8 [H, W, channels]."""
    small: bool = False
    """Whether records are prepared at the first use, without being asked for."""
    ranged: bool = False
    """Whether ``data.value_range`` applies to its images.  Records do not say with
    which range they were made, so ``data.root`` must then be given."""
