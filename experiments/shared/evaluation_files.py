"""Scores of predictions that lie in files, of anybody's making."""

import concurrent.futures
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from experiments.shared.evaluation_stages import ScoredImage, score_image
from segjax.data import datasets, images, masks
from segjax.data.source import Example, Size
from segjax.errors import UserError
from segjax.inference.predictors import label_type

LABEL_FOLDERS = ("labels", "ids", "")
"""Where label maps are looked for, in this order: below the folder and in it."""
PROBABILITY_FOLDERS = ("probabilities", "")
_SUM = 0.02  # how far sums of probabilities may be from 1: they may be half precision


def find(folder: Path, ids: Sequence[str], *, allow_missing: bool) -> list[int]:
    """Which of these images have a prediction.

    Raises:
      UserError: there is no such folder, an image has none and that is not allowed, no
        image has one, or two images have the same.
    """
    if not folder.is_dir():
        raise UserError(f"--predictions={folder}: no such folder")
    paths = {name: label_path(folder, name) or _scores(folder, name) for name in ids}
    missing = [name for name in ids if not paths[name]]
    if missing and (not allow_missing or len(missing) == len(ids)):
        advice = "" if allow_missing else "; --allow_missing scores the others"
        raise UserError(
            f"--predictions={folder}: {len(missing)} of {len(ids)} images have none, "
            f"such as {missing[0]!r}; expected labels/{missing[0]}.png or "
            f"{missing[0]}.png{advice}"
        )
    owners: dict[Path, str] = {}
    for name, path in paths.items():
        if path and (other := owners.setdefault(path, name)) != name:
            raise UserError(
                f"{path}: is the prediction of {other!r} and of {name!r}, whose last "
                f"parts are the same; expected labels/{name.replace('/', '_')}.png or "
                f"labels/{name}.png"
            )
    return [i for i, name in enumerate(ids) if paths[name]]


def label_path(folder: Path, name: str) -> Path | None:
    """The label map of an image, by its id or the last part of that."""
    return _first(folder, name, LABEL_FOLDERS, (".png",))


def _scores(folder: Path, name: str) -> Path | None:
    return _first(folder, name, PROBABILITY_FOLDERS, (".npz", ".npy"))


def _stems(name: str) -> list[str]:
    """What the files of an image may be called, as ``experiments.predict`` does."""
    return list(dict.fromkeys((name, name.replace("/", "_"), name.rpartition("/")[2])))


def _first(
    folder: Path, name: str, below: Sequence[str], suffixes: Sequence[str]
) -> Path | None:
    for part in below:
        for stem in _stems(name):
            for suffix in suffixes:
                if (path := folder / part / f"{stem}{suffix}").is_file():
                    return path
    return None


def check(
    folder: Path,
    ids: Sequence[str],
    sizes: Sequence[Size],
    *,
    probabilities: bool,
) -> None:
    """Checks the headers of all predictions, before any is scored.

    Raises:
      UserError: a label map has another size than its image, or there are no
        probabilities although a metric needs them.
    """
    for name, size in zip(ids, sizes, strict=True):
        path = label_path(folder, name)
        if path and (found := images.image_header(path)[0]) != tuple(size):
            raise _wrong_size(path, found, size)
        if probabilities and not _scores(folder, name):
            raise UserError(
                f"--predictions={folder}: a metric needs probabilities, and there are "
                f"none of {name!r}; expected probabilities/{name}.npz or .npy"
            )


def _wrong_size(path: Path, found: Sequence[int], size: Sequence[int]) -> UserError:
    h, w = size
    return UserError(
        f"{path}: is of size {'x'.join(map(str, found))}, expected the {h}x{w} of its "
        "image"
    )


def read_all(
    folder: Path,
    source: datasets.Source,
    indices: Sequence[int],
    *,
    info: datasets.Dataset,
    radius: int,
    probabilities: bool,
    threads: int,
) -> Iterator[ScoredImage]:
    """Reads and scores predictions.

    Args:
      folder: of the predictions.
      source: of the truth.
      indices: of the images of this process.
      info: of the data set.
      radius: see ``metrics.band_confusion``.
      probabilities: whether a metric needs them.
      threads: that read.

    Raises:
      UserError: a prediction cannot be read, or holds what is no class.
    """

    def read(index: int) -> tuple[Example, np.ndarray, np.ndarray | None]:
        example = source[index]
        return example, *read_one(
            folder, example, info=info, probabilities=probabilities
        )

    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        step = max(threads, 1)
        for at in range(0, len(indices), step):
            part = indices[at : at + step]
            for index, (example, label, scores) in zip(part, pool.map(read, part)):
                yield score_image(
                    example,
                    label[None],
                    index=index,
                    classes=len(info.classes),
                    radius=radius,
                    probabilities=() if scores is None else (scores,),
                )


