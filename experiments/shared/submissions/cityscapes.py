"""Cityscapes: gray PNGs of label ids (not train ids), one per image."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from segjax.data import images
from segjax.data.datasets import cityscapes
from segjax.data.masks import decode_mask
from segjax.errors import UserError

SIZE = (1024, 2048)


def place(path: Path) -> str:
    """``CITY_SEQUENCE_FRAME_pred.png`` of an image ``.._leftImg8bit.png``.

    Raises:
      UserError: the name does not begin with city, sequence and frame.
    """
    match = re.match(r"[A-Za-z-]+_\d{6}_\d{6}(?=_|\.|$)", path.name)
    if not match:
        raise UserError(
            "is not named as an image of Cityscapes; expected "
            "CITY_123456_123456_leftImg8bit.png"
        )
    return f"{match[0]}_pred.png"


def write(target: Path, results: Sequence[Path]) -> None:
    """The label ids of one image."""
    (result,) = results
    label_ids = np.array(cityscapes.LABEL_IDS, np.uint8)
    images.write_ids_png(target, label_ids[decode_mask(result)[0]])
