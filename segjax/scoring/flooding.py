"""Borders thinned to one pixel by flooding, as the scorer of ISBI 2012 does.

The flooding of Soille and Vincent (Determining watersheds in digital pictures via
flooding simulations, 1990) on a binary image: the connected components of the interior
are basins, and the border pixels are flooded from them in the order of a queue. A pixel
that touches two basins becomes a dam. Fiji's WatershedTransform2D, with which the
challenge was scored, starts column by column, which decides where the dam of a border
of even width lies. This is done here, too, so that the scores agree to the last pixel.
Other watersheds (scikit-image, OpenCV) break these ties in other ways.
"""

import cv2
import numpy as np

DAM, OUTSIDE, DRY, QUEUED, SEVERAL = 0, -1, -2, -3, -4


def components(mask: np.ndarray, connectivity: int = 4) -> np.ndarray:
    """Connected components of a bool mask [H, W]: int32 1, 2, ..., and 0 elsewhere."""
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=connectivity)[1]


def thin(interior: np.ndarray) -> np.ndarray:
    """Grows the 4-connected components of ``interior`` until dams separate them.

    Args:
      interior: [H, W] bool.

    Returns:
      [H, W] int32, basins 1, 2, ..., dams 0. An image without interior is one basin.
    """
    basins = components(interior)
    if not interior.any():
        return np.ones_like(basins)
    # Column by column: the flat index is x * stride + y, with a frame of one pixel.
    width, height = basins.T.shape
    stride = height + 2
    frame = np.full((width + 2, stride), OUTSIDE, np.int32)
    frame[1:-1, 1:-1] = np.where(interior, basins, DRY).T
    wet = frame > 0
    touched = np.zeros_like(wet)
    inside = slice(1, -1)
    touched[inside, inside] = wet[:-2, inside] | wet[2:, inside]
    touched[inside, inside] |= wet[inside, :-2] | wet[inside, 2:]
    touched &= frame == DRY
    frame[touched] = QUEUED
    queue, labels = np.flatnonzero(touched).tolist(), frame.ravel().tolist()
    # Whoever is appended is visited by the same loop: the list is the queue.
    for here in queue:
        basin = DAM
        for there in (here - stride, here - 1, here + stride, here + 1):
            label = labels[there]
            if label > 0:
                if basin == DAM:
                    basin = label
                elif basin != label:
                    basin = SEVERAL
            elif label == DRY:
                labels[there] = QUEUED
                queue.append(there)
        labels[here] = DAM if basin == SEVERAL else basin
    flooded = np.array(labels, np.int32).reshape(frame.shape)
    return np.ascontiguousarray(flooded[1:-1, 1:-1].T)
