"""Which images are segmented: files, or a split of the data set of the run."""

import mimetypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.shared import cli, prediction_files, prediction_folder
from segjax import workdir as workdir_lib
from segjax.data import datasets
from segjax.data import images as image_files
from segjax.data.listing import IMAGE_SUFFIXES
from segjax.errors import UserError
from segjax.inference import collection
from segjax.inference.stored import stored


class Images(NamedTuple):
    """The images of a command."""

    sources: Mapping[str, collection.Image]
    """What is predicted, by its path; images of a split have none and get one."""
    names: Mapping[str, str]
    """The name of the results, by path."""
    skipped: list[str]
    """Images of formats that cannot be read."""
    split: dict[str, Any] | None
    """Data set, split and fingerprint; None for files."""


def of_files(arguments: Sequence[str], output: Path) -> Images:
    """Files, folders, globs and lists, without results in ``output``.

    Raises:
      UserError: no image is left.
    """
    paths, skipped = list_images(arguments, output)
    names = prediction_files.output_names(paths)
    return Images({path: path for path in paths}, names, skipped, None)


def of_split(config: ConfigDict, split: str, workdir: Path) -> Images:
    """The images of a split, as training reads them but for ``config.data.resize``.

    Results are called as the ids, or as their last parts if these are unique.

    Raises:
      UserError: anything wrong with the data, or classes that the run does not have.
    """
    config = config.copy_and_resolve_references()
    config.data.resize = (0, 0)  # as for files, the predictor resizes
    source, info = datasets.load(config.data, split)
    workdir_lib.check_same_classes(workdir_lib.read_dataset(workdir), info)
    ids = prediction_files.ids_of(source, config.threads)
    last = [name.rpartition("/")[2] for name in ids]
    short = last if len(set(last)) == len(ids) else [i.replace("/", "_") for i in ids]
    paths = [f"/{info.name}:{split}/{name}" for name in ids]
    sources = {
        path: stored(source, i, name=path, size=size)
        for i, (path, size) in enumerate(zip(paths, source.sizes, strict=True))
    }
    facts = {"dataset": info.name, "split": split}
    facts["fingerprint"] = datasets.fingerprint(source)
    return Images(sources, dict(zip(paths, short, strict=True)), [], facts)


def list_images(arguments: Sequence[str], output: Path) -> tuple[list[str], list[str]]:
    """The images named, each once, without results of this program; those skipped.

    Skipped images are of formats that cannot be read; other files are only mentioned.

    Raises:
      UserError: no image is left.
    """
    listing = image_files.list_images(arguments)
    # a.png and ./a.png are one image.
    unique = list({Path(path).absolute(): path for path in listing.images}.values())
    paths = prediction_folder.without_own_outputs(unique, output)
    if left_out := len(unique) - len(paths):
        cli.log(f"{left_out} files left out: they are results of experiments.predict")
    if not paths:
        raise UserError(
            f"{arguments[0]}: only results of experiments.predict there, no images to "
            "segment"
        )
    skipped = prediction_folder.without_own_outputs(listing.skipped, output)
    if skipped:
        more = f" and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        cli.log(
            f"skipped, because they are not read as images: {', '.join(skipped[:5])}"
            f"{more}; readable are {', '.join(IMAGE_SUFFIXES)}"
        )
    return paths, [path for path in skipped if _is_picture(path)]


def _is_picture(path: str) -> bool:
    """Whether a file is an image by its name, of a format that may not be readable."""
    kind = mimetypes.guess_type(path)[0] or ""
    return kind.startswith("image/") or Path(path).suffix.lower() in _PICTURES


_PICTURES = (".heic", ".heif", ".jxl", ".dng", ".cr2", ".nef", ".arw", ".exr")
