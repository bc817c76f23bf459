"""Figures of docs/tour.md, drawn with the parts of the program."""

from collections.abc import Callable

from experiments.tour import context, convolutions, microscopy

FIGURES: dict[str, Callable[..., bytes]] = {
    "local": convolutions.local,
    "one_by_one": convolutions.one_by_one,
    "upsampling": convolutions.upsampling,
    "fields": convolutions.fields,
    "context": context.context,
    "atrous": convolutions.atrous,
    "aspp": context.aspp,
    "tile": microscopy.tile,
    "deformation": microscopy.deformation,
    "borders": microscopy.borders,
    "pyramid": context.pyramid,
}
"""Every figure by the name of its file, in the order of the page."""
