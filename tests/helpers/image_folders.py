"""Tiny image files and folders of images and masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segjax.errors import UserError

H, W = 6, 8


def error_of(call, *args, **kwargs) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, array: np.ndarray) -> None:
    """An image file of RGB, RGBA or gray values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def rgb(seed: int, h: int = H, w: int = W) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (h, w, 3), np.uint8)


def cut(path: Path) -> None:
    """Leaves the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def make_folder(root: Path, labels: dict[str, np.ndarray], gray: bool = False) -> dict:
    """Images and masks by stem; returns the ``data`` section."""
    for i, (stem, label) in enumerate(labels.items()):
        h, w = label.shape[:2]
        image = rgb(i, h, w)
        write(root / "images" / f"{stem}.png", image[:, :, 0] if gray else image)
        write(root / "masks" / f"{stem}.png", label)
    return {"name": "folder", "root": str(root)}


def lists(root: Path, train: str, validation: str) -> None:
    (root / "train.txt").write_text(train)
    (root / "val.txt").write_text(validation)


def two_masks() -> dict[str, np.ndarray]:
    """a: 24 pixels of 0, 16 of 1, 8 void; b: 40 of 0, 8 of 2."""
    a, b = np.zeros((2, H, W), np.uint8)
    a[:2], a[2] = 1, 255
    b[5] = 2
    return {"a": a, "b": b}


def both_train(root: Path) -> dict:
    data = make_folder(root, two_masks() | {"v": np.zeros((H, W), np.uint8)})
    lists(root, "a\nb\n", "v\n")
    return data
