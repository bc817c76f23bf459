"""What the layers of a network show of an image, as figure 4 of the DeconvNet paper.

The paper shows "the most representative" map of each layer and does not say how it was
chosen. Here the rules are those of ``segjax.analysis.activations``.
"""

import fnmatch
import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.visualization import inputs
from segjax import compilation, errors, heatmaps, inference, viz
from segjax.analysis import activations, receptive_field
from segjax.analysis.tracing import LOGITS
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference import predictors
from segjax.ops import geometry


class Options(NamedTuple):
    """What is shown."""

    endpoints: Sequence[str] = ("*",)
    """Names of endpoints, or patterns such as ``deconv*``."""
    channel: int = -1
    """Of all of them; -1: the most representative one of each."""
    rule: str = activations.RULES[0]
    class_name: str = ""
    """Whose probability the rule "class" compares with; "": that of most pixels."""
    columns: int = 5


class Network(NamedTuple):
    """The first model of a segmenter, and its maps."""

    segmenter: inference.Segmenter
    names: list[str]
    """The maps to show, in the order of execution."""
    grids: dict[str, geometry.Grid]
    run: Callable[[Any, np.ndarray], dict[str, jax.Array]]
    """(variables, images [1, H, W, C]) -> these maps and the logits, compiled."""
    options: Options


def choose(known: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The known names that a name or a pattern matches, in their own order.

    Raises:
      UserError: one of them matches none.
    """
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise errors.unknown("--endpoints", pattern, known)
    return [n for n in known if any(fnmatch.fnmatchcase(n, p) for p in patterns)]


def load(segmenter: inference.Segmenter, options: Options) -> Network:
    """Chooses the maps and finds where they lie in the image.

    Raises:
      UserError: an unknown endpoint, rule or class, or no such channel.
    """
    model, channels = segmenter.models[0], segmenter.info.channels
    if options.rule not in activations.RULES:
        raise errors.unknown("--rule", options.rule, activations.RULES)
    if options.class_name:
        inputs.class_index(segmenter.info.classes, options.class_name)
    known = activations.maps(model, channels)
    names = choose(list(known), options.endpoints)
    if options.channel >= 0:
        activations.check_channel(names, known, options.channel)
    try:
        grids = receptive_field.grids(model, channels)
    except UserError:  # an operation that cannot be followed
        grids = {}
    apply = activations.run(model, [*names, LOGITS])

    def run(variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        return apply(variables, predictors.extend(model, images))

    compiled = jax.jit(compilation.precision(segmenter.precision)(run))
    return Network(segmenter, names, grids, compiled, options)


def draw(network: Network, image: np.ndarray) -> np.ndarray:
    """The image, its prediction and a map of every endpoint, uint8 [h, w, 3].

    Args:
      network: of :func:`load`.
      image: uint8 [H, W, C].
    """
    segmenter, options = network.segmenter, network.options
    model, info = segmenter.models[0], segmenter.info
    size = image.shape[0], image.shape[1]
    scaled = segmenter.input_size(size)
    given = image if scaled == size else image_files.resize_image(image, scaled)
    found = network.run(segmenter.variables[0], given[None])
    maps = {name: np.asarray(value[0], np.float32) for name, value in found.items()}
    logits = maps[LOGITS][: scaled[0], : scaled[1]]
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    # No more than 255 classes: experiments.visualize refuses them.
    label = image_files.resize_label(logits.argmax(-1).astype(np.uint8), size)
    counts = np.bincount(label.reshape(-1), minlength=len(info.classes))
    index = int(counts.argmax())
    if options.class_name:
        index = inputs.class_index(info.classes, options.class_name)
    target = image_files.resize_image(powers / powers.sum(-1, keepdims=True), size)
    target = target[..., index]
    tiling = model.tiling
    extended = tuple(
        geometry.nearest_sides(tiling, side + 2 * tiling.margin)[-1] for side in scaled
    )
    pictures = [viz.rgb(image)]
    captions = [["image", f"{size[0]}x{size[1]}", ""]]
    for name in network.names:
        values = maps[name]
        where = activations.locations(
            # The logits are of the image alone.
            geometry.Grid() if name == LOGITS else network.grids.get(name),
            values.shape,
            size=size,
            scaled=scaled,
            extended=(extended[0], extended[1]),
            margin=0 if name == LOGITS else tiling.margin,
        )
        channel, note = options.channel, ""
        if channel < 0:
            channel, score = activations.representative(
                values, where, rule=options.rule, target=target
            )
            words = {"class": "r", "variance": "var", "mean": "mean"}[options.rule]
            note = f", {words} {score:.2g}" if np.isfinite(score) else ", constant"
        picture = activations.enlarge(values[..., channel], where)
        low, high = np.nanmin(picture), np.nanmax(picture)
        pictures.append(heatmaps.heat(picture, low, high))
        shape = "x".join(map(str, values.shape))
        captions.append(
            [name, f"{shape}, ch {channel}", f"{low:.2g} to {high:.2g}{note}"]
        )
    pictures.append(viz.colorize(label, info.palette))
    captions.append(["prediction", f"compared: {info.classes[index]}", ""])
    letters = [_letter(i) for i in range(len(pictures))]
    lines = [[f"({a}) {c[0]}", *c[1:]] for a, c in zip(letters, captions)]
    legend = viz.legend(info.classes, info.palette)
    return heatmaps.tiles(pictures, lines, columns=options.columns, below=legend)


def _letter(index: int) -> str:
    """a .. z, aa, ab, .."""
    tens, ones = divmod(index, 26)
    return (_letter(tens - 1) if tens else "") + string.ascii_lowercase[ones]
