"""What evaluation servers take: made of the results of ``experiments.predict``.

A submission is written below OUTPUT/submission when all images are segmented, from
their files in OUTPUT/ids or OUTPUT/probabilities.
"""

import re
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.shared import prediction_files, prediction_folder
from experiments.shared.submissions import (
    ade20k,
    cell_tracking,
    cityscapes,
    isbi2012,
    voc2012,
)
from segjax import errors, files
from segjax.data import datasets
from segjax.errors import UserError


class Submission(NamedTuple):
    """How the results of one data set are submitted."""

    needs: str
    """The output of predictions that it is made of."""
    place: Callable[[Path], str]
    """The path of the result of an image, below the folder of the submission; of
    several images, the same where they share a file. Raises UserError for a name that
    is not one of the data set."""
    write: Callable[[Path, Sequence[Path]], None]
    """Writes such a file from the results, in the order of the names of the images."""
    size: tuple[int, int] = (0, 0)
    """(height, width) of all images; (0, 0): any."""
    archive: str = ""
    """".zip" or ".tgz" if the server takes one file."""
    stack: bool = False
    """Whether all images, then of one size, become pages of one file."""
    finish: Callable[[Path], None] | None = None
    """Adds what else belongs to the folder."""


SUBMISSIONS: dict[str, Submission] = {
    "voc2012": Submission("ids", voc2012.place, voc2012.write, archive=".tgz"),
    "cityscapes": Submission(
        *("ids", cityscapes.place, cityscapes.write),
        size=cityscapes.SIZE,
        archive=".zip",
    ),
    "ade20k": Submission("ids", ade20k.place, ade20k.write, archive=".zip"),
    "isbi2012": Submission("probabilities", isbi2012.place, isbi2012.write, stack=True),
    "cell_tracking": Submission(
        *("ids", cell_tracking.place, cell_tracking.write),
        finish=cell_tracking.finish,
    ),
}
"""By the name of the data set, whose classes the model must have."""


def check(name: str, classes: Sequence[str], paths: Sequence[str]) -> Submission:
    """The submission of that name, for these images.

    Raises:
      UserError: no such submission, a model of other classes, or images that are not
        those of the data set by their names.
    """
    if name not in SUBMISSIONS:
        raise errors.unknown("--submission", name, SUBMISSIONS)
    expected = datasets.describe({"name": name}).classes
    if tuple(classes) != expected:
        found = f"{len(classes)} classes, {', '.join(classes[:3])}, .."
        if len(classes) == len(expected):
            k = next(i for i, c in enumerate(classes) if c != expected[i])
            found = f"{classes[k]!r} as class {k} instead of {expected[k]!r}"
        raise UserError(
            f"--submission={name}: the model has {found}; expected the "
            f"{len(expected)} classes of {name} in their order"
        )
    submission = SUBMISSIONS[name]
    places: dict[str, str] = {}
    for path in paths:
        try:
            place = submission.place(Path(path))
        except UserError as error:
            raise UserError(f"--submission={name}: {path}: {error}") from error
        other = places.setdefault(place, path)
        if other != path and not submission.stack:
            raise UserError(
                f"--submission={name}: {other} and {path} would both become {place}"
            )
    return submission


def check_sizes(
    name: str, submission: Submission, sizes: Mapping[str, tuple[int, int]]
) -> None:
    """Raises UserError for an image of another size than those of the data set.

    Args:
      name: of the submission.
      submission: of that name.
      sizes: (height, width) by path.
    """
    expected = submission.size
    for path, size in sizes.items():
        if submission.stack and not any(expected):
            expected = size  # pages of one file are of one size
        if any(expected) and tuple(size) != tuple(expected):
            raise UserError(
                f"--submission={name}: {path}: is of size {size[0]}x{size[1]}, "
                f"expected {expected[0]}x{expected[1]}"
            )


def write(
    output: Path, name: str, submission: Submission, names: Mapping[str, str]
) -> Path:
    """Writes the submission anew.

    Args:
      output: the folder of the predictions.
      name: of the submission.
      submission: of that name.
      names: the name of the results of each image, by the path of the image.

    Returns:
      The archive, or the folder or file of the results where the server takes none.
    """
    folder = output / prediction_folder.SUBMISSION / name
    groups: dict[str, list[Path]] = {}
    for path in sorted(names, key=natural):
        result = prediction_files.path_of(output, submission.needs, names[path])
        groups.setdefault(submission.place(Path(path)), []).append(result)
    with prediction_files.write_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)  # results of other images
        for place, results in groups.items():
            target = folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            submission.write(target, results)
        if submission.finish:
            submission.finish(folder)
        if not submission.archive:
            return folder
        target = folder.with_name(name + submission.archive)
        with files.atomic_write(target) as partial:
            _pack(partial, folder, submission.archive)
    return target


def natural(path: str) -> list:
    """A key by which slice 2 comes before slice 10."""
    parts = re.split(r"(\d+)", Path(path).as_posix())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)]


def _pack(target: Path, folder: Path, kind: str) -> None:
    members = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if kind == ".zip":
        with zipfile.ZipFile(target, "w") as archive:  # PNGs are compressed already
            for path in members:
                archive.write(path, path.relative_to(folder))
    else:
        with tarfile.open(target, "w:gz", compresslevel=1) as archive:
            for path in members:
                archive.add(path, path.relative_to(folder))
