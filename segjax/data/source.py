"""What every data set looks like to the programs that read it."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, NotRequired, Protocol, TypedDict

import numpy as np

from segjax.data.images import LABEL_RULES, resize_image, resize_label
from segjax.data.layout import DataConfig, Layout, Recipe
from segjax.errors import UserError
from segjax.labels import VOID

Size = tuple[int, int]
"""(height, width) in pixels."""


class Example(TypedDict):
    """One image with its labels."""

    image: np.ndarray
    """uint8 [H, W, C]: RGB, gray, or the channels of the user's own images."""
    label: np.ndarray
    """uint8 [H, W], train ids 0..K-1, 255 = void."""
    id: str
    instance: NotRequired[np.ndarray]
    """uint16 [H, W], 0 = no instance.  Of the sources of data sets that have instances,
    where the config asks for them (``data.instances``)."""
    regions: NotRequired[np.ndarray]
    """int32 [1 + P, 4], of sources that ``inference.proposals`` wraps."""
    present: NotRequired[np.ndarray]
    """uint8 [K], 1 for the classes of an image with weak labels, all 0 for one with
    full labels.  Of the sources of ``segjax.weak``."""


class Source(Protocol):
    """Random access to the examples of one split.

    Sources are picklable (reading workers are processes) and may be read from several
    threads.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of every example; reads no pixels of images."""
        ...

    @property
    def identities(self) -> list[str]:
        """A text per example that changes with its id, size or content.

        It says nothing of where the files are.  Content is compared as far as that is
        cheap: no image is decoded.
        """
        ...


class Dataset(NamedTuple):
    """What is known of a data set before its images are read."""

    name: str
    classes: tuple[str, ...]
    """Name of class k at position k."""
    palette: np.ndarray
    """Color of class k, uint8 [K, 3] RGB."""
    mean: tuple[float, ...]
    """Mean value of each channel over the training images, 0..255."""
    channels: int
    """3 (RGB), 1 (gray), or another number (own data)."""
    size: Size = (0, 0)
    """(H, W) of all its images; (0, 0) if they differ or are not known."""
    build: Callable[[DataConfig, str], Source] | None = None
    """Opens a split; None for descriptions that were read from a workdir, and where
    ``layout`` says how."""
    recipe: Callable[[DataConfig], Recipe] | None = None
    """How its records are made; None where there are none, or ``layout`` says how."""
    layout: Layout | None = None
    """The files of a published data set."""
    counts: Mapping[str, int] = MappingProxyType({})
    """Number of images of each split of the whole data set."""
    instances: bool = False
    """Whether there is an instance map of each image."""


def check_split(name: str, split: str, splits: Iterable[str]) -> None:
    """Raises UserError if a data set has no such split."""
    if split not in splits:
        raise UserError(
            f"--config.data: {name} has no split {split!r}; it has {', '.join(splits)}"
        )


class Resized:
    """A source with every image (``INTER_AREA``) and label resized."""

    def __init__(self, source: Source, size: Size, labels: str = "nearest"):
        """Wraps a source; `labels` is a key of ``images.LABEL_RULES``."""
        self._source, self._size, self._labels = source, size, labels

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        resized: Example = {
            "image": resize_image(example["image"], self._size),
            "label": LABEL_RULES[self._labels](example["label"], self._size),
            "id": example["id"],
        }
        if "instance" in example:
            resized["instance"] = resize_label(example["instance"], self._size)
        return resized

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of every example."""
        return [self._size] * len(self)

    @property
    def identities(self) -> list[str]:
        """See ``Source``; with the size to which all are resized."""
        rule = "" if self._labels == "nearest" else f" {self._labels}"
        return [f"{text} {self._size}{rule}" for text in self._source.identities]

    def __repr__(self) -> str:
        return f"Resized({self._source!r}, {self._size})"


class KeptClasses:
    """A source with some classes of another one; the pixels of all others are void."""

    def __init__(self, source: Source, ids: Sequence[int]):
        """Wraps a source.

        Args:
          source: of all classes.
          ids: class k is the class ``ids[k]`` of the source.
        """
        self._source, self._ids = source, tuple(ids)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        table = np.full(256, VOID, np.uint8)
        table[list(self._ids)] = np.arange(len(self._ids))
        kept: Example = {
            "image": example["image"],
            "label": table[example["label"]],
            "id": example["id"],
        }
        if "instance" in example:
            dropped = (kept["label"] == VOID) & (example["label"] != VOID)
            kept["instance"] = np.where(dropped, np.uint16(0), example["instance"])
        return kept

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of every example."""
        return self._source.sizes

    @property
    def identities(self) -> list[str]:
        """See ``Source``; with the classes that are kept."""
        return [f"{text} {self._ids}" for text in self._source.identities]

    def __repr__(self) -> str:
        return f"KeptClasses({self._source!r}, {self._ids})"


class Selection:
    """Some examples of a source, in the order of their positions in it."""

    def __init__(self, source: Source, indices: Sequence[int]):
        self._source, self._indices = source, tuple(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        return self._source[self._indices[index]]

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of every example."""
        sizes = self._source.sizes
        return [sizes[i] for i in self._indices]

    @property
    def identities(self) -> list[str]:
        """See ``Source``."""
        identities = self._source.identities
        return [identities[i] for i in self._indices]

    def __repr__(self) -> str:
        return f"Selection({self._source!r}, {self._indices})"


class Mixture(NamedTuple):
    """Some examples of a source that make up a given share of all batches."""

    chosen: tuple[int, ...]
    """Positions of these examples."""
    share: float
    """Of each batch, above 0 and below 1; exact where it is a whole number."""


def fingerprint(source: Source) -> str:
    """24 hex digits that differ where two splits hold other examples or another order.

    Two copies of the same data have the same fingerprint, wherever they are stored.
    """
    text = json.dumps(list(source.identities), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:24]
