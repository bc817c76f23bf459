"""Checks a folder of own images and masks: experiments.prepare --check."""

import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tqdm
from ml_collections import ConfigDict

from experiments.shared import cli, training_run
from segjax import config as config_lib
from segjax import files, models, tables, viz
from segjax.data import datasets, folder, folder_ranges, transforms
from segjax.data.images import encode_png
from segjax.data.source import Example
from segjax.errors import UserError
from segjax.weak import supervision

IMAGES, DRAWS = 4, 3
"""Rows of the picture, and augmented examples in each."""
PICTURE = "augmentation.png"


class Checked(NamedTuple):
    """What ``check`` found."""

    lines: list[str]
    """The report, as lines of text."""
    bad: list[str]
    """What is wrong with images that cannot be decoded."""


def check(config: ConfigDict, root: str, output: Path | None = None) -> Checked:
    """Checks a folder as training does, decodes every image, and draws augmentation.

    Args:
      config: how the images are read (``config.data``), augmented and, for the context
        that its network needs, predicted.
      root: the folder; it takes the place of ``config.data.root``.
      output: gets the picture ``PICTURE``; None: none is drawn.

    Raises:
      UserError: as ``folder.scan``, or a field of the config is wrong.
    """
    config = config.copy_and_resolve_references()
    config.data.name, config.data.root = "folder", root
    config_lib.check(config)
    scanned = datasets.scan_folder(config.data)
    # Said below, of all images.
    notes = tuple(note for note in scanned.notes if "data.value_range" not in note)
    lines = [folder.report(scanned._replace(notes=notes)), ""]
    bad: list[str] = []
    with tqdm.tqdm(total=len(scanned.images), desc="decode", unit="image") as bar:
        held = folder_ranges.observe(
            scanned.images, scanned.channels, bad=bad, progress=bar.update
        )
    if held is not None:
        lines += [_table(held)]
        advice = folder_ranges.advice(held, scanned.value_range)
        lines += [f"note: {advice}"] * bool(advice)
    source, info = datasets.load(config.data, config.data.train_split)
    source = supervision.apply(source, config.data, info)
    options, note = _options(config, source, info)
    lines += [f"note: {note}"] * bool(note)
    if output is not None and not bad:
        cli.make_folder(output)
        rows = [_row(source[i], options, info.palette) for i in _spread(len(source))]
        captions = ["image", "label", *(f"augmented {i + 1}" for i in range(DRAWS))]
        picture = viz.grid(rows, captions, viz.legend(info.classes, info.palette))
        with files.atomic_write(output / PICTURE) as partial:
            partial.write_bytes(encode_png(picture))
        lines += [f"augmented training examples: {output / PICTURE}"]
    return Checked(lines, bad)


def _table(held: folder_ranges.Values) -> str:
    """The values of each channel."""
    rare = f"{folder_ranges.RARE:.1%}"
    rows = [("channel", "lowest", f"{rare} below", f"{rare} above", "highest")]
    for channel, (low, high) in enumerate(held.usual):
        values = held.lowest[channel], low, high, held.highest[channel]
        rows.append((str(channel), *map(str, values)))
    return f"values of {held.images} images of {held.bits} bits:\n" + tables.text_table(
        rows
    )


def _options(
    config: ConfigDict, source: datasets.Source, info: datasets.Dataset
) -> tuple[transforms.Options, str]:
    """The augmentation of training, and what would stop it; "" if nothing."""
    model = models.build(config, len(info.classes))
    try:
        return training_run.augmentation(config, source, model=model, info=info), ""
    except UserError as error:
        options = transforms.options(config.augment, info.mean)  # for other errors
        return options, str(error)


def _spread(count: int) -> list[int]:
    number = min(IMAGES, count)
    return [i * count // number for i in range(number)]


def _row(
    example: Example, options: transforms.Options, palette: np.ndarray
) -> list[np.ndarray]:
    """The image, its labels, and some draws of the augmentation."""
    pictures = [
        viz.overlay(example["image"], example["label"], palette=palette, alpha=alpha)
        for alpha in (0, 0.5)
    ]
    for draw in range(DRAWS):
        rng = np.random.default_rng([zlib.crc32(example["id"].encode()), draw])
        made = transforms.augment(example, rng, options)
        pictures.append(viz.overlay(made["image"], made["label"], palette=palette))
    return pictures
