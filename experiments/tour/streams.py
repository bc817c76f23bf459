"""FusionNet beside U-Net, and the two streams of FRRN: sizes of the published nets."""

import jax
import numpy as np

from experiments.tour import drawing
from segjax.models import network
from segjax.models.frrn import FRRN
from segjax.models.fusionnet import FusionNet
from segjax.models.unet import UNet


def fusion(*, widths: tuple[int, ...] = (64, 128, 256, 512, 1024)) -> bytes:
    """What the decoders of U-Net and FusionNet read, and the parameters of both."""
    levels = range(len(widths) - 1)
    nets = {
        "U-Net: copy and concatenate": (UNet(2, widths), "dec{}_conv1", 0),
        "FusionNet: add": (FusionNet(2, widths), "up{}_conv1", 1),
    }
    figure, axes = drawing.axes_grid(1, 2, (4.6, 3.0))
    left, right = axes[0]
    for index, (name, (net, layer, first)) in enumerate(nets.items()):
        params = network.abstract_variables(net)["params"]
        read = [params[layer.format(i + first)]["kernel"].shape[2] for i in levels]
        total = sum(int(np.prod(x.shape)) for x in jax.tree.leaves(params))
        places = np.array(levels) + 0.4 * index - 0.2
        bars = left.bar(places, read, 0.38, label=name)
        left.bar_label(bars, fontsize=7)
        bar = right.barh([name.split(":")[0]], [total / 1e6])
        right.bar_label(bar, fmt="%.1f", padding=3)
    left.set_xticks(levels, [f"level {i}" for i in levels])
    left.set_title("channels into the decoder's first convolution", fontsize=9)
    left.legend(fontsize=8)
    right.set_title("parameters in millions", fontsize=9)
    right.margins(x=0.2)
    return drawing.png(figure)


def frrn(*, side: int = 256) -> bytes:
    """Resolution and channels of both streams of FRRN A, stage by stage."""
    net = FRRN(num_classes=19)

    def run(x):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
        return net.init_with_output(keys, x, train=True)[0][1]

    x = jax.ShapeDtypeStruct((1, side, side, 3), np.uint8)
    found = jax.eval_shape(run, x)
    stages = [name[7:] for name in found if name.startswith("pooling")]
    figure, axes = drawing.axes_grid(1, 1, (9.0, 3.4))
    one = axes[0, 0]
    for name, color in (("residual", "tab:blue"), ("pooling", "tab:red")):
        maps = [found[f"{name}{stage}"].shape for stage in stages]
        sides = [shape[1] for shape in maps]
        one.plot(range(len(maps)), sides, "o-", color=color, label=f"{name} stream")
        for at, (height, shape) in enumerate(zip(sides, maps)):
            up = 8 if name == "residual" else -14
            one.annotate(
                f"{shape[-1]} ch",
                (at, height),
                (0, up),
                textcoords="offset points",
                fontsize=8,
                ha="center",
                color=color,
            )
    one.set_yscale("log", base=2)
    one.set_ylim(side / 40, side * 1.8)
    one.set_xticks(range(len(stages)), [f"stage {stage}" for stage in stages])
    one.set_ylabel(f"side of the map, image of {side}")
    one.grid(alpha=0.3)
    one.legend(loc="lower left", fontsize=8)
    return drawing.png(figure)
