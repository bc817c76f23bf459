"""Figures of docs/tour.md, drawn with the parts of the program."""

from collections.abc import Callable

from experiments.tour import (
    augmentation,
    classifying,
    context,
    convolutions,
    decoding,
    microscopy,
    random_fields,
    streams,
    trained,
)

FIGURES: dict[str, Callable[..., bytes]] = {
    "local": convolutions.local,
    "heat": classifying.heat,
    "one_by_one": convolutions.one_by_one,
    "upsampling": convolutions.upsampling,
    "skips": trained.skips,
    "unpooling": decoding.unpooling,
    "layers": trained.layers,
    "boxes": decoding.boxes,
    "fields": convolutions.fields,
    "context": context.context,
    "atrous": convolutions.atrous,
    "aspp": context.aspp,
    "crf": random_fields.crf,
    "tile": microscopy.tile,
    "augmentations": augmentation.augmentations,
    "deformation": microscopy.deformation,
    "borders": microscopy.borders,
    "fusion": streams.fusion,
    "frrn": streams.frrn,
    "pyramid": context.pyramid,
    "results": trained.results,
}
"""Every figure by the name of its file, in the order of the page."""
