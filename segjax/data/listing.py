"""Which files are images: one rule for folders, globs and lists."""

import glob
import os
from collections.abc import Iterable
from typing import NamedTuple

from segjax import files
from segjax.data.decoding import IMAGE_SUFFIXES
from segjax.errors import UserError

_SYSTEM_FILES = ("desktop.ini", "ehthumbs.db", "icon\r", "thumbs.db")


class Listing(NamedTuple):
    """What ``list_images`` found."""

    images: list[str]
    skipped: list[str]
    """Files of the folders and globs that are not taken for images."""


def list_images(paths: Iterable[str | os.PathLike]) -> Listing:
    """Expands files, folders (their images, not those of subfolders), globs and lists.

    In folders and globs, the files with one of ``IMAGE_SUFFIXES`` (in any case) are
    images; all others are returned as skipped, but for hidden files and those that
    systems leave in folders.  Files that are named one by one, in ``paths`` or in a
    list, are images whatever their suffix.

    Args:
      paths: what a user typed; ``**`` in a glob descends into folders. ``@FILE`` is a
        text file with one path per line, which need not exist; blank lines and lines
        that start with # are left out.

    Returns:
      Paths in the order given, those of one folder or glob sorted by name, each once.

    Raises:
      UserError: something that does not exist or holds no image.
    """
    images: dict[str, None] = {}
    skipped: dict[str, None] = {}
    for typed in paths:
        argument = os.fspath(typed)
        path = os.path.expanduser(argument)
        others: list[str] = []
        if "://" in argument and not argument.startswith("@"):
            raise UserError(
                f"{argument}: found a URL; expected images on this machine: copy them, "
                "or mount the bucket"
            )
        if argument.startswith("@"):
            names = _read_list(os.path.expanduser(argument[1:]))
        elif os.path.isfile(path):
            names = [path]
        elif os.path.isdir(path):
            names, others = split_folder(path)
            names = [os.path.join(path, name) for name in names]
            others = [os.path.join(path, name) for name in others]
        else:
            matches = sorted(glob.glob(path, recursive=True))
            names = [name for name in matches if is_image_name(name)]
            others = [name for name in matches if _is_skipped(name)]
        if not names:
            unread = f" ({_first(others)} is not read)" if others else ""
            raise UserError(
                f"{argument}: no image there{unread}; expected a file, a folder or a "
                f"glob of {', '.join(IMAGE_SUFFIXES)} files"
            )
        images |= dict.fromkeys(names)
        skipped |= dict.fromkeys(others)
    return Listing(list(images), [name for name in skipped if name not in images])


def split_folder(folder: str | os.PathLike) -> tuple[list[str], list[str]]:
    """Sorted names of the images of a folder, and of the files that are skipped."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(
            f"{os.fspath(folder)}: cannot be read ({error.strerror}); expected a "
            "folder of images"
        ) from error
    images = [name for name in names if is_image_name(name)]
    return images, [n for n in names if _is_skipped(os.path.join(folder, n))]


def is_image_name(path: str | os.PathLike) -> bool:
    """Whether the name is that of an image: a known suffix, and not hidden."""
    name = os.path.basename(path)
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def _is_skipped(path: str) -> bool:
    name = os.path.basename(path)
    ignored = name.startswith(".") or name.lower() in _SYSTEM_FILES
    return not ignored and not is_image_name(name) and os.path.isfile(path)


def _first(names: list[str]) -> str:
    return os.path.basename(names[0])


def _read_list(path: str) -> list[str]:
    lines = files.read_text(path, "a list of images, one path per line").splitlines()
    lines = [line.strip() for line in lines]
    return [os.path.expanduser(s) for s in lines if s and not s.startswith("#")]
