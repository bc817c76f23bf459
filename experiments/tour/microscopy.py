"""U-Net's parts on drawn cells: mirrored tiles, deformation, weights of borders."""

import cv2
import numpy as np

from experiments.tour import drawing
from segjax.data import warping
from segjax.data.border_weights import border_weights
from segjax.errors import UserError
from segjax.models.unet import UNet
from segjax.ops import geometry


def cells(seed: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Gray cells that touch: uint8 [side, side, 3], and their numbers, uint16."""
    rng = np.random.default_rng(seed)
    instance = np.zeros((side, side), np.uint16)
    image = rng.normal(150, 6, (side, side)).astype(np.float32)
    y, x = np.mgrid[:side, :side]
    for number in range(1, 2 + min(side * side // 900, 80)):
        center = tuple(int(v) for v in rng.integers(0, side, 2))
        axes = tuple(int(v) for v in rng.integers(side // 24 + 4, side // 12 + 9, 2))
        mask = np.zeros((side, side), np.uint8)
        cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        inside = (mask > 0) & (instance == 0)
        rim = inside & (cv2.erode(mask, np.ones((5, 5), np.uint8)) == 0)
        image[inside] = 120 + 12 * np.sin(x + y + number)[inside] + rng.normal(0, 12)
        image[rim] = 60
        if inside.sum() > 30:
            instance[inside] = number
    image = cv2.GaussianBlur(image, (3, 3), 0).clip(0, 255).astype(np.uint8)
    return image[..., None].repeat(3, 2), instance


def _colors(instance: np.ndarray) -> np.ndarray:
    colors = np.random.default_rng(1).integers(60, 256, (65536, 3)).astype(np.uint8)
    colors[0] = 0
    return colors[instance]


def tile(*, tile: int = 388, side: int = 500, seed: int = 0) -> bytes:
    """The part of an image that is predicted, and what is read, mirrored beyond it."""
    tiling = UNet(num_classes=2).tiling
    margin = tiling.margin
    if tile > side:
        raise UserError(f"--tile={tile}: expected at most --side={side}")
    nearest = geometry.nearest_sides(tiling, tile + 2 * margin)
    if tile + 2 * margin not in nearest:
        sides = " or ".join(str(one - 2 * margin) for one in nearest)
        raise UserError(f"--tile={tile}: expected {sides}, which U-Net can predict")
    image, _ = cells(seed, side)
    padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "reflect")
    shown = padded.copy()
    outside = np.ones(padded.shape[:2], bool)
    outside[margin:-margin, margin:-margin] = False
    shown[outside] = shown[outside] // 2 + 110
    figure, axes = drawing.axes_grid(1, 1, (5.2, 5.2))
    one = axes[0, 0]
    drawing.picture(one, shown, "pale: mirrored", cmap="gray")
    for start, length, color, text in (
        (0, tile + 2 * margin, "tab:blue", f"input {tile + 2 * margin}"),
        (margin, tile, "gold", f"output {tile}"),
    ):
        drawing.outline(
            one, (start, start), size=(length, length), color=color, width=3
        )
        place = start + 8, start + length - 12
        box = {"facecolor": "black", "alpha": 0.6}
        one.text(*place, text, color=color, fontsize=10, weight="bold", bbox=box)
    return drawing.png(figure)


def deformation(
    *, sigma: float = 10.0, nodes: int = 3, side: int = 192, seed: int = 0
) -> bytes:
    """An elastic deformation: a grid, the image and its labels by the same warp."""
    image, instance = cells(seed, side)
    lines = image.copy()
    gap = max(side // 12, 2)
    lines[::gap] = lines[:, ::gap] = (230, 60, 30)
    moves = np.random.default_rng(seed + 1).normal(0, sigma, (nodes, nodes, 2))
    label = (instance > 0).astype(np.uint8)
    figure, axes = drawing.axes_grid(2, 3, (2.6, 2.7))
    size = (side, side)
    for row, field in ((axes[0], None), (axes[1], moves)):
        how = dict(
            matrix=warping.input_from_output(size, size),
            size=size,
            nodes=field,
            border="reflect",
        )
        warped, truth, _ = warping.warp(image, label, **how)
        grid, _, _ = warping.warp(lines, label, **how)
        name = "as it is" if field is None else f"{nodes}x{nodes} nodes, {sigma:g} px"
        drawing.picture(row[0], warped, name)
        drawing.picture(row[1], grid, "with a grid")
        shown = np.where(truth == 255, 0.5, truth)
        drawing.picture(
            row[2], shown, "labels (gray: void)", cmap="gray", vmin=0, vmax=1
        )
    return drawing.png(figure)


def borders(
    *, weight: float = 10.0, sigma: float = 5.0, side: int = 128, seed: int = 2
) -> bytes:
    """What U-Net's loss adds to the weight of pixels between two cells."""
    image, instance = cells(seed, side)
    weights = border_weights(instance, weight=weight, sigma=sigma)
    figure, axes = drawing.axes_grid(1, 3, (3.1, 3.0))
    drawing.picture(axes[0, 0], image, "image")
    drawing.picture(axes[0, 1], _colors(instance), "instances")
    one = axes[0, 2]
    shown = one.imshow(weights, cmap="inferno", vmin=0, vmax=weight)
    figure.colorbar(shown, shrink=0.8)
    drawing.empty(one, f"added weight, w0 = {weight:g}, sigma = {sigma:g} px")
    return drawing.png(figure)
