"""Convolutions: shared parameters, 1x1, upsampling, holes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tour import drawing
from segjax import errors
from segjax.ops import conv, resize


def local(*, side: int = 5, kernel: int = 3, seed: int = 0) -> bytes:
    """A locally connected layer beside a convolution, on the same map."""
    drawing.check_at_most("side", side, 12)
    if kernel > side:
        raise errors.UserError(f"--kernel={kernel}: expected at most --side={side}")
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 4, (side, side))
    number = side - kernel + 1
    own = rng.integers(-1, 3, (number, number, kernel, kernel))
    shared = np.broadcast_to(own[0, 0], own.shape)
    figure, axes = drawing.axes_grid(2, 3, (3.2, 3.0))
    for row, kernels, name in (
        (axes[0], own, "locally connected"),
        (axes[1], shared, "convolution"),
    ):
        y = conv.locally_connected(
            jnp.array(x[None, :, :, None], jnp.float32),
            jnp.array(kernels[..., None, None], jnp.float32),
        )
        mosaic = kernels.transpose(0, 2, 1, 3).reshape(number * kernel, -1)
        color = np.arange(1, number**2 + 1).reshape(number, number)
        color = color if name != "convolution" else np.ones_like(color)
        color = color.repeat(kernel, 0).repeat(kernel, 1)
        weights = kernel**2 * (number**2 if kernels is own else 1)
        drawing.cells(row[0], x, f"map of {side}x{side}")
        title = f"{name}: {weights} parameters"
        drawing.cells(row[1], mosaic, title, colors=color, cmap="tab20b", fontsize=6)
        drawing.cells(row[2], np.array(y[0, :, :, 0]), "output", cmap="Greens")
    return drawing.png(figure)


def one_by_one(*, scene: int = 3, side: int = 96) -> bytes:
    """A 1x1 convolution of a scene: every pixel's channels times one matrix."""
    image = drawing.scene(scene, side)["image"]
    matrix = np.array([[0.3, 1.0, -0.5], [0.6, -0.5, -0.5], [0.1, -0.5, 1.0]])
    y = conv.conv2d(
        jnp.array(image[None], jnp.float32), jnp.array(matrix[None, None], jnp.float32)
    )[0]
    figure, axes = drawing.axes_grid(1, 5, (2.1, 2.3))
    drawing.picture(axes[0, 0], image, "3 channels in")
    drawing.cells(axes[0, 1], matrix, "kernel: rows in, columns out")
    names = "gray", "red - others", "blue - others"
    for channel, (one, name) in enumerate(zip(axes[0, 2:], names)):
        drawing.picture(one, y[..., channel], f"channel {channel}: {name}", cmap="gray")
    return drawing.png(figure)


def upsampling(
    *, kernel: int = 3, stride: int = 2, padding: int = 1, output_padding: int = 1
) -> bytes:
    """Convolutions down and the transposed one up, step by step, in numbers."""
    taps = np.array([1.0])
    for _ in range(kernel - 1):
        taps = np.convolve(taps, [1, 1])
    weights = np.outer(taps, taps)
    x = np.array([[1, 0, 2, 1], [0, 3, 1, 0], [2, 1, 0, 1], [1, 0, 1, 2]])
    small = np.array([[1, 2], [3, 4]])

    def run(function, x, **how):
        out = function(
            jnp.array(x[None, :, :, None], jnp.float32),
            jnp.array(weights[:, :, None, None], jnp.float32),
            **how,
        )
        return np.array(out[0, :, :, 0])

    try:
        up = functools.partial(
            run,
            conv.conv_transpose,
            stride=stride,
            padding=padding,
            output_padding=output_padding,
        )
        whole = up(small)
    except ValueError as error:
        raise errors.UserError(f"--output_padding: {error}") from error
    down = [run(conv.conv2d, x, stride=s, padding=padding) for s in (1, stride)]
    if not whole.size or not all(map(np.size, down)):
        raise errors.UserError(
            f"--kernel={kernel} --padding={padding}: nothing is left of a map of 4x4"
        )
    figure, axes = drawing.axes_grid(2, 6, (2.2, 2.3))
    drawing.cells(axes[0, 0], weights, "kernel", cmap="Oranges")
    drawing.cells(axes[0, 1], x, "a map of 4x4")
    drawing.cells(axes[0, 2], down[0], "convolution, stride 1", cmap="Greens")
    title = f"convolution, stride {stride}"
    drawing.cells(axes[0, 3], down[1], title, cmap="Greens")
    drawing.blank(axes[0, 4:])
    drawing.cells(axes[1, 0], small, "a map of 2x2")
    for index, one in enumerate(axes[1, 1:5]):
        place = np.zeros_like(small)
        place.flat[index] = small.flat[index]
        drawing.cells(one, up(place), f"what the {small.flat[index]} adds")
    title = f"the sum: transposed\nconvolution, {whole.shape[0]}x{whole.shape[1]}"
    drawing.cells(axes[1, 5], whole, title, cmap="Greens")
    return drawing.png(figure)


