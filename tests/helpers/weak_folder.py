"""A folder of images of red cats and blue dogs on gray ground, with masks."""

from pathlib import Path

import numpy as np
from image_folders import lists, make_folder, write

CLASSES = ("background", "cat", "dog")
SIDE = 16


def masks() -> dict[str, np.ndarray]:
    """Eight masks: a cat, a dog, or both, which touch; some void pixels."""
    found = {}
    for i in range(8):
        label = np.zeros((SIDE, SIDE), np.uint8)
        if i % 3 != 1:
            label[2:9, 1 : 6 + i % 2] = 1
            label[2, 1] = 0
        if i % 3 != 0:
            label[6:14, 6:13] = 2
            label[6, 12] = 0
        label[15, 3] = 255
        found[f"i{i}"] = label
    return found


def make(root: Path) -> Path:
    """Writes images, masks and lists: i0 to i5 train, i6 and i7 validate."""
    make_folder(root, masks())
    for stem, label in masks().items():
        image = np.full((SIDE, SIDE, 3), 40, np.uint8)
        image[label == 1], image[label == 2] = (200, 60, 60), (60, 60, 200)
        write(root / "images" / f"{stem}.png", image)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    lists(root, "".join(f"i{i}\n" for i in range(6)), "i6\ni7\n")
    return root
