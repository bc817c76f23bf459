"""Figures of small networks that are trained for them on procedural scenes."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import train
from experiments.shared import cli, recipes
from experiments.tour import drawing
from experiments.visualization import activations
from segjax import config, inference
from segjax.errors import UserError

_WIDTHS = (8, 16, 32, 48, 48)
_VGG = {"widths": _WIDTHS, "fc_channels": 64, "image_stats": "unit"}
_FCN = {**_VGG, "norm": "batch", "dropout": 0.0}

# Name in the figures -> (network, its fields).
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "FCN-32s": ("fcn", {**_FCN, "skips": 32}),
    "FCN-16s": ("fcn", {**_FCN, "skips": 16}),
    "FCN-8s": ("fcn", {**_FCN, "skips": 8}),
    "DeconvNet": ("deconvnet", {**_VGG, "fc6_kernel": 3}),
    "U-Net": (
        "unet",
        {
            "widths": (8, 16, 32, 64, 64),
            "padding": "same",
            "norm": "batch",
            "dropout": 0.0,
        },
    ),
    "PSPNet": (
        "pspnet",
        {
            "stage_sizes": (1, 1, 1, 1),
            "width": 8,
            "pyramid_channels": 16,
            "head_channels": 48,
            "image_stats": "unit",
            "aux": False,
        },
    ),
}

SLOW = {"DeconvNet": 4}
"""Networks that are trained for so many times the steps: deep and without skips."""

SIDE = 96


def network(name: str, *, workdir: Path, steps: int) -> inference.Segmenter:
    """One of the networks, trained in a folder of its own unless it is there.

    Raises:
      UserError: the training did not end well.
    """
    model_name, model = NETWORKS[name]
    steps *= SLOW.get(name, 1)
    made = config.make(
        model_name=model_name, model=model, **recipes.quick(8, steps, size=SIDE)
    )
    made.data.data_dir = str(workdir / "data")
    made.data.scenes_train, made.data.scenes_validation = 600, 16
    made.eval_every = made.eval_images = 0
    made.save_every = 50
    folder = workdir / f"{name.lower()}_{steps}"
    cli.log(f"{name}, {steps} steps: {folder}")
    if train.train(made, folder):
        raise UserError(f"{folder}: the training of {name} was interrupted")
    return inference.load(folder)


def _predicted(segmenter: inference.Segmenter, image: np.ndarray) -> np.ndarray:
    return segmenter.predict([image])[0]


def _compared(names: list[str], numbers: range, *, workdir: Path, steps: int) -> bytes:
    """Scenes in rows: the image, the truth, and what the networks say."""
    made = [drawing.scene(number, SIDE) for number in numbers]
    segmenters = [network(name, workdir=workdir, steps=steps) for name in names]
    figure, axes = drawing.axes_grid(len(made), len(names) + 2, (1.9, 2.05))
    for row, example in zip(axes, made):
        truth = example["label"]
        drawing.picture(row[0], example["image"], "image")
        drawing.picture(row[1], drawing.labels(truth), "truth (void: white)")
        for one, name, segmenter in zip(row[2:], names, segmenters):
            label = _predicted(segmenter, example["image"])
            scored = truth != 255
            right = 100 * (label == truth)[scored].mean()
            drawing.picture(one, drawing.labels(label), f"{name}: {right:.0f} % right")
    return drawing.png(figure)


def skips(workdir: Path, *, steps: int = 200, scene: int = 20, count: int = 3) -> bytes:
    """FCN-32s, 16s and 8s, each trained by itself for the same number of steps."""
    numbers = range(scene, scene + count)
    names = ["FCN-32s", "FCN-16s", "FCN-8s"]
    return _compared(names, numbers, workdir=workdir, steps=steps)


def results(
    workdir: Path, *, steps: int = 200, scene: int = 20, count: int = 3
) -> bytes:
    """Four networks side by side."""
    numbers = range(scene, scene + count)
    names = ["FCN-8s", "DeconvNet", "U-Net", "PSPNet"]
    return _compared(names, numbers, workdir=workdir, steps=steps)


def layers(workdir: Path, *, steps: int = 200, scene: int = 22) -> bytes:
    """A deconvolution network layer by layer, from 6x6 to the size of the image."""
    endpoints = [
        name
        for stage, last in ((5, 3), (4, 3), (3, 3), (2, 2), (1, 2))
        for name in (f"unpool{stage}", f"deconv{stage}_{last}")
    ]
    segmenter = network("DeconvNet", workdir=workdir, steps=steps)
    loaded = activations.load(
        segmenter, activations.Options(endpoints[1:], rule="class", columns=6)
    )
    image = drawing.scene(scene, SIDE)["image"]
    return drawing.compressed(activations.draw(loaded, image))
