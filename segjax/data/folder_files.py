"""Which files of the user's own data belong together, and to which split."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from segjax import files
from segjax.data.folder_layout import (
    LISTS,
    FolderLayout,
    Part,
    recognize,
    unread_folders,
)
from segjax.data.listing import IMAGE_SUFFIXES, split_folder
from segjax.data.splits import by_hash
from segjax.errors import UserError

_MASK_SUFFIX = "_mask"
"""Some programs add it to the stem of the image."""


class Pair(NamedTuple):
    """An image and its mask."""

    stem: str
    """Behind the name of the split's folder, if it lies in one: "train/STEM"."""
    image: str
    """Path."""
    mask: str
    """Path."""
    instances: str = ""
    """Path of the instance map, "" if none was asked for."""

    @property
    def paths(self) -> list[str]:
        """Of all its files."""
        return [path for path in self[1:] if path]


class Files(NamedTuple):
    """The files of a folder that are used."""

    pairs: tuple[Pair, ...]
    """Sorted by stem."""
    splits: dict[str, tuple[int, ...]]
    """Positions in ``pairs`` by split: "train", "validation", perhaps "test"."""
    notes: tuple[str, ...]
    """Notes for the user, such as files that are not used."""


def find(folder: Path, instances: bool = False) -> Files:
    """Pairs images with masks and divides them into splits; opens no image.

    The lists of splits come first: where there is one of training or validation,
    images that no list names need no mask. Without, every image needs a mask and every
    mask an image. With ``instances``, every image that is used needs an instance map.

    Raises:
      UserError: anything that does not fit, with what to do about it.
    """
    layout = recognize(folder)
    images, skipped = _collect(folder, layout, "images")
    if not images:
        raise _no_images(folder, layout.parts[0].images, skipped)
    masks, others = _collect(folder, layout, "masks")
    masks, suffix = _without_suffix(masks, images)
    splits = _splits(layout, images, masks)
    used = sorted({stem for part in splits.values() for stem in part})
    unlisted = sorted(images.keys() - set(used))
    notes = [
        layout.note,
        suffix,
        _note(skipped, "files are of a format that is not read"),
        _note(unread_folders(folder, layout), "folders of images are not read"),
        _note(_unread_lists(layout), "lists are not read"),
        _note(unlisted, "images are in no list"),
    ]
    if "test" in splits:  # often published without labels
        unlabeled = [stem for stem in splits["test"] if stem not in masks]
        splits["test"] = tuple(stem for stem in splits["test"] if stem in masks)
        notes.append(_note(unlabeled, "images of the test split have no mask"))
        used = [stem for stem in used if stem not in set(unlabeled)]
        if not splits["test"]:
            del splits["test"]
    alone = [stem for stem in used if stem not in masks]
    if alone:
        raise _no_mask(
            folder, layout, images=images, masks=masks, alone=alone, others=others
        )
    stray = sorted(masks.keys() - images.keys())
    if stray and not _both_lists(layout.lists):
        raise _no_image(folder, layout, masks=masks, stray=stray)
    maps: dict[str, str] = {}
    if instances:
        maps, _ = _collect(folder, layout, "instances")
        if without := [stem for stem in used if stem not in maps]:
            target = _target(layout, without[0], "instances")
            raise UserError(
                f"folder: {len(without)} of {len(used)} images have no instance map, "
                f"first {images[without[0]]}; expected {folder / target} (16-bit gray "
                "PNG, 0 = no instance), or --config.data.instances=False"
            )
    position = {stem: i for i, stem in enumerate(used)}
    return Files(
        pairs=tuple(
            Pair(
                stem,
                str(folder / images[stem]),
                str(folder / masks[stem]),
                str(folder / maps[stem]) if instances else "",
            )
            for stem in used
        ),
        splits={
            name: tuple(position[stem] for stem in stems)
            for name, stems in splits.items()
        },
        notes=tuple(filter(None, notes)),
    )


def _collect(
    folder: Path, layout: FolderLayout, kind: str
) -> tuple[dict[str, str], list[str]]:
    """Files of one kind by stem, relative to the folder, and those that are not read.

    Args:
      folder: the root.
      layout: of it.
      kind: a field of ``Part``: "images", or "masks" and "instances", which are PNGs.
    """
    by_stem: dict[str, str] = {}
    skipped: list[str] = []
    for part in layout.parts:
        within: str = getattr(part, kind)
        if not (folder / within).is_dir():
            continue
        names, others = split_folder(folder / within)
        if kind != "images":
            others += [name for name in names if not name.lower().endswith(".png")]
            names = [name for name in names if name.lower().endswith(".png")]
        by_stem |= _by_stem(folder / within, names, part=part, within=within)
        skipped += [f"{within}/{name}" for name in others]
    return by_stem, skipped


def _without_suffix(
    masks: dict[str, str], images: Mapping[str, str]
) -> tuple[dict[str, str], str]:
    """Masks by the stems of their images, where all are called STEM_mask."""
    every = all(stem.endswith(_MASK_SUFFIX) for stem in masks)
    if not masks or not every or masks.keys() & images.keys():
        return masks, ""
    note = f"the masks are called STEM{_MASK_SUFFIX}.png"
    return {s.removesuffix(_MASK_SUFFIX): name for s, name in masks.items()}, note


