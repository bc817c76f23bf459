"""Which labels training sees: ``data.supervision`` and the fields around it."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from segjax.data.source import (
    Dataset,
    Example,
    Mixture,
    Selection,
    Size,
    Source,
)
from segjax.errors import UserError
from segjax.labels import VOID
from segjax.weak import objects, pseudo_labels

FULL = "full"
KINDS = (FULL, "image", "box", "pseudo", "none")
"""Values of ``data.supervision``; see the field."""
WEAK = ("image", "box", "pseudo")
"""Those whose examples say which classes are present."""

# The E-steps (``loss.em``) that make sense with each kind of labels.
_EM = {
    FULL: ("none",),
    "image": ("fixed", "adapt"),
    "box": ("none", "box_fixed"),
    "pseudo": ("none",),
    "none": ("none",),
}


def check(values: Mapping[str, Any]) -> None:
    """Checks fields that depend on ``data.supervision``; ``values`` by flat names.

    Raises:
      UserError: a field that would have no effect, or labels that cannot be used.
    """
    kind = values["data.supervision"]
    reason = f"with --config.data.supervision={kind}"

    def require(ok: bool, field: str, expected: str) -> None:
        if not ok:
            found = values[field]
            raise UserError(f"--config.{field} is {found!r}; expected {expected}")

    em = values["loss.em"]
    require(em in _EM[kind], "loss.em", f"{' or '.join(_EM[kind])} {reason}")
    folder = values["data.pseudo_labels"]
    if kind == "pseudo":
        expected = f"a folder of experiments.pseudo_labels {reason}"
        require(bool(folder), "data.pseudo_labels", expected)
    else:
        require(not folder, "data.pseudo_labels", f"'' {reason}")
    strong = values["data.strong_images"]
    if kind == FULL:
        require(not strong, "data.strong_images", f"0 {reason}: all images are strong")
    if kind == "none":
        require(strong > 0, "data.strong_images", f"1 or more {reason}")
    if not strong or kind == "none":
        without = f"--config.data.strong_images={strong}" if not strong else reason
        without = without.removeprefix("with ")
        for field, default in (("data.strong_share", 0.0), ("loss.weak_weight", 1.0)):
            require(values[field] == default, field, f"{default} with {without}")
    if kind == FULL:
        return
    require(
        values["data.objects"] == "none",
        "data.objects",
        f"'none' {reason}: crops of objects are made of full masks",
    )
    require(
        not values["loss.border_weight"] and not values["augment.separate"],
        "loss.border_weight" if values["loss.border_weight"] else "augment.separate",
        f"0 {reason}: it is computed from full masks",
    )
    classes = values["loss.class_weights"]
    if em != "none" or values["loss.weak_weight"] != 1:
        require(
            not classes,
            "loss.class_weights",
            f"() with --config.loss.em={em} and --config.loss.weak_weight="
            f"{values['loss.weak_weight']}",
        )


class Weak:
    """A training source whose images have weak labels, but for the strong ones."""

    def __init__(
        self,
        source: Source,
        *,
        kind: str,
        num_classes: int,
        strong: Sequence[int] = (),
        folder: str = "",
    ):
        """Wraps a source of full labels.

        Args:
          source: with instance maps, or without them.
          kind: "image", "box" or "pseudo".
          num_classes: K.
          strong: positions of the images that keep their labels.
          folder: of pseudo-labels.
        """
        self._source, self._kind, self._classes = source, kind, num_classes
        self._strong, self._folder = frozenset(strong), folder

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        label, present = example["label"], np.zeros(self._classes, np.uint8)
        if index not in self._strong:
            present[0] = 1
            present[np.unique(label[label != VOID])] = 1
            label = self._weaken(example)
        return {
            "image": example["image"],
            "label": label,
            "id": example["id"],
            "present": present,
        }

    def _weaken(self, example: Example) -> np.ndarray:
        label = example["label"]
        if self._kind == "box":
            found = objects.find(label, example.get("instance"))
            return objects.rectangles(found, label.shape)
        if self._kind == "pseudo":
            return pseudo_labels.read(
                self._folder, example["id"], label.shape, num_classes=self._classes
            )
        return np.zeros_like(label)  # the E-step decides

    @property
    def sizes(self) -> list[Size]:
        """(H, W) of every example."""
        return self._source.sizes

    @property
    def identities(self) -> list[str]:
        """Those of the source: the images are the same."""
        return self._source.identities

    def __repr__(self) -> str:
        kind, count = self._kind, len(self._strong)
        return f"Weak({self._source!r}, {kind}, {count} strong, {self._folder!r})"


def strong_images(source: Source, count: int) -> list[int]:
    """Positions of the images that keep their labels, in order.

    Those whose identities have the lowest SHA-256: fewer of them are a part of more of
    them, and copies of the same data have the same ones.
    """
    digests = [hashlib.sha256(text.encode()).digest() for text in source.identities]
    return sorted(sorted(range(len(digests)), key=digests.__getitem__)[:count])


def apply(source: Source, data: Mapping[str, Any], dataset: Dataset) -> Source:
    """The training source with the labels that ``data.supervision`` asks for.

    Args:
      source: of full labels.
      data: the ``data`` section of a config, checked.
      dataset: what the source holds.

    Raises:
      UserError: no class 0 called "background", more strong images than there are, or
        pseudo-labels of other classes.
    """
    kind, count = data["supervision"], data["strong_images"]
    if kind == FULL:
        return source
    if count >= len(source):
        raise UserError(
            f"--config.data.strong_images is {count}; expected fewer than the "
            f"{len(source)} training images"
        )
    strong = strong_images(source, count)
    if kind == "none":
        return Selection(source, strong)
    check_background(kind, dataset)
    if kind == "pseudo":
        pseudo_labels.check(
            data["pseudo_labels"], classes=dataset.classes, images=len(source)
        )
    return Weak(
        source,
        kind=kind,
        num_classes=len(dataset.classes),
        strong=strong,
        folder=data["pseudo_labels"],
    )


def check_background(kind: str, dataset: Dataset) -> None:
    """Raises UserError unless class 0 is what is outside of all objects."""
    if dataset.classes[0] != "background":
        raise UserError(
            f"--config.data.supervision is {kind!r}, but class 0 of {dataset.name} is "
            f"{dataset.classes[0]!r}; expected 'full', or a data set whose class 0 is "
            "called 'background'"
        )


def mixture(source: Source, data: Mapping[str, Any]) -> Mixture | None:
    """How often the strong images of a training source are drawn; None: as all."""
    if not data["strong_share"]:
        return None
    strong = strong_images(source, data["strong_images"])
    return Mixture(tuple(strong), data["strong_share"])
