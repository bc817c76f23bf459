"""Which files of the user's own data belong together, and to which split."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from segjax import files
from segjax.data.listing import IMAGE_SUFFIXES, split_folder
from segjax.errors import UserError

LAYOUT = "ROOT/images/STEM.png (or jpg, tif, bmp, webp) and ROOT/masks/STEM.png"
LISTS = {
    "train": ("train.txt",),
    "validation": ("val.txt", "validation.txt"),
    "test": ("test.txt",),
}
"""Names of the list of each split."""
VALIDATION_SHARE = 0.2
_SMALL = 100
"""Below this number of images, the share of validation is exact."""


class Pair(NamedTuple):
    """An image and its mask."""

    stem: str
    image: str
    """Path."""
    mask: str
    """Path."""


class Files(NamedTuple):
    """The files of a folder that are used."""

    pairs: tuple[Pair, ...]
    """Sorted by stem."""
    splits: dict[str, tuple[int, ...]]
    """Positions in ``pairs`` by split: "train", "validation", perhaps "test"."""
    notes: tuple[str, ...]
    """Notes for the user, such as files that are not used."""


def find(folder: Path) -> Files:
    """Pairs images with masks and divides them into splits.

    Every image that is trained on or validated needs a mask.  Without lists that is
    every image and every mask needs an image, too; with both lists, the images in
    neither are left out.

    Raises:
      UserError: anything that does not fit, with what to do about it.
    """
    for name in ("images", "masks"):
        if not (folder / name).is_dir():
            raise _missing_folder(folder, name)
    names, skipped = split_folder(folder / "images")
    images = _by_stem(folder / "images", names)
    if not images:
        raise _no_images(folder, skipped)
    names, others = split_folder(folder / "masks")
    pngs = [name for name in names if name.lower().endswith(".png")]
    masks = _by_stem(folder / "masks", pngs)
    others += [name for name in names if name not in pngs]

    splits = _splits(folder, images)
    unlisted = sorted(
        images.keys() - {stem for part in splits.values() for stem in part}
    )
    notes = [
        _note(skipped, "files of images/ are of a format that is not read"),
        _note(unlisted, "images are in no list"),
    ]
    if "test" in splits:  # often published without labels
        unlabeled = [stem for stem in splits["test"] if stem not in masks]
        splits["test"] = tuple(stem for stem in splits["test"] if stem in masks)
        notes.append(_note(unlabeled, "images of test.txt have no mask"))
        if not splits["test"]:
            del splits["test"]
    used = sorted({stem for part in splits.values() for stem in part})
    alone = [stem for stem in used if stem not in masks]
    if alone:
        raise _no_mask(folder, images, masks=masks, alone=alone, others=others)
    stray = sorted(masks.keys() - images.keys())
    if stray and not _both_lists(folder):
        raise UserError(
            f"folder: {len(stray)} of {len(masks)} masks have no image, first "
            f"masks/{masks[stray[0]]}; expected {folder / 'images' / stray[0]}.png (or "
            "jpg, tif, bmp, webp), or remove the mask"
        )
    position = {stem: i for i, stem in enumerate(used)}
    return Files(
        pairs=tuple(
            Pair(
                stem,
                str(folder / "images" / images[stem]),
                str(folder / "masks" / masks[stem]),
            )
            for stem in used
        ),
        splits={
            name: tuple(position[stem] for stem in stems)
            for name, stems in splits.items()
        },
        notes=tuple(filter(None, notes)),
    )


def _note(names: list[str], what: str) -> str:
    return f"{len(names)} {what}, first {names[0]}: left out" if names else ""


def _both_lists(folder: Path) -> bool:
    """Whether the images to train on and to validate are listed, perhaps not all."""
    return all(
        any((folder / name).is_file() for name in LISTS[split])
        for split in ("train", "validation")
    )


def _by_stem(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """File names by stem."""
    by_stem: dict[str, str] = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        if stem in by_stem:
            raise UserError(
                f"folder: {folder} holds both {by_stem[stem]} and {name}, which have "
                "the same stem; image and mask belong together by stem: remove one"
            )
        by_stem[stem] = name
    return by_stem


def _missing_folder(folder: Path, name: str) -> UserError:
    other = {"images": "JPEGImages", "masks": "SegmentationClass"}[name]
    advice = ""
    if (folder / other).is_dir():  # PASCAL VOC, and what CVAT exports
        advice = f"; {other} is there: rename or link it as {name}"
    inner = sorted(path.parent.name for path in folder.glob(f"*/{name}"))
    if not advice and inner:
        advice = (
            f"; {inner[0]}/{name} is there: set --config.data.root to "
            f"{folder / inner[0]}, or put the files of all splits into one folder and "
            "list the stems of each in train.txt and val.txt"
        )
    return UserError(f"folder: {folder / name} is missing; expected {LAYOUT}{advice}")


def _no_images(folder: Path, skipped: list[str]) -> UserError:
    images = folder / "images"
    inner = sorted(path.name for path in images.iterdir() if path.is_dir())
    advice = ""
    if inner:
        advice = (
            f" but folders, first {inner[0]}; put the files of all of them into "
            "images/ and masks/, and list the stems of each split in train.txt and "
            "val.txt"
        )
    elif skipped:
        advice = f"; {skipped[0]} is not read, expected {', '.join(IMAGE_SUFFIXES)}"
    return UserError(f"folder: {images} holds no images{advice}")


def _no_mask(
    folder: Path,
    images: dict[str, str],
    *,
    masks: dict[str, str],
    alone: list[str],
    others: list[str],
) -> UserError:
    stem = alone[0]
    advice = "; or list the images that have one in train.txt and val.txt"
    near = [s for s in masks if s not in images and stem in s]
    same = [name for name in others if os.path.splitext(name)[0] == stem]
    inner = sorted(p.name for p in (folder / "masks").iterdir() if p.is_dir())
    if near:
        advice = (
            f"; masks/{masks[near[0]]} is there: a mask has the stem of its image, "
            f"rename it to {stem}.png"
        )
    elif same:
        advice = f"; masks/{same[0]} is there: masks are PNGs, which keep every value"
    elif not masks and inner:
        advice = f"; masks/{inner[0]} is a folder: put its files into masks/"
    return UserError(
        f"folder: {len(alone)} of {len(images)} images have no mask, first "
        f"images/{images[stem]}; expected {folder / 'masks' / stem}.png{advice}"
    )


def _splits(folder: Path, images: dict[str, str]) -> dict[str, tuple[str, ...]]:
    """Stems by split.

    Lists if there are any; with only one of train and validation, the other is all the
    rest.  Nothing in test.txt ever trains or validates.  Without lists, images are
    divided by the hash of their stem: see ``_by_hash``.
    """
    lists = {}
    for split, names in LISTS.items():
        paths = [folder / name for name in names if (folder / name).is_file()]
        if len(paths) > 1:
            raise UserError(
                f"folder: {folder} holds {' and '.join(p.name for p in paths)}; keep "
                "one"
            )
        if paths:
            lists[split] = paths[0]
    splits = {split: _listed(path, images) for split, path in lists.items()}
    pairs = [("train", "validation"), ("train", "test"), ("validation", "test")]
    for first, second in pairs:
        both = sorted(set(splits.get(first, ())) & set(splits.get(second, ())))
        if both:
            raise UserError(
                f"folder: {len(both)} images are in both {lists[first].name} and "
                f"{lists[second].name}, first {both[0]}; scores on images that were "
                "trained on or selected by mean nothing: list each once"
            )
    taken = {stem for stems in splits.values() for stem in stems}
    rest = tuple(stem for stem in sorted(images) if stem not in taken)
    if "train" in splits or "validation" in splits:
        splits = {"train": rest, "validation": rest} | splits
    else:
        splits |= _by_hash(rest)
    for split in ("train", "validation", "test"):
        if split in splits and not splits[split]:
            raise UserError(
                f"folder: no image is left for the {split} split of {folder} "
                f"({len(images)} in all); add images or list fewer in the other splits"
            )
    order = ("train", "validation", "test")
    return {split: splits[split] for split in order if split in splits}


def _by_hash(stems: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """Training and validation without lists.

    The images whose stems have the lowest hashes validate: from ``_SMALL`` images on
    those below ``VALIDATION_SHARE``, so that adding images moves no others; below, so
    many that the share is right, as the hashes of few images may fall anywhere.
    """
    hashes = {stem: _hash(stem) for stem in stems}
    if len(stems) < _SMALL:
        count = max(int(VALIDATION_SHARE * len(stems) + 0.5), 1)
        validation = set(sorted(stems, key=hashes.__getitem__)[:count])
    else:
        validation = {stem for stem in stems if hashes[stem] < VALIDATION_SHARE}
    return {
        "train": tuple(stem for stem in stems if stem not in validation),
        "validation": tuple(stem for stem in stems if stem in validation),
    }


def _hash(stem: str) -> float:
    """Uniform in [0, 1)."""
    digest = hashlib.sha256(os.fsencode(stem)).digest()
    return int.from_bytes(digest[:6]) / 2**48


def _listed(path: Path, images: dict[str, str]) -> tuple[str, ...]:
    """The stems that a list of stems or file names names."""
    known = {name: stem for stem, name in images.items()} | {s: s for s in images}
    text = files.read_text(path, "a list of images, a stem or file name per line")
    lines = [
        line.strip().replace("\\", "/").split("/")[-1] for line in text.split("\n")
    ]
    names = [line for line in lines if line in known or line[:1] not in ("", "#")]
    for name in names:  # images may have been stored in another format since
        stem, suffix = os.path.splitext(name)
        if suffix.lower() in IMAGE_SUFFIXES and stem in known:
            known.setdefault(name, known[stem])
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"{path}: {len(unknown)} of {len(names)} entries name no image of "
            f"{path.parent / 'images'}, first {unknown[0]!r}; expected a stem or file "
            "name per line"
        )
    stems = tuple(known[name] for name in names)
    seen = set()
    for name, stem in zip(names, stems):
        if stem in seen:
            raise UserError(f"{path}: lists {name!r} twice; list each image once")
        seen.add(stem)
    return stems
