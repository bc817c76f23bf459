"""PASCAL VOC 2012: palette PNGs of the ids 0..20 in the folders of the devkit.

The competition is comp6, segmentation with any data: networks that start from ImageNet
weights belong there.
"""

from collections.abc import Sequence
from pathlib import Path

from segjax.data import images
from segjax.data.masks import decode_mask


def place(path: Path) -> str:
    """``results/VOC2012/Segmentation/comp6_test_cls/ID.png``."""
    return f"results/VOC2012/Segmentation/comp6_test_cls/{path.stem}.png"


def write(target: Path, results: Sequence[Path]) -> None:
    """The ids of one image, in the colors of PASCAL VOC."""
    (result,) = results
    images.write_palette_png(target, decode_mask(result)[0], images.voc_palette(21))
