"""What training, inference and analysis may ask of a network."""

from fractions import Fraction
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from segjax.ops import geometry


class CoarseScores(NamedTuple):
    """Where the class scores lie that the logits are interpolated from.

    A network that has them returns them as the endpoint ``scores`` [N, h, w, K]. A
    network that scores the image at several scales also returns the endpoint
    ``scale_logits``, a list of [N, h_i, w_i, K].
    """

    stride: int
    """Pixels between neighboring locations of ``scores``."""
    start: Fraction
    """Center of the first location in image coordinates; pixel 0 has its center at 0.
    In a network with a margin, in coordinates of the predicted part of the image."""
    label_offset: int
    """Row and column of the label that the first location is compared with."""
    scale_strides: tuple[int, ...] = ()
    """Pixels between neighboring locations of each entry of ``scale_logits``."""


class Network(Protocol):
    """A Flax module that maps images to class scores.

    ``apply(variables, images, train=bool)`` returns ``(logits, endpoints)``: images
    [N, H, W, C] uint8 or float, 0..255; logits [N, h, w, K] float32; endpoints a dict
    of intermediate maps. Endpoints named ``aux_logits*`` [N, h, w, K] are auxiliary
    classifiers, which training adds to the loss. A network of which parts never change
    names these modules in a tuple ``frozen``, which the optimizer leaves alone.
    """

    num_classes: int

    @property
    def tiling(self) -> geometry.Tiling:
        """Which image sides are accepted, and the margin that is not predicted."""

    @property
    def coarse_scores(self) -> CoarseScores | None:
        """Where the scores before the last interpolation lie; None: there are none."""

    def __call__(
        self, images: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Logits and endpoints; called inside ``init`` and ``apply``."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
        """Newly initialized variables."""

    def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls the network with these variables."""


def abstract_variables(model: Network, channels: int = 3) -> dict[str, Any]:
    """{"params", "batch_stats"} of a network, as shapes; traced on a small image."""
    side = geometry.nearest_sides(model.tiling, 64)[-1]
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    images = jax.ShapeDtypeStruct((1, side, side, channels), np.uint8)
    variables = jax.eval_shape(lambda x: model.init(keys, x, train=True), images)
    return {name: variables.get(name, {}) for name in ("params", "batch_stats")}
