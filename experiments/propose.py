"""Finds the object proposals of a split, says how many objects they find, draws them.

    python -m experiments.propose --config configs/deconvnet_voc_animals.py:stage2 \\
        --config.data.root=/path/to/VOCdevkit --processes=8
    python -m experiments.propose --config configs/deconvnet_voc_animals.py:small2 \\
        --config.data.root=/path/to/VOCdevkit --split=validation --output=/tmp/boxes
    python -m experiments.propose --config configs/deconvnet_voc_animals.py:small2 \\
        --config.data.root=/path/to/VOCdevkit --config.data.proposals=selective_search

Boxes are kept in config.data.data_dir, a file per image, where training (stage2),
evaluation and prediction find them; several of these commands share the work.  The
table says which fraction of the objects of the labels (config.data.instances=True:
instance maps) has a box of IoU .5 or more among the first N of its image.  With
--output, pictures of the first images with true boxes (green) and, for each, the
proposal that fits best (yellow), beside the first ten proposals (red).
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.shared import cli
from segjax import config as config_lib
from segjax import files, tables
from segjax.data import datasets, object_crops
from segjax.data.images import encode_png
from segjax.data.object_crops import Object
from segjax.errors import UserError
from segjax.proposals import boxes, check, stored

COUNTS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
GREEN, YELLOW, RED = (0, 200, 0), (255, 220, 0), (230, 40, 40)


def propose(
    config: ConfigDict,
    *,
    split: str = "",
    processes: int = 1,
    output: Path | None = None,
    pictures: int = 4,
) -> list[tuple[str, ...]]:
    """Finds the boxes, draws some, and returns the table of what they find.

    Raises:
      UserError: anything wrong with the config or the data.
    """
    config_lib.check(config)
    if processes < 1:
        raise UserError(f"--processes is {processes}; expected 1 or more")
    source, info = datasets.load(config.data, split or config.data.train_split)
    settings = object_crops.settings(config.data)
    check(settings, info.channels)
    proposed = stored.collect(
        source,
        settings,
        stored.folder_of(config.data.data_dir),
        workers=processes if processes > 1 else 0,
        threads=1,
    )
    background = info.classes[0] == object_crops.BACKGROUND
    least = config.data.object_least
    ranks: list[np.ndarray] = []
    for index, found in enumerate(proposed):
        example = source[index]
        objects = object_crops.objects(example, least=least, background=background)
        ranks.append(first_fits(found, objects))
        if output is not None and index < pictures:
            cli.make_folder(output)
            picture = draw(example["image"], found, objects)
            with files.atomic_write(output / f"proposals_{index}.png") as partial:
                partial.write_bytes(encode_png(picture))
    rank = np.concatenate([*ranks, np.zeros(0)])
    rows = [("boxes", "objects found")]
    for count in COUNTS:
        share = f"{(rank < count).mean():.3f}" if len(rank) else "-"
        rows.append((str(count), share))
    return rows


def first_fits(found: np.ndarray, objects: Sequence[Object]) -> np.ndarray:
    """The rank of the first box of IoU .5 or more of each object; inf: none."""
    if not len(found) or not objects:
        return np.full(len(objects), np.inf)
    fits = boxes.iou(found, np.array([one.box for one in objects]))
    fits = fits >= object_crops.OVERLAP
    return np.where(fits.any(0), fits.argmax(0), np.inf)


def draw(image: np.ndarray, found: np.ndarray, objects: Sequence[Object]) -> np.ndarray:
    """True boxes and the best proposal of each, beside the first ten proposals."""
    colors = np.broadcast_to(image[..., :1], (*image.shape[:2], 3))
    left = np.array(image if image.shape[2] == 3 else colors)
    right = left.copy()
    for box in found[:10]:
        _rectangle(right, box, RED)
    for one in objects:
        _rectangle(left, one.box, GREEN)
        if len(found):
            best = boxes.iou(found, np.array([one.box]))[:, 0].argmax()
            _rectangle(left, found[best], YELLOW)
    return np.concatenate([left, right], axis=1)


def _rectangle(image: np.ndarray, box: Sequence[int], color: tuple) -> None:
    left, top, right, bottom = map(int, box)
    cv2.rectangle(image, (left, top), (right, bottom), color, 1)


def main(argv) -> None:
    del argv
    values = flags.FLAGS
    output = files.absolute(values.output) if values.output else None
    rows = propose(
        values.config,
        split=values.split,
        processes=values.processes,
        output=output,
        pictures=values.pictures,
    )
    print(tables.text_table(rows))
    if output is not None:
        print(f"pictures in {output}")


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A file in configs/: its data.")
    flags.mark_flag_as_required("config")
    flags.DEFINE_string("split", "", "Of the data set; '': config.data.train_split.")
    flags.DEFINE_integer("processes", 1, "Processes that search.")
    flags.DEFINE_string("output", "", "Folder for pictures; '': none.")
    flags.DEFINE_integer("pictures", 4, "How many images are drawn.")
    cli.run(main)
