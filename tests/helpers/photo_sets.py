"""The official folders of VOC 2012, SBD, PASCAL-Context and COCO in miniature."""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from segjax.data.images import voc_palette

H, W = 32, 40
CONTEXT_LABELS = {
    1: "accordion",
    2: "aeroplane",
    9: "bag",
    23: "bicycle",
    80: "cloth",
    258: "motor bike",
}
"""Some lines of labels.txt; ``make_context`` adds the other classes."""


def photo(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (H, W, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=95)


def palette_png(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(ids, "P")
    image.putpalette(voc_palette(256).ravel().tolist())
    image.save(path)


def gray_png(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), ids)


def lines(path: Path, names) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))


def voc_mask(k: int) -> np.ndarray:
    """Background, a person with a contour, and an object of class k."""
    ids = np.zeros((H, W), np.uint8)
    ids[4:20, 4:20], ids[5:19, 5:19] = 255, 15
    ids[20:, 20:] = k
    return ids


def objects(ids: np.ndarray) -> np.ndarray:
    """Each class is one object, and contours are marked as in the masks."""
    values = np.unique(ids[(ids > 0) & (ids < 255)])
    numbers = np.zeros(256, np.uint8)
    numbers[values], numbers[255] = np.arange(1, len(values) + 1), 255
    return numbers[ids]


VOC = {"train": ("2007_b", "2007_a", "2007_e"), "val": ("2007_c", "2007_d")}


def make_voc(root: Path, test: bool = False) -> Path:
    """VOCdevkit/VOC2012; the class of the object differs from image to image."""
    home = root / "VOCdevkit" / "VOC2012"
    for name, ids in VOC.items():
        lines(home / f"ImageSets/Segmentation/{name}.txt", ids)
        for stem in ids:
            k = ord(stem[-1]) - ord("a") + 8
            photo(home / f"JPEGImages/{stem}.jpg", k)
            palette_png(home / f"SegmentationClass/{stem}.png", voc_mask(k))
            palette_png(home / f"SegmentationObject/{stem}.png", objects(voc_mask(k)))
    if test:
        photo(home / "JPEGImages/2008_t.jpg", 99)
        lines(home / "ImageSets/Segmentation/test.txt", ["2008_t"])
    return home


SBD = {"train": ("2007_a", "2008_x"), "val": ("2007_c", "2008_y")}
"""One image of VOC's training list, one of its validation list, two new ones."""


def sbd_mask(stem: str) -> np.ndarray:
    ids = voc_mask(20 if stem in ("2007_a", "2007_c") else 7)
    ids[ids == 255] = 0  # SBD has no void
    return ids


def make_sbd(root: Path) -> Path:
    """benchmark_RELEASE/dataset; only 2008_y has its image there."""
    home = root / "benchmark_RELEASE" / "dataset"
    (home / "cls").mkdir(parents=True)
    (home / "inst").mkdir()
    for name, ids in SBD.items():
        lines(home / f"{name}.txt", ids)
        for stem in ids:
            mask = sbd_mask(stem)
            savemat(home / f"cls/{stem}.mat", {"GTcls": {"Segmentation": mask}})
            savemat(
                home / f"inst/{stem}.mat", {"GTinst": {"Segmentation": objects(mask)}}
            )
    photo(home / "img/2008_y.jpg", 51)
    photo(root / "VOCdevkit/VOC2012/JPEGImages/2008_x.jpg", 50)
    return home


CONTEXT = {"train": ("2008_b", "2008_a"), "val": ("2008_c",)}


def context_map() -> np.ndarray:
    """LabelMap: the labels of ``CONTEXT_LABELS`` in stripes, and no label below."""
    ids = np.zeros((H, W), np.uint16)
    for row, raw in enumerate(CONTEXT_LABELS):
        ids[4 * row : 4 * row + 4] = raw
    return ids


def make_context(root: Path, form: str) -> Path:
    """VOC2010 with the maps as MATLAB files or as the PNGs of MMSegmentation."""
    from segjax.data.datasets.pascal_context import CLASSES, LABELS

    voc = root / "VOC2010"
    folder = "Main" if form == "mat" else "SegmentationContext"
    for name, ids in CONTEXT.items():
        lines(voc / f"ImageSets/{folder}/{name}.txt", ids)
        for k, stem in enumerate(ids):
            photo(voc / f"JPEGImages/{stem}.jpg", k)
            if form == "mat":
                (root / "trainval").mkdir(exist_ok=True)
                savemat(root / f"trainval/{stem}.mat", {"LabelMap": context_map()})
            else:
                ids = np.arange(H * W, dtype=np.uint8).reshape(H, W) % 60
                ids[0, :] = 255
                gray_png(voc / f"SegmentationClassContext/{stem}.png", ids)
    others = {LABELS.get(name, name) for name in CLASSES} - {
        name.replace(" ", "") for name in CONTEXT_LABELS.values()
    }
    labels = CONTEXT_LABELS | {300 + k: name for k, name in enumerate(sorted(others))}
    if form == "mat":
        lines(root / "labels.txt", [f"{raw}: {name}" for raw, name in labels.items()])
    return voc


def coco_json(names: dict[int, str], annotations: list[dict]) -> dict:
    from segjax.data.datasets.coco import CATEGORIES

    return {
        "categories": [{"id": k, "name": name} for k, name in CATEGORIES.items()],
        "images": [
            {"id": k, "file_name": name, "height": H, "width": W}
            for k, name in names.items()
        ],
        "annotations": [{"id": 100 + k} | each for k, each in enumerate(annotations)],
    }


def rectangle(top: int, left: int, bottom: int, right: int) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def make_coco(root: Path) -> Path:
    """Images and outlines: person 1, cat 17, toothbrush 90, and a crowd of people."""
    (root / "annotations").mkdir(parents=True)
    counts = np.zeros((H, W), np.uint8)
    counts[20:, 16:] = 1  # also where the person is
    flat = counts.ravel(order="F")
    runs = np.diff([0, *(np.flatnonzero(np.diff(flat)) + 1), flat.size]).tolist()
    annotations = [
        # The small cat is first, but lies on the person.
        {"image_id": 7, "category_id": 17, "segmentation": [rectangle(8, 8, 16, 16)]},
        {
            "image_id": 7,
            "category_id": 1,
            "segmentation": [rectangle(4, 4, 28, 20), rectangle(0, 30, 4, 36)],
        },
        {
            "image_id": 7,
            "category_id": 1,
            "iscrowd": 1,
            "segmentation": {"size": [H, W], "counts": runs},
        },
        {"image_id": 5, "category_id": 90, "segmentation": [rectangle(0, 0, H, W)]},
    ]
    parts = {
        "train2017": ({7: "000000000007.jpg", 5: "000000000005.jpg"}, annotations),
        "val2017": ({9: "000000000009.jpg"}, []),
    }
    for part, (names, some) in parts.items():
        path = root / "annotations" / f"instances_{part}.json"
        path.write_text(json.dumps(coco_json(names, some)))
        for k, name in names.items():
            photo(root / part / name, k)
            ids = np.full((H, W), 255, np.uint8)
            ids[:8], ids[8:16], ids[16:24] = 0, 16, 181
            gray_png(root / "stuffthingmaps" / part / name.replace("jpg", "png"), ids)
    return root
