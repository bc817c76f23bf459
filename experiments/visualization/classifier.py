"""An ImageNet classifier that was made convolutional, and where it sees a class.

FCN (CVPR 2015), figure 2: the classifier, applied to an image larger than those it was
trained on, gives a map of scores instead of one vector.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np

from experiments.shared import cli, initialization
from experiments.visualization import inputs
from segjax import files, heatmaps, image_stats, viz, weights
from segjax.analysis import receptive_field
from segjax.analysis.tracing import LOGITS
from segjax.errors import UserError
from segjax.models import backbones
from segjax.models.classifier import Classifier
from segjax.models.network import abstract_variables
from segjax.ops import geometry, resize

_TRAINING_HEADS = ("loss1_", "loss2_")  # of GoogLeNet, which prediction does not use


class Network(NamedTuple):
    """A classifier, ready to be applied."""

    model: Classifier
    variables: dict[str, Any]
    classes: tuple[str, ...]
    grid: geometry.Grid
    """Where its scores lie in the image."""
    run: Callable[[Any, np.ndarray], jax.Array]
    """(variables, images [1, H, W, 3]) -> probabilities [1, h, w, K], compiled."""


def read_names(path: str, count: int) -> tuple[str, ...]:
    """Names of ``count`` classes, one per line; numbers if the path is empty.

    Raises:
      UserError: the file cannot be read, or has another number of names.
    """
    if not path:
        return tuple(map(str, range(count)))
    text = files.read_text(files.user_path("--names", path), "names of classes")
    names = tuple(line.strip() for line in text.splitlines() if line.strip())
    if len(names) != count:
        raise UserError(
            f"--names={path}: has {len(names)} lines, expected one for each of the "
            f"{count} classes of the weights"
        )
    return names


def load(
    file: Path, backbone: str, *, names: str = "", lrn_first: bool = False
) -> Network:
    """A classifier with published weights.

    Args:
      file: of the weights, see docs/weights.md.
      backbone: a key of ``backbones.BACKBONES``.
      names: a file of the names of the classes, or "".
      lrn_first: of AlexNet, which its weights do not tell, see ``alexnet.AlexNet``.

    Raises:
      UserError: the file cannot be read, is of another network, or has no class scores.
    """
    arrays = weights.read(file)
    fields = {
        field.name: field.default
        for field in dataclasses.fields(Classifier)
        if field.name not in ("num_classes", "parent", "name")
    } | {"backbone": backbone, "lrn_first": lrn_first}
    known, images = weights.published(arrays.keys(), model="classifier", fields=fields)
    fields |= {name: value for name, value in known.items() if name in fields}
    fields["image_stats"] = (
        initialization.image_stats_of(images) or fields["image_stats"]
    )
    if any(".running_mean" in name for name in arrays) and backbone == "vgg16":
        fields["norm"] = "batch"

    @functools.cache
    def shapes(num_classes: int, channels: int = 3) -> weights.Shapes:
        model = Classifier(num_classes=num_classes, **fields)
        leaves = weights.flatten(abstract_variables(model, channels))
        return {name: tuple(leaf.shape) for name, leaf in leaves.items()}

    info = weights.ModelInfo(
        "classifier", fields, weights.Images(*image_stats.find(fields["image_stats"]))
    )
    try:
        imported = weights.import_arrays(arrays, info, shapes_of=shapes)
    except UserError as error:
        raise UserError(inputs.message(str(file), error)) from error
    missing = [
        layer
        for layer in imported.result.missing
        if not layer.startswith(_TRAINING_HEADS)
    ]
    if missing or not imported.num_classes:
        what = ", ".join(missing) or "the class scores"
        raise UserError(
            f"{file}: does not have {what}; expected the weights of a whole classifier"
        )
    for note in imported.result.notes:
        cli.log(f"note: {note}")
    model = Classifier(num_classes=imported.num_classes, **fields)
    abstract = abstract_variables(model)
    zeros = {
        name: np.zeros(leaf.shape, leaf.dtype)
        for name, leaf in weights.flatten(abstract).items()
    }
    variables = weights.replace(abstract, zeros | dict(imported.result.arrays))

    def run(variables: Any, images: jax.Array) -> jax.Array:
        logits, _ = model.apply(variables, images, train=False)
        return jax.nn.softmax(logits, axis=-1)

    return Network(
        model,
        jax.device_put(variables),
        read_names(names, imported.num_classes),
        receptive_field.grids(model)[LOGITS],
        jax.jit(run),
    )


def sized(pixels: np.ndarray, backbone: str, side: int) -> np.ndarray:
    """An image whose shorter side is ``side``, or, if that is 0, no less than needed.

    Args:
      pixels: uint8 [H, W, 3].
      backbone: of the classifier.
      side: in pixels, at least that of the images the classifier was trained on.
    """
    shorter = min(pixels.shape[:2])
    side = side or max(shorter, backbones.BACKBONES[backbone].crop)
    if side == shorter:
        return pixels
    height, width = (round(length * side / shorter) for length in pixels.shape[:2])
    how = cv2.INTER_AREA if side < shorter else cv2.INTER_LINEAR
    return cv2.resize(pixels, (width, height), interpolation=how)


def draw(
    network: Network,
    pixels: np.ndarray,
    *,
    names: Sequence[str],
    top: int,
    columns: int,
) -> tuple[np.ndarray, dict[str, float]]:
    """The image and a heat map per class, from 0 to 1; uint8 [h, w, 3].

    Probabilities are interpolated bilinearly between the locations of the map, which
    lie at the centers of their receptive fields; beyond the outermost ones they are
    repeated.

    Args:
      network: of :func:`load`.
      pixels: uint8 [H, W, 3], at least as large as the network needs.
      names: of the classes to show.
      top: if none are named: so many of those with the highest probability anywhere.
      columns: pictures per row.

    Returns:
      The picture, and the highest probability of each class that is shown.
    """
    found = np.asarray(network.run(network.variables, pixels[None])[0])
    highest = found.max(axis=(0, 1))
    chosen = [inputs.class_index(network.classes, name) for name in names]
    if not chosen:
        chosen = np.argsort(-highest, kind="stable")[:top].tolist()
    rows, across = (
        resize.interpolation_matrix(
            network.grid, count, target=geometry.Grid(), count=length
        )
        for count, length in zip(found.shape[:2], pixels.shape[:2])
    )
    size = f"map of {found.shape[0]}x{found.shape[1]}"
    pictures, captions = [viz.rgb(pixels)], [["image", size]]
    for index in chosen:
        values = rows @ found[..., index] @ across.T
        pictures.append(heatmaps.heat_overlay(pixels, values, low=0, high=1))
        captions.append([network.classes[index], f"max {highest[index]:.3f}"])
    bar = heatmaps.heat_bar("probability 0", "1")
    picture = heatmaps.tiles(pictures, captions, columns=columns, below=bar)
    return picture, {network.classes[i]: float(highest[i]) for i in chosen}
