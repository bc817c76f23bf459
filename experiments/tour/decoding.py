"""Unpooling with switches, and the proposals that DeconvNet looks at."""

import jax.numpy as jnp
import numpy as np

from experiments.tour import drawing
from segjax import proposals
from segjax.ops import conv, unpool
from segjax.proposals import boxes as box_tools


def unpooling(*, side: int = 4, seed: int = 0) -> bytes:
    """A map, its maxima, where they were, and the way back."""
    drawing.check_at_most("side", side, 16)
    rng = np.random.default_rng(seed)
    x = rng.permutation(side * side).reshape(side, side) + 1.0
    maxima, switches = unpool.max_pool_switches(
        jnp.array(x[None, :, :, None], jnp.float32), 2
    )
    sparse = unpool.unpool(maxima, switches, kernel=2, size=(side, side))
    smooth = np.outer([1, 2, 1], [1, 2, 1]) / 4
    dense = conv.conv_transpose(
        sparse, jnp.array(smooth[:, :, None, None], jnp.float32), stride=1, padding=1
    )
    zeros = 100 * float((sparse == 0).mean())
    figure, axes = drawing.axes_grid(1, 6, (2.2, 2.4))
    one = axes[0]
    drawing.cells(one[0], x, "a map")
    drawing.cells(one[1], np.array(maxima)[0, ..., 0], "2x2 maxima")
    title = "switches: place in\nthe window, 0 to 3"
    drawing.cells(one[2], np.array(switches)[0, ..., 0], title, cmap="Purples")
    title = f"unpooled: {zeros:.0f} % zeros"
    drawing.cells(one[3], np.array(sparse)[0, ..., 0], title, cmap="Greens")
    drawing.cells(one[4], smooth, "a 3x3 kernel", cmap="Oranges")
    title = "after the transposed\nconvolution"
    drawing.cells(one[5], np.array(dense)[0, ..., 0], title, cmap="Greens", fontsize=8)
    return drawing.png(figure)


def boxes(*, count: int = 12, scene: int = 3, side: int = 192) -> bytes:
    """Object proposals of a scene: the first ones, and the best one of each object."""
    made = drawing.scene(scene, side)
    figure, axes = drawing.axes_grid(1, 3, (3.4, 3.6))
    found = {}
    for one, method in zip(axes[0], ("edge_boxes", "selective_search")):
        settings = proposals.Settings(method=method, number=200)
        found[method] = proposals.propose(made["image"], settings)
        shown = min(count, len(found[method]))
        title = f"{method}: first {shown} of {len(found[method])}"
        drawing.picture(one, made["image"], title)
        for rank, box in enumerate(found[method][:count]):
            _outline(one, box, f"C{rank % 10}")
    one = axes[0, 2]
    drawing.picture(one, made["image"], "best edge box of each object, IoU")
    objects = box_tools.tight(made["instance"].astype(np.int32))
    large = [box for box in objects.values() if min(_sides(box)) >= side // 12]
    for rank, box in enumerate(large):
        overlaps = box_tools.iou(found["edge_boxes"], np.array([box]))[:, 0]
        best = found["edge_boxes"][overlaps.argmax()]
        _outline(one, best, f"C{rank % 10}")
        one.text(
            best[0] + 2,
            best[1] + 9,
            f"{overlaps.max():.2f}",
            color="white",
            fontsize=7,
            bbox={"facecolor": f"C{rank % 10}", "pad": 1},
        )
    return drawing.png(figure)


def _sides(box) -> tuple[int, int]:
    return box[2] - box[0] + 1, box[3] - box[1] + 1


def _outline(axes, box, color: str) -> None:
    """A rectangle around the pixels of a box."""
    corner = box[0] - 0.5, box[1] - 0.5
    drawing.outline(axes, corner, size=_sides(box), color=color, width=1.5)
