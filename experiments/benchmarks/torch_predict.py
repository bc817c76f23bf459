"""The loop over a folder of images that a user of PyTorch would write."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.benchmarks import against_torch
from segjax import inference
from segjax.errors import UserError

_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def counterpart(segmenter: inference.Segmenter, flag: str) -> dict[str, Any]:
    """The fields of a peer's DeepLab: blocks, width, rates and classes.

    Raises:
      UserError: the segmenter is none of one DeepLab v2 with a ResNet.
    """
    model, *others = segmenter.models
    backbone = getattr(model, "backbone", "")
    if others or type(model).__name__ != "DeepLab" or backbone not in _BLOCKS:
        raise UserError(
            f"{flag}: only DeepLab v2 with a ResNet has a counterpart, such as that of "
            f"configs/deeplab_camvid_cpu.py; found {type(model).__name__} {backbone}"
        )
    return dict(
        blocks=model.stage_sizes or _BLOCKS[backbone],
        width=model.width,
        rates=model.rates,
        classes=model.num_classes,
    )


def check_parameters(segmenter: inference.Segmenter, flag: str, count: int) -> None:
    """Raises a UserError unless the segmenter has as many parameters as its peer."""
    leaves = jax.tree.leaves(segmenter.variables[0]["params"])
    own = sum(leaf.size for leaf in leaves)
    if own != count:
        raise UserError(
            f"{flag}: the network has {own:,} parameters, its counterpart {count:,}; "
            "only the fields stage_sizes, width and rates may differ from the defaults "
            "of DeepLab v2"
        )


def save(
    folder: Path, name: str, image: Image.Image, label: np.ndarray, palette: np.ndarray
) -> None:
    """Writes a label map as PNG with a palette, and an overlay as JPEG."""
    colored = Image.fromarray(label, mode="P")
    colored.putpalette(palette.ravel().tolist())
    colored.save(folder / f"{name}.png")
    Image.blend(image, colored.convert("RGB"), 0.5).save(folder / f"{name}.jpg")


def loop(segmenter: inference.Segmenter) -> Callable[[Sequence[str], Path], None]:
    """A function of images and a folder, into which it writes labels and overlays.

    The network has random parameters, and as many as the segmenter's. Images are read,
    predicted and written one after the other by PyTorch (eager, channels_last) and
    Pillow: labels as PNG with a palette, overlays as JPEG.

    Raises:
      UserError: the segmenter is none of one DeepLab v2 with a ResNet, or PyTorch is
        missing.
    """
    fields = counterpart(segmenter, "--torch")
    torch, peers = against_torch.load_torch()
    network = peers.DeepLab(**fields)
    network = network.to(memory_format=torch.channels_last).eval()
    parameters = sum(p.numel() for p in network.parameters())
    check_parameters(segmenter, "--torch", parameters)
    palette = segmenter.info.palette

    @torch.inference_mode()
    def run(paths: Sequence[str], folder: Path) -> None:
        for index, path in enumerate(paths):
            image = Image.open(path).convert("RGB")
            x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
            logits = network(x.contiguous(memory_format=torch.channels_last))[0]
            label = logits.argmax(1)[0].byte().numpy()
            save(folder, str(index), image, label, palette)

    return run