def fields(*, rates: tuple[int, ...] = (1, 2, 4), kernel: int = 3) -> bytes:
    """Receptive fields of a stack of dilated convolutions, and their taps."""
    sides = np.cumsum([(kernel - 1) * rate for rate in rates]) + 1
    side = int(sides[-1]) + 4 + int(sides[-1]) % 2
    side += 1 - side % 2
    ones = jnp.ones((kernel, kernel, 1, 1))
    figure, axes = drawing.axes_grid(1, len(rates), (3.4, 3.7))
    for index, one in enumerate(axes[0]):

        def stack(x, count=index + 1):
            for rate in rates[:count]:
                x = conv.conv2d(x, ones, padding=rate * (kernel // 2), dilation=rate)
            return x[0, side // 2, side // 2, 0]

        paths = np.array(jax.grad(stack)(jnp.zeros((1, side, side, 1))))[0, :, :, 0]
        seen = np.nonzero(paths.any(axis=0))[0]
        extent = seen[-1] - seen[0] + 1
        one.imshow(np.sqrt(paths), cmap="Greens")
        tap = np.arange(kernel) * rates[index] - rates[index] * (kernel // 2)
        xs, ys = np.meshgrid(tap + side // 2, tap + side // 2)
        one.plot(xs, ys, "o", color="crimson", markersize=5)
        one.set_xticks(np.arange(side + 1) - 0.5, minor=True)
        one.set_yticks(np.arange(side + 1) - 0.5, minor=True)
        one.grid(which="minor", color="lightgray", linewidth=0.4)
        one.tick_params(which="both", length=0)
        drawing.empty(one, f"rate {rates[index]}: field of {extent}x{extent}")
    return drawing.png(figure)


def atrous(
    *, rates: tuple[int, ...] = (2, 4), scene: int = 7, side: int = 128
) -> bytes:
    """One filter on a reduced image, enlarged, against the filter with holes."""
    image = drawing.scene(scene, side)["image"]
    gray = jnp.array(image.mean(-1)[None, :, :, None], jnp.float32) - 128
    smooth = np.array([1, 4, 6, 4, 1]) / 16
    weights = np.outer(smooth, [-1, -2, 0, 2, 1]) / 3
    weights = jnp.array(weights[:, :, None, None], jnp.float32)
    figure, axes = drawing.axes_grid(len(rates), 4, (2.2, 2.4))
    for row, rate in zip(axes, rates):
        small = gray[:, ::rate, ::rate]
        coarse = conv.conv2d(small, weights, padding=2)
        dense = conv.conv2d(gray, weights, padding=2 * rate, dilation=rate)
        gap = float(jnp.abs(dense[:, ::rate, ::rate] - coarse).max())
        enlarged = resize.resize_bilinear(coarse, (side, side), align_corners=False)
        share = 100 / rate**2
        top = float(jnp.percentile(jnp.abs(dense), 99))
        how = {"cmap": "RdBu", "vmin": -top, "vmax": top}
        drawing.picture(row[0], image, "image, filter for vertical edges")
        drawing.picture(
            row[1], coarse[0, :, :, 0], f"one pixel in {rate}, filtered", **how
        )
        drawing.picture(
            row[2],
            enlarged[0, :, :, 0],
            f"enlarged: {share:.0f} % are responses",
            **how,
        )
        drawing.picture(row[3], dense[0, :, :, 0], f"atrous, rate {rate}: all", **how)
        row[3].set_xlabel(f"at those pixels {gap:.1g} apart", fontsize=8)
    return drawing.png(figure)