def _unread_lists(layout: FolderLayout) -> list[str]:
    """Other lists beside those that count, in the folder that holds nothing else."""
    known = {name for names in LISTS.values() for name in names}
    if layout.lists.name != "Segmentation":
        return []
    return sorted(p.name for p in layout.lists.glob("*.txt") if p.name not in known)


def _target(layout: FolderLayout, stem: str, kind: str) -> str:
    """Where a mask or an instance map of an image is expected."""
    name, _, last = stem.rpartition("/")
    part = next(part for part in layout.parts if part.name == name)
    return f"{getattr(part, kind)}/{last}.png"


def _note(names: list[str], what: str) -> str:
    return f"{len(names)} {what}, first {names[0]}: left out" if names else ""


def _both_lists(folder: Path) -> bool:
    """Whether the images to train on and to validate are listed, perhaps not all."""
    return all(
        any((folder / name).is_file() for name in LISTS[split])
        for split in ("train", "validation")
    )


def _by_stem(
    folder: Path, names: Iterable[str], *, part: Part, within: str
) -> dict[str, str]:
    """Paths relative to the root, by stem."""
    by_stem: dict[str, str] = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        if stem in by_stem:
            raise UserError(
                f"folder: {folder} holds both {by_stem[stem]} and {name}, which have "
                "the same stem; image and mask belong together by stem: remove one"
            )
        by_stem[stem] = name
    head = f"{part.name}/" if part.name else ""
    return {head + stem: f"{within}/{name}" for stem, name in by_stem.items()}


def _no_images(folder: Path, name: str, skipped: list[str]) -> UserError:
    inner = sorted(path.name for path in (folder / name).iterdir() if path.is_dir())
    advice = ""
    if inner:
        advice = (
            f" but folders, first {inner[0]}; put the files of all of them into "
            "images/ and masks/, and list the stems of each split in train.txt and "
            "val.txt, or call the folders train and val"
        )
    elif skipped:
        advice = f"; {skipped[0]} is not read, expected {', '.join(IMAGE_SUFFIXES)}"
    return UserError(f"folder: {folder / name} holds no images{advice}")


def _no_mask(
    folder: Path,
    layout: FolderLayout,
    *,
    images: dict[str, str],
    masks: dict[str, str],
    alone: list[str],
    others: list[str],
) -> UserError:
    stem = alone[0]
    target = _target(layout, stem, "masks")
    within = target.rpartition("/")[0]
    advice = "; or list the images that have one in train.txt and val.txt"
    near = [s for s in masks if s not in images and stem in s]
    same = [name for name in others if os.path.splitext(name)[0] == target[:-4]]
    inner = sorted(p.name for p in (folder / within).iterdir() if p.is_dir())
    if near:
        advice = (
            f"; {masks[near[0]]} is there: a mask has the stem of its image, rename it "
            f"to {target.rpartition('/')[2]}"
        )
    elif same:
        advice = f"; {same[0]} is there: masks are PNGs, which keep every value"
    elif not masks and inner:
        advice = f"; {within}/{inner[0]} is a folder: put its files into {within}/"
    return UserError(
        f"folder: {len(alone)} of {len(images)} images have no mask, first "
        f"{images[stem]}; expected {folder / target}{advice}"
    )


def _no_image(
    folder: Path, layout: FolderLayout, *, masks: dict[str, str], stray: list[str]
) -> UserError:
    target = _target(layout, stray[0], "images")
    return UserError(
        f"folder: {len(stray)} of {len(masks)} masks have no image, first "
        f"{masks[stray[0]]}; expected {folder / target} (or jpg, tif, bmp, webp), or "
        "remove the mask"
    )


def _splits(
    layout: FolderLayout, images: dict[str, str], masks: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Stems by split: by folders, lists or hashes.

    Raises:
      UserError: a list names no image or one twice, an image is in two lists, or a
        split is empty.
    """
    if layout.parts[0].split:
        splits = _by_part(layout, images)
    else:
        splits = _by_list(layout.lists, images, masks)
    for split in ("train", "validation", "test"):
        if split in splits and not splits[split]:
            raise UserError(
                f"folder: no image is left for the {split} split of {layout.lists} "
                f"({len(images)} in all); add images or list fewer in the other splits"
            )
    order = ("train", "validation", "test")
    return {split: splits[split] for split in order if split in splits}


def _by_list(
    folder: Path, images: dict[str, str], masks: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Stems by the lists of a folder, if there are any.

    With only one list of train and validation, the other split is all the rest that
    have a mask.  Nothing in test.txt ever trains or validates.  Without lists, images
    are divided by the hash of their stem: see ``splits.by_hash``.
    """
    lists: dict[str, Path] = {}
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
        rest = tuple(stem for stem in rest if stem in masks)
        return {"train": rest, "validation": rest} | splits
    return splits | by_hash(rest)


def _by_part(
    layout: FolderLayout, images: Mapping[str, str]
) -> dict[str, tuple[str, ...]]:
    """Stems by the folder of the split; without one of validation, by their hash."""
    splits: dict[str, tuple[str, ...]] = {}
    for part in layout.parts:
        stems = [stem for stem in images if stem.startswith(f"{part.name}/")]
        splits[part.split] = tuple(sorted(stems))
    if "validation" not in splits:
        splits |= by_hash(splits["train"])
    return splits


def _listed(path: Path, images: Mapping[str, str]) -> tuple[str, ...]:
    """The stems that a list of stems or file names names."""
    known = {os.path.basename(name): stem for stem, name in images.items()}
    known |= {stem: stem for stem in images}
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
