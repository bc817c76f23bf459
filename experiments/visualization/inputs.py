"""The images that are looked at, and their labels: of files, or of a split."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from experiments.shared import cli, prediction_files, prediction_images
from segjax import errors, files, inference
from segjax import workdir as workdir_lib
from segjax.data import datasets, masks
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference import collection
from segjax.inference.stored import Stored
from segjax.labels import VOID


class Images(NamedTuple):
    """Images by what they are called in messages."""

    sources: Mapping[str, str | Stored]
    names: Mapping[str, str]
    """The name of the picture of each."""
    skipped: list[str]
    """Images of formats that cannot be read."""
    source: datasets.Source | None
    """The split that they are the first images of; None for files."""


def of_files(arguments: Sequence[str], output: Path) -> Images:
    """Files, folders, globs and lists, without what is in ``output``.

    Raises:
      UserError: no image is left.
    """
    paths, skipped = prediction_images.list_images(arguments, output)
    inside = [p for p in paths if Path(p).absolute().is_relative_to(output)]
    paths = [path for path in paths if path not in inside]
    if not paths:
        raise UserError(f"{arguments[0]}: only pictures in --output={output} there")
    names = prediction_files.output_names(paths)
    return Images({path: path for path in paths}, names, skipped, None)


def of_split(config: ConfigDict, split: str, *, workdir: Path, number: int) -> Images:
    """The first images of a split, but for ``config.data.resize`` as training has them.

    Args:
      config: of the run.
      split: of its data set.
      workdir: of the run.
      number: of images; 0 for all.

    Raises:
      UserError: anything wrong with the data, or classes that the run does not have.
    """
    config = config.copy_and_resolve_references()
    config.data.resize = (0, 0)  # the network's input is resized, not the picture
    source, info = datasets.load(config.data, split)
    workdir_lib.check_same_classes(workdir_lib.read_dataset(workdir), info)
    count = min(number or len(source), len(source))
    if count < len(source):
        cli.log(f"the first {count} of the {len(source)} images; --number=0 takes all")
    sources, names = {}, {}
    for i in range(count):
        name = str(source[i]["id"])
        path = f"/{info.name}:{split}/{name}"

        def read(i: int = i) -> np.ndarray:
            return source[i]["image"]

        sources[path] = Stored(path, source.sizes[i], read)
        names[path] = name.replace("/", "_")
    return Images(sources, names, [], source)


def read(
    image: str | Stored, *, channels: int, value_range: tuple[int, int]
) -> np.ndarray:
    """The pixels of an image as the network gets them, but for its size.

    Returns:
      uint8 [H, W, C].


    Raises:
      UserError: it cannot be read.
    """
    if isinstance(image, Stored):
        return image.read()
    return image_files.decode_image(image, channels, value_range=value_range)


def check_pixels(shape: Sequence[int], most: int) -> None:
    """Raises a UserError if an input of (H, W, ..) is too large for one piece."""
    height, width = shape[:2]
    if height * width > most:
        raise UserError(
            f"{height}x{width} pixels, which are more than --max_pixels={most}: reduce "
            "the image, or raise the limit"
        )


def check_stems(images: Images) -> None:
    """Raises a UserError if two images in files would have the same mask."""
    stems: dict[str, str] = {}
    for path in images.sources:
        first = stems.setdefault(Path(path).stem, path)
        if first != path:
            raise UserError(
                f"--labels: {first} and {path} would have the same mask; name images "
                "of one folder"
            )


def label_of(
    images: Images, index: int, *, folder: Path | None, classes: int
) -> np.ndarray | None:
    """The label map of an image, uint8 [H, W]; None if there is none.

    Args:
      images: of which it is one.
      index: of the image, in the order of ``images.sources``.
      folder: of masks called as the images are: PNGs of train ids; None: no labels of
        files. Those of a split are its own.
      classes: of the run.

    Raises:
      UserError: the mask is missing or cannot be read, or has a value that is no class.
    """
    if images.source is not None:
        return images.source[index]["label"]
    if folder is None:
        return None
    path = folder / f"{Path(list(images.sources)[index]).stem}.png"
    if not path.is_file():
        raise UserError(f"{path}: not found; expected the mask of the image")
    label, kind = masks.decode_mask(os.fspath(path))
    wrong = label[(label >= classes) & (label != VOID)] if kind != "color" else label
    if wrong.size:
        found = "colors" if kind == "color" else f"the value {wrong.reshape(-1)[0]}"
        raise UserError(
            f"{path}: has {found}, expected a palette or gray PNG of the train ids 0 "
            f"to {classes - 1}, {VOID} for void"
        )
    return label.astype(np.uint8)


def class_index(classes: Sequence[str], name: str, flag: str = "--class") -> int:
    """The index of a class that a user names, or gives as a number.

    Raises:
      UserError: no such class; names the nearest.
    """
    if name in classes:
        return list(classes).index(name)
    if name.isdecimal() and int(name) < len(classes):
        return int(name)
    raise errors.unknown(flag, name, classes)


def save(output: Path, kind: str, name: str, picture: np.ndarray) -> Path:
    """Writes a picture, uint8 [h, w, 3], as OUTPUT/KIND/NAME.png."""
    path = output / kind / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    with prediction_files.write_errors(path), files.atomic_write(path) as partial:
        partial.write_bytes(image_files.encode_png(picture))
    return path


def predicted(
    images: Images,
    segmenter: inference.Segmenter,
    *,
    limits: tuple[float, int],
    threads: int,
    outputs: Sequence[str] = ("labels",),
) -> Iterator[tuple[int, collection.Prediction | UserError]]:
    """The prediction of every image, or what is wrong with it, by its index.

    Args:
      images: all of them.
      segmenter: that predicts.
      limits: padding and max_pixels.
      threads: that decode.
      outputs: see ``collection.run``.
    """
    padding, max_pixels = limits
    sources = list(images.sources.values())
    plan = collection.plan(segmenter, sources, padding=padding, max_pixels=max_pixels)
    yield from plan.errors.items()
    for result in collection.run(segmenter, plan, outputs=outputs, threads=threads):
        failed = isinstance(result, collection.Failure)
        yield result.image_index, result.error if failed else result


def message(path: str, error: UserError) -> str:
    """What is wrong with an image, which the message names."""
    text = str(error)
    return text if path in text else f"{path}: {text}"
