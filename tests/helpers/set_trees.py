"""Official trees of published data sets in miniature."""

from pathlib import Path

import cv2
import numpy as np
from image_folders import H, W, rgb, write
from published_sets import write_tiff


def make_ade20k(root: Path) -> dict:
    home = root / "ADEChallengeData2016"
    for part, stems in {"training": ["t2", "t1"], "validation": ["v1"]}.items():
        for i, stem in enumerate(stems):
            write(home / f"images/{part}/{stem}.jpg", rgb(i, 6 + i))
            raw = np.full((6 + i, 8), 150, np.uint8)
            raw[0], raw[1] = 0, 1
            write(home / f"annotations/{part}/{stem}.png", raw)
    return {"name": "ade20k", "root": str(root)}


def make_kitti(root: Path, count: int = 5) -> dict:
    for i in range(count):
        name = f"{i:06d}_10.png"
        write(root / "training/image_2" / name, rgb(i))
        ids = np.full((6, 8), 26, np.uint16)
        ids[0], ids[1] = 11, 30
        write(root / "training/semantic" / name, ids.astype(np.uint8))
        write(
            root / "training/instance" / name, ids * 256 + np.arange(8, dtype=np.uint16)
        )
    write(root / "testing/image_2/000000_10.png", rgb(9))
    return {"name": "kitti_semantic", "root": str(root)}


CAMVID_FRAMES = {
    "train": ["0001TP_006690", "0001TP_008520", "0006R0_f00930", "0016E5_08190"],
    "validation": ["0016E5_07959", "0016E5_08159"],
    "test": ["0001TP_008550", "Seq05VD_f00000"],
}
CAMVID_LABEL = {  # row: color, its class of 11 and its name
    0: ((0, 0, 0), 255, None),
    1: ((192, 0, 128), 1, "Archway"),
    2: ((128, 0, 192), 3, "LaneMkgsDriv"),
    3: ((192, 0, 192), 10, "MotorcycleScooter"),
    4: ((64, 192, 0), 1, "Wall"),
    5: ((0, 0, 192), 4, "Sidewalk"),
}


def make_camvid720(root: Path) -> dict:
    colors = np.zeros((6, 8, 3), np.uint8)
    for row, (color, _, _) in CAMVID_LABEL.items():
        colors[row] = color
    for i, name in enumerate(sorted(sum(CAMVID_FRAMES.values(), []))):
        write(root / f"701_StillsRaw_full/{name}.png", rgb(i))
        write(root / f"LabeledApproved_full/{name}_L.png", colors)
    return {"name": "camvid720", "root": str(root)}


def isbi_slices(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, H, W), np.uint8)


def make_isbi(root: Path, form: str, n: int = 11, test: int = 2) -> None:
    volume, unlabeled = isbi_slices(n, 0), isbi_slices(test, 2)
    labels = np.where(isbi_slices(n, 1) > 100, 255, 0).astype(np.uint8)
    stacks = {"image": volume, "label": labels}
    if form == "tiff":
        root.mkdir(parents=True)
        cv2.imwritemulti(str(root / "train-volume.tif"), list(volume))
        cv2.imwritemulti(str(root / "train-labels.tif"), list(labels))
        cv2.imwritemulti(str(root / "test-volume.tif"), list(unlabeled))
        return
    for name, stack in stacks.items():
        for z, page in enumerate(stack):
            write(root / "membrane" / "train" / name / f"{z}.png", page)
    for z, page in enumerate(unlabeled):
        write(root / "membrane" / "test" / f"{z}.png", page)
        write(root / "membrane" / "test" / f"{z}_predict.png", page)  # not a slice


def cell_frame(seed: int, h: int = 6) -> np.ndarray:
    return rgb(seed, h)[:, :, 0]


def cell_masks(cells: int) -> np.ndarray:
    """Cells 5, 6, .. of 2x2 pixels side by side; the markers are 1, 2, ..."""
    numbers = np.zeros((6, 8), np.uint16)
    for k in range(cells):
        numbers[1:3, 3 * k : 3 * k + 2] = 5 + k
    return numbers


def cell_markers(cells: int) -> np.ndarray:
    return np.where(cell_masks(cells) > 0, cell_masks(cells) - 4, 0).astype(np.uint16)


def make_sequence(
    root: Path, name: str, gold: dict[int, int], *, silver: bool = False, count: int = 5
) -> dict:
    """Frames 000, 001, ..; every frame shows two cells, ``gold`` masks so many."""
    for t in range(count):
        write_tiff(root / name / f"t{t:03d}.tif", cell_frame(10 * int(name) + t))
        write_tiff(root / f"{name}_GT/TRA/man_track{t:03d}.tif", cell_markers(2))
        if silver:
            write_tiff(root / f"{name}_ST/SEG/man_seg{t:03d}.tif", cell_masks(2))
    for t, cells in gold.items():
        write_tiff(root / f"{name}_GT/SEG/man_seg{t:03d}.tif", cell_masks(cells))
    return {"name": "cell_tracking", "root": str(root)}
