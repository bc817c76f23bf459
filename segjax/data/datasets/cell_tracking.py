"""2-D sets of the Cell Tracking Challenge, such as PhC-C2DH-U373 and DIC-C2DH-HeLa.

A set is two image sequences with instance masks of some frames (Maska et al.,
Bioinformatics 2014; celltrackingchallenge.net).  Gold truth (``_GT/SEG``) is by experts
and may leave out cells of a frame; silver truth (``_ST/SEG``) is computed from the
results of participants and covers whole frames.  Training uses silver truth where there
is some, validation gold truth.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segjax import files
from segjax.data import decoding, folder_ranges
from segjax.data.images import WHOLE, decode_image
from segjax.data.inventory import require
from segjax.data.layout import DataConfig, Format, Frame, Layout
from segjax.data.source import Dataset
from segjax.data.splits import by_order
from segjax.errors import UserError
from segjax.labels import VOID

EXPECTED = (
    "the folder of a 2-D set, such as PhC-C2DH-U373, with the frames 01/tTTT.tif and "
    "02/tTTT.tif, gold truth 01_GT/SEG/man_segTTT.tif and 01_GT/TRA/man_trackTTT.tif, "
    "and, if there is, silver truth 01_ST/SEG/man_segTTT.tif (02 likewise)"
)
_GOLD, _SILVER = "GT", "ST"


class _Sequence(NamedTuple):
    """Labeled frames of a sequence by time, "000"."""

    gold: dict[str, Frame]
    silver: dict[str, Frame]


def describe(data: DataConfig) -> Dataset:
    """The same for every config; the mean is middle gray, as sets differ."""
    del data
    return Dataset(
        name="cell_tracking",
        classes=("background", "cell"),
        palette=np.array([(0, 0, 0), (255, 160, 0)], np.uint8),  # visible over gray
        mean=(127.5,),
        channels=1,
        layout=LAYOUT,
        instances=True,
    )


def find(data: DataConfig) -> tuple[Path, dict[str, list[Frame]]]:
    """See ``Layout.find``; frames are in the order of sequence and time.

    The first sequence that has labels trains and the others validate.  If only one has
    labels, the frames from the first of the last fifth of its gold frames on validate,
    and those before train.
    """
    folder = files.find_folder("--config.data.root", data.get("root", ""), EXPECTED)
    names = sorted(p.name for p in folder.glob("[0-9][0-9]") if p.is_dir())
    found = [_sequence(folder, name) for name in names]
    sequences = [some for some in found if some.gold or some.silver]
    if not sequences:
        raise UserError(f"cell_tracking: {folder} has no masks; expected {EXPECTED}")
    splits = _splits(folder, sequences)
    value_range = tuple(data.get("value_range", WHOLE))
    if value_range == WHOLE:
        _check_range(folder, splits["train"])
    return folder, {
        split: [frame._replace(detail=value_range) for frame in frames]
        for split, frames in splits.items()
    }


def _splits(folder: Path, sequences: list[_Sequence]) -> dict[str, list[Frame]]:
    first, others = sequences[0], sequences[1:]
    train = first.silver or first.gold
    if others:
        validation = [f for some in others for f in (some.gold or some.silver).values()]
        return {"train": list(train.values()), "validation": validation}
    truth = first.gold or first.silver
    block = by_order(sorted(truth))
    if not block["train"]:
        raise UserError(
            f"cell_tracking: {folder} has one frame with masks, at least 2 are needed; "
            f"expected {EXPECTED}"
        )
    start = block["validation"][0]
    before = [frame for time, frame in train.items() if time < start]
    return {
        "train": before or [truth[time] for time in block["train"]],
        "validation": [truth[time] for time in block["validation"]],
    }


def _sequence(folder: Path, name: str) -> _Sequence:
    for truth in (_GOLD, _SILVER):
        slices = sorted((folder / f"{name}_{truth}/SEG").glob("man_seg_*_*.tif"))
        if slices:
            raise _is_3d(slices[0])
    gold, silver = (_labeled(folder, name, truth) for truth in (_GOLD, _SILVER))
    for frame in (*gold.values(), *silver.values()):
        _check_pages(frame.image)
        break
    return _Sequence(gold, silver)


def _labeled(folder: Path, name: str, truth: str) -> dict[str, Frame]:
    masks = {}
    for path in sorted((folder / f"{name}_{truth}/SEG").glob("man_seg*.tif")):
        if match := re.fullmatch(r"man_seg(\d+)\.tif", path.name):
            masks[match[1]] = path
    forms = [f"{name}/t{{}}.tif", f"{name}_{truth}/SEG/man_seg{{}}.tif"]
    if truth == _GOLD:
        forms += [f"{name}_GT/TRA/man_track{{}}.tif"]
    wanted = [form.format(time) for form in forms for time in masks]
    require(folder, wanted, name="cell_tracking", expected=EXPECTED)

    def frame(time: str) -> Frame:
        image, label, *markers = (folder / form.format(time) for form in forms)
        return Frame(f"{name}_t{time}", image, label, parts=tuple(markers))

    return {time: frame(time) for time in masks}


def _check_pages(path: Path) -> None:
    import tifffile  # takes 0.1 s, which no --help should wait for

    try:
        with tifffile.TiffFile(path) as file:
            pages = len(file.pages)
    except Exception as error:
        raise UserError(
            f"cell_tracking: {path} is damaged or not a TIFF: load it again"
        ) from error
    if pages > 1:
        raise _is_3d(path)


def _is_3d(path: Path) -> UserError:
    return UserError(
        f"cell_tracking: {path} is of a 3-D set; expected {EXPECTED}: use its slices "
        "as images of your own (--config.data.name=folder)"
    )


def _check_range(folder: Path, frames: list[Frame]) -> None:
    """Refuses 16-bit frames without a range of values: they would be nearly black."""
    if decoding.read_header(frames[0].image).bits <= 8:
        return
    seen = folder_ranges.observe([str(f.image) for f in frames], 1, limit=8)
    low, high = seen.range if seen else (0, 2**16 - 1)
    raise UserError(
        f"cell_tracking: {folder}: the frames have 16 bits, of which they use "
        f"{low}..{high}; expected the range that becomes 0..255, for prediction, too: "
        f"--config.data.value_range={low},{max(high, low + 1)}"
    )


def read_image(frame: Frame, channels: int) -> np.ndarray:
    """Gray, uint8 [H, W, channels]; ``detail`` is the range that becomes 0..255.

    Raises:
      UserError: a damaged file, or another type.
    """
    return decode_image(frame.image, channels, value_range=frame.detail)


def read_label(frame: Frame) -> np.ndarray:
    """1 = cell, 0 = background, uint8 [H, W].

    The tracking markers (``_GT/TRA``) of a gold frame show all of its cells.  If more
    than half of a marker lies outside of all masks, some cells have no mask, and all
    pixels outside of the masks are void (255).

    Raises:
      UserError: a damaged file, or one that is not gray.
    """
    masks = read_instance(frame)
    label = (masks > 0).astype(np.uint8)
    for path in frame.parts:
        markers = _numbers(path)
        if markers.shape != masks.shape:
            raise UserError(
                f"cell_tracking: {path} is {markers.shape[0]}x{markers.shape[1]}, "
                f"{frame.label} {masks.shape[0]}x{masks.shape[1]} (height x width); "
                "expected equal sizes"
            )
        every = np.bincount(markers.ravel())[1:]
        outside = np.bincount(markers[masks == 0], minlength=len(every) + 1)[1:]
        if (2 * outside > every).any():
            label[masks == 0] = VOID
    return label


def read_instance(frame: Frame) -> np.ndarray:
    """Number of the cell, uint16 [H, W]; 0 = no cell.

    Raises:
      UserError: a damaged file, or one that is not gray.
    """
    assert frame.label is not None
    return _numbers(frame.label).astype(np.uint16)


def _numbers(path: Path) -> np.ndarray:
    values = decoding.decode(path)
    if values.ndim != 2:
        raise UserError(
            f"cell_tracking: {path} is a color image; expected numbers of cells, gray "
            "of 16 bits"
        )
    return values


LAYOUT = Layout(
    Format("cell_tracking", "1.0.0", channels=1, maps=("instance",)),
    find=find,
    read_label=read_label,
    read_instance=read_instance,
    read_image=read_image,
    small=True,
    ranged=True,
)
