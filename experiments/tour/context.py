"""How networks see far: context module, atrous pyramid, pooling pyramid."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tour import drawing
from segjax.models import dilation
from segjax.ops import conv, pool, resize

_COLORS = ("tab:green", "tab:blue", "gold", "tab:red", "tab:purple", "tab:orange")


def context(
    *, rates: tuple[int, ...] = (1, 1, 2, 4, 8, 16, 1), classes: int = 21
) -> bytes:
    """The layers of the context module, and how its field grows."""
    maps = {}
    for form in ("basic", "large"):
        module = dilation.Context(form=form, rates=rates)
        x = jax.ShapeDtypeStruct((1, 8, 8, classes), jnp.float32)

        def run(x, module=module):
            return module.init_with_output(jax.random.key(0), x)[0][1]

        maps[form] = jax.eval_shape(run, x)
    sides = [_field(rates[: index + 1]) for index in range(len(rates))]
    figure, axes = drawing.axes_grid(1, 2, (5.0, 3.0))
    table, chart = axes[0]
    rows = [["layer", "dilation", "field", "basic", "large"]]
    for index, (rate, side) in enumerate(zip(rates, sides), start=1):
        name = f"ctx_conv{index}"
        channels = [f"{maps[form][name].shape[-1]}" for form in maps]
        rows.append([str(index), str(rate), f"{side}x{side}", *channels])
    rows.append(
        [str(len(rates) + 1), "1x1", f"{sides[-1]}x{sides[-1]}", *[f"{classes}"] * 2]
    )
    table.axis("off")
    table.table(rows, loc="center", cellLoc="center").scale(1, 1.25)
    table.set_title(f"channels for {classes} classes", fontsize=9)
    chart.step(range(1, len(rates) + 1), sides, where="mid", label="with these rates")
    plain = 2 * np.arange(1, len(rates) + 1) + 1
    chart.step(range(1, len(rates) + 1), plain, where="mid", label="without dilation")
    chart.set_xlabel("layer")
    chart.set_ylabel("side of the field")
    chart.grid(alpha=0.3)
    chart.legend(fontsize=8)
    return drawing.png(figure)


def _field(rates: tuple[int, ...]) -> int:
    """Side of the field of stacked 3x3 convolutions, from what a gradient reaches."""
    side = 2 * sum(rates) + 5

    def center(x):
        for rate in rates:
            x = jnp.pad(x, ((0, 0), (rate, rate), (0, 0), (0, 0)))
            x = conv.conv2d(x, jnp.ones((3, 1, 1, 1)), dilation=rate)
        return x[0, side // 2, 0, 0]

    reached = jax.grad(center)(jnp.zeros((1, side, 1, 1)))
    rows = np.nonzero(np.array(reached)[0, :, 0, 0])[0]
    return int(rows[-1] - rows[0] + 1)


def aspp(
    *, rates: tuple[int, ...] = (6, 12, 18, 24), scene: int = 3, side: int = 449
) -> bytes:
    """The taps of atrous spatial pyramid pooling on an image, at output stride 8."""
    image = drawing.scene(scene, side)["image"]
    figure, axes = drawing.axes_grid(1, 1, (5.6, 5.2))
    one = axes[0, 0]
    drawing.picture(one, image, "3x3 kernels of all rates about one pixel, stride 8")
    for index, rate in enumerate(rates):
        taps = 8 * rate * np.arange(-1, 2) + side // 2
        inside = taps[(taps >= 0) & (taps < side)]
        xs, ys = np.meshgrid(inside, inside)
        color = _COLORS[index % len(_COLORS)]
        field = 2 * 8 * rate + 1
        outside = 9 - xs.size
        more = f", {outside} taps outside" if outside else ""
        label = f"rate {rate}: {field}x{field} px{more}"
        one.plot(
            xs.ravel(),
            ys.ravel(),
            "s",
            color=color,
            markersize=7,
            markeredgecolor="black",
            label=label,
        )
    one.legend(fontsize=7, loc="lower right", framealpha=0.9)
    return drawing.png(figure)


def pyramid(
    *, bins: tuple[int, ...] = (1, 2, 3, 6), scene: int = 7, side: int = 96
) -> bytes:
    """Averages over the bins of PSPNet's pyramid, and what they become on the map."""
    made = drawing.scene(scene, side)
    image = jnp.array(made["image"][None], jnp.float32) / 255
    figure, axes = drawing.axes_grid(2, len(bins) + 1, (2.2, 2.4))
    drawing.picture(axes[0, 0], made["image"], "features (here: the image)")
    drawing.picture(axes[1, 0], drawing.labels(made["label"]), "truth")
    for number, upper, lower in zip(bins, axes[0, 1:], axes[1, 1:]):
        pooled = pool.adaptive_avg_pool(image, number)
        enlarged = resize.resize_bilinear(pooled, (side, side), align_corners=True)
        drawing.picture(upper, np.array(pooled[0]), f"{number}x{number} averages")
        drawing.picture(lower, np.array(enlarged[0]).clip(0, 1), "interpolated")
    return drawing.png(figure)
