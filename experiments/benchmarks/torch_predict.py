"""The loop over a folder of images that a user of PyTorch would write."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from experiments.benchmarks import against_torch
from segjax import inference
from segjax.errors import UserError

_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def loop(segmenter: inference.Segmenter) -> Callable[[Sequence[str], Path], None]:
    """A function of images and a folder, into which it writes labels and overlays.

    The network has random parameters, and as many as the segmenter's. Images are read,
    predicted and written one after the other by PyTorch (eager, channels_last) and
    Pillow: labels as PNG with a palette, overlays as JPEG.

    Raises:
      UserError: the segmenter is none of one DeepLab v2 with a ResNet, or PyTorch is
        missing.
    """
    model, *others = segmenter.models
    backbone = getattr(model, "backbone", "")
    if others or type(model).__name__ != "DeepLab" or backbone not in _BLOCKS:
        raise UserError(
            "--torch: only DeepLab v2 with a ResNet has a counterpart, such as that of "
            f"configs/deeplab_camvid_cpu.py; found {type(model).__name__} {backbone}"
        )
    torch, peers = against_torch.load_torch()
    network = peers.DeepLab(
        blocks=model.stage_sizes or _BLOCKS[backbone],
        width=model.width,
        rates=model.rates,
        classes=model.num_classes,
    )
    network = network.to(memory_format=torch.channels_last).eval()
    parameters = (
        sum(leaf.size for leaf in jax.tree.leaves(segmenter.variables[0]["params"])),
        sum(p.numel() for p in network.parameters()),
    )
    if parameters[0] != parameters[1]:
        raise UserError(
            f"--torch: the network has {parameters[0]:,} parameters, its counterpart "
            f"{parameters[1]:,}; only the fields stage_sizes, width and rates may "
            "differ from the defaults of DeepLab v2"
        )
    palette = segmenter.info.palette

    @torch.inference_mode()
    def run(paths: Sequence[str], folder: Path) -> None:
        for index, path in enumerate(paths):
            image = Image.open(path).convert("RGB")
            x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
            logits = network(x.contiguous(memory_format=torch.channels_last))[0]
            label = Image.fromarray(logits.argmax(1)[0].byte().numpy(), mode="P")
            label.putpalette(palette.ravel().tolist())
            label.save(folder / f"{index}.png")
            Image.blend(image, label.convert("RGB"), 0.5).save(folder / f"{index}.jpg")

    return run
