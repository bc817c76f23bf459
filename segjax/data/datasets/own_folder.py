"""The user's own images and masks as a data set; see ``segjax.data.folder``."""

from segjax.data import folder
from segjax.data.images import WHOLE
from segjax.data.layout import DataConfig
from segjax.data.source import Dataset, Source, check_split
from segjax.image_stats import IMAGE_STATS
from segjax.labels import VOID

_IMAGENET_MEAN = IMAGE_STATS["caffe"][1]
"""RGB; serves as padding color, since the mean of the folder is not known.  Of all
other numbers of channels, the middle of the range does."""


def describe(data: DataConfig) -> Dataset:
    """Scans the folder; everything follows from what is in it."""
    scanned = scan(data)
    sizes = set(scanned.sizes)
    return Dataset(
        name="folder",
        classes=scanned.classes,
        palette=scanned.palette,
        mean=_IMAGENET_MEAN if scanned.channels == 3 else (127.5,) * scanned.channels,
        channels=scanned.channels,
        size=sizes.pop() if len(sizes) == 1 else (0, 0),
        build=build,
        instances=bool(data.get("instances")),  # or the scan has failed
    )


def build(data: DataConfig, split: str) -> Source:
    """Opens a split, which is read in place.

    Raises:
      UserError: as of ``folder.scan``, or there is no such split.
    """
    scanned = scan(data)
    check_split("folder", split, scanned.splits)
    return folder.FolderSource(scanned, split)


def scan(data: DataConfig) -> folder.Scan:
    """Checks the folder and counts its classes; see ``folder.scan``."""
    return folder.scan(
        data.get("root", ""),
        data.get("classes", ""),
        void_values=tuple(data.get("void_values", (VOID,))),
        data_dir=data.get("data_dir") or "~/.cache/segjax",
        channels=data.get("channels", 0),
        value_range=tuple(data.get("value_range", WHOLE)),
        instances=bool(data.get("instances")),
    )
