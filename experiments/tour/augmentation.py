"""What augmentation makes of a scene."""

from typing import Any

import numpy as np

from experiments.tour import drawing
from segjax.data import transforms

_ROWS: dict[str, dict[str, Any]] = {
    "aspect 1/2 to 2": {"aspect": (0.5, 2.0)},
    "shear 25": {"shear": 25.0},
    "scale 1/2 to 2": {"scale": (0.5, 2.0)},
    "rotate 30": {"rotate": 30.0},
    "hue 90": {"hue": 90.0},
    "noise 40": {"noise": 40.0},
}


def ten_crops(image: np.ndarray, side: int) -> np.ndarray:
    """The four corners and the center of an image, and their left-right mirrors.

    Args:
      image: [H, W, C].
      side: of the square crops, in pixels; at most H and W.

    Returns:
      [10, side, side, C]: top left, top right, bottom left, bottom right, center, and
      the same of the mirrored image (AlexNet, NIPS 2012, section 4.1).
    """
    height, width = image.shape[:2]
    bottom, right = height - side, width - side
    starts = (0, 0), (0, right), (bottom, 0), (bottom, right)
    starts = *starts, (bottom // 2, right // 2)
    five = np.stack([image[y : y + side, x : x + side] for y, x in starts])
    mirrored = image[:, ::-1]
    return np.concatenate(
        [five, [mirrored[y : y + side, x : x + side] for y, x in starts]]
    )


def augmentations(*, scene: int = 7, side: int = 96, seed: int = 0) -> bytes:
    """None, mirror and ten crops; then random draws, each image with its labels."""
    made = drawing.scene(scene, side)
    figure, axes = drawing.axes_grid(len(_ROWS) + 2, 10, (1.05, 1.12))
    drawing.blank(axes[0, 4:])
    for index, mirrored in enumerate((False, True)):
        step = -1 if mirrored else 1
        name = "mirrored" if mirrored else "none"
        drawing.picture(axes[0, 2 * index], made["image"][:, ::step], name)
        label = drawing.labels(made["label"])[:, ::step]
        drawing.picture(axes[0, 2 * index + 1], label, "labels")
    names = ("top left", "top right", "bottom left", "bottom right", "center")
    crops = ten_crops(made["image"], side * 3 // 4)
    for one, crop, name in zip(axes[1], crops, names * 2):
        drawing.picture(one, crop, name)
    axes[1, 0].set_ylabel("ten crops", fontsize=7)
    mean = made["image"].mean((0, 1)).tolist()
    for row, (name, values) in zip(axes[2:], _ROWS.items()):
        options = transforms.options({"flip": 0.0, **values}, mean)
        for draw in range(5):
            rng = np.random.default_rng((seed, draw))
            out = transforms.augment(made, rng, options)
            drawing.picture(row[2 * draw], out["image"], "")
            drawing.picture(row[2 * draw + 1], drawing.labels(out["label"]), "")
        row[0].set_ylabel(name, fontsize=7)
    return drawing.png(figure, dpi=72, colors=64)