def read_one(
    folder: Path, example: Example, *, info: datasets.Dataset, probabilities: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """The predicted ids [H, W] of an image, and its probabilities [H, W, K] or None.

    Without a label map, the most probable class of every pixel is its label.
    """
    name, truth = str(example["id"]), example["label"]
    path, scores = label_path(folder, name), None
    if probabilities or not path:
        scores = read_probabilities(
            _scores(folder, name) or folder, truth.shape, len(info.classes)
        )
    if path is None:
        assert scores is not None
        ids = scores.argmax(-1)
    else:
        ids = read_ids(path, truth, info)
    if not probabilities:
        scores = None
    return ids.astype(label_type(len(info.classes))), scores


def read_ids(path: Path, truth: np.ndarray, info: datasets.Dataset) -> np.ndarray:
    """A label map: ids, or the colors of the data set.

    Gray values are ids. So are the indices of a palette, unless all their colors are
    those of classes: then the colors decide, because many programs reorder palettes.

    Args:
      path: of the PNG.
      truth: uint8 [H, W]; where it is void, predictions may be anything.
      info: of the data set.

    Raises:
      UserError: it cannot be read, has another size than the truth, or a value or color
        that is no class where the truth is one.
    """
    mask = masks.read_mask(path)
    values, kind = mask.values, mask.kind
    if values.shape[:2] != truth.shape:
        raise _wrong_size(path, values.shape[:2], truth.shape)
    count, known = len(info.classes), truth != datasets.VOID
    if kind == "index" and mask.palette is not None:
        used = np.unique(values[known])
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(mask.palette)] = mask.palette
        if (_of_colors(colors[used], info.palette) >= 0).all():
            values, kind = colors[values], "color"
    if kind == "color":
        ids = _of_colors(values, info.palette)
    else:
        ids = values.astype(np.int32)
    wrong = (ids < 0) | (ids >= count)
    if (wrong & known).any():
        row, column = np.argwhere(wrong & known)[0]
        if kind == "color":
            what, expected = "color", f"the colors of the {count} classes"
        else:
            what, expected = "value", f"ids of the {count} classes, 0 to {count - 1},"
        raise UserError(
            f"{path}: {what} {values[row, column].tolist()} in row {row}, column "
            f"{column} is no class; expected {expected} of {info.name}"
        )
    return np.where(wrong, 0, ids)


def _of_colors(colors: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Ids int32 of colors uint8 [..., 3]; -1 for those of no class."""
    ids = np.full(colors.shape[:-1], -1, np.int32)
    for index, color in reversed(list(enumerate(palette))):
        ids[(colors == color).all(-1)] = index
    return ids


def read_probabilities(path: Path, size: Size, classes: int) -> np.ndarray:
    """Probabilities, float32 [H, W, K], of an npz (its only array) or npy file.

    Raises:
      UserError: it cannot be read, or holds something else.
    """
    try:
        found = np.load(path, allow_pickle=False)
        if not isinstance(found, np.ndarray):
            with found:
                names = found.files
                name = "probabilities" if "probabilities" in names else names[0]
                found = found[name]
    except (OSError, ValueError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read as an array: {error}") from error
    expected = (*size, classes)
    if found.shape != expected or found.dtype.kind != "f":
        raise UserError(
            f"{path}: holds {found.dtype} {list(found.shape)}, expected probabilities "
            f"{list(expected)} as floating-point numbers"
        )
    found = found.astype(np.float32)
    sums = found.sum(-1)
    if not (np.isfinite(found).all() and found.min() >= 0):
        raise UserError(f"{path}: holds values that are no probabilities")
    if np.abs(sums - 1).max() > _SUM:
        raise UserError(
            f"{path}: holds probabilities that sum to {sums.min():.3g} to "
            f"{sums.max():.3g}, expected 1"
        )
    return found
