"""Writes masks for training images of which only the boxes of objects are known.

    python -m experiments.pseudo_labels --config configs/wssl_animals.py:crf \\
        --config.data.root=/path/to/VOCdevkit --method=crf --output=pseudo/crf
    python -m experiments.train --config configs/wssl_animals.py:crf \\
        --workdir runs/crf --config.data.root=/path/to/VOCdevkit

The boxes are those of the full masks: of instances with --config.data.instances,
otherwise of connected regions of a class. Methods:

  rectangles  boxes filled with their classes (as data.supervision=box, without files)
  crf         the dense CRF of --config.crf in each box (WSSL's Bbox-Seg)
  grabcut     GrabCut in each box
  boxsup      a candidate mask for each box (BoxSup): those that fit the box best or,
              with --workdir, those that the network of that run agrees with, too

Writes into --output a palette PNG for each image of config.data.train_split, and
pseudo_labels.json: how the masks were made, and how well they agree with the full ones.
Training reads the folder with data.supervision=pseudo. A command that was stopped
continues when it is started again.

Exit codes: 0 all written; 1 some images could not be read, all others are written; 2
bad input.
"""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.shared import cli
from segjax import config as config_lib
from segjax import errors, files, inference, metrics, sharding
from segjax import workdir as workdir_lib
from segjax.data import datasets, pipeline
from segjax.errors import UserError
from segjax.inference import trained
from segjax.labels import VOID
from segjax.ops import mean_field
from segjax.weak import (
    boxsup,
    candidates,
    in_boxes,
    objects,
    pseudo_labels,
    supervision,
)

METHODS = ("rectangles", "crf", "grabcut", "boxsup")
SIDE = 64
"""Images are extended to multiples of it for the network."""


class Options(NamedTuple):
    """How masks are made; each method uses the fields that it mentions."""

    method: str = "rectangles"
    center: float = 0.2
    """crf: share of the area of a box, around its center, that is its object's."""
    choice: boxsup.Settings = boxsup.DEFAULT
    """boxsup: how candidates are chosen."""


def write(
    config: ConfigDict,
    output: Path,
    *,
    options: Options,
    workdir: Path | None = None,
    checkpoint: str = "latest",
) -> int:
    """Writes the masks of the training split; returns the exit code.

    Args:
      config: ``data`` says which images and objects; ``crf`` and ``seed``.
      output: the folder.
      options: see :class:`Options`.
      workdir: of the network, for the method "boxsup"; None: the first round.
      checkpoint: of the workdir: "best", "latest" or a step.

    Raises:
      UserError: a wrong field, another network or data set, or masks that were made in
        another way lie in ``output``.
    """
    config_lib.check(config)
    source, info = datasets.load(config.data, config.data.train_split)
    supervision.check_background("box", info)
    segmenter = _network(workdir, checkpoint, info)
    description = _description(
        config, options, source=source, info=info, segmenter=segmenter
    )
    known = _known(output, description)
    if known is not None and known["complete"]:
        cli.log(f"{output} is complete: {_summary(known)}")
        return 0
    cli.make_folder(output)
    pseudo_labels.describe(output, description | {"complete": False})
    make = _method(config, options, segmenter)
    confusion = np.zeros((len(info.classes),) * 2, np.int64)
    bad = []
    bar = tqdm.tqdm(range(len(source)), desc=options.method, unit="image")
    for index in bar:
        try:
            example = source[index]
        except UserError as error:
            bad.append(str(error))
            tqdm.tqdm.write(f"bad: {error}", file=bar.fp)
            continue
        truth, name = example["label"], example["id"]
        if pseudo_labels.mask_path(output, name).is_file():
            label = pseudo_labels.read(
                output, name, truth.shape, num_classes=len(info.classes)
            )
        else:
            found = objects.find(truth, example.get("instance"))
            label = make(example["image"], found, name)
            pseudo_labels.write(output, name, label, info.palette)
        valid = (truth != VOID) & (label != VOID)
        pairs = truth[valid].astype(np.int64) * len(confusion) + label[valid]
        confusion += np.bincount(pairs, minlength=confusion.size).reshape(
            confusion.shape
        )
    if bad:
        cli.log(f"{len(bad)} images could not be read; {output} is not complete")
        return 1
    scores = metrics.scores(confusion)
    description |= {
        "complete": True,
        "miou": round(scores["miou"], 4),
        "pixel_accuracy": round(scores["pixel_accuracy"], 4),
    }
    pseudo_labels.describe(output, description)
    cli.log(f"{output}: {_summary(description)}")
    return 0


def _summary(description: dict[str, Any]) -> str:
    return (
        f"masks of {description['images']} images; against the full masks: mIoU "
        f"{description['miou']}, pixel accuracy {description['pixel_accuracy']}"
    )


def _network(
    workdir: Path | None, checkpoint: str, info: datasets.Dataset
) -> inference.Segmenter | None:
    if workdir is None:
        return None
    workdir_lib.check_same_classes(
        workdir_lib.read_dataset(workdir), info, where=str(workdir)
    )
    mesh = sharding.make_mesh(jax.local_devices()[:1])
    return inference.load(workdir, checkpoint=checkpoint, mesh=mesh)


def _description(
    config: ConfigDict,
    options: Options,
    *,
    source: datasets.Source,
    info: datasets.Dataset,
    segmenter: inference.Segmenter | None,
) -> dict[str, Any]:
    """All that the masks depend on."""
    found: dict[str, Any] = {
        "method": options.method,
        "classes": list(info.classes),
        "images": len(source),
        "fingerprint": datasets.fingerprint(source),
        "instances": config.data.instances,
    }
    if options.method == "crf":
        found |= {"center": options.center, "crf": dict(config.crf)}
    if options.method == "boxsup":
        found |= {"seed": config.seed, **options.choice._asdict()}
    if segmenter is not None:
        found["step"] = segmenter.steps[0]
        found["weights"] = trained.fingerprint(segmenter.variables)
    return found


def _known(output: Path, description: dict[str, Any]) -> dict[str, Any] | None:
    """The description of a folder that was begun before; None if there is none.

    Raises:
      UserError: its masks were made in another way, or there are other files.
    """
    if not (output / pseudo_labels.DESCRIPTION).exists():
        if output.is_dir() and any(output.iterdir()):
            raise UserError(
                f"--output {output}: holds files but no {pseudo_labels.DESCRIPTION}; "
                "expected a new folder, or one that this program has begun"
            )
        return None
    known = pseudo_labels.description(output)
    for name, value in description.items():
        if known.get(name) != value:
            raise UserError(
                f"--output {output}: holds masks with {name}={known.get(name)!r}, this "
                f"command has {value!r}: use another --output"
            )
    return known


MakeLabel = Callable[[np.ndarray, list[objects.Object], str], np.ndarray]


def _method(
    config: ConfigDict, options: Options, segmenter: inference.Segmenter | None
) -> MakeLabel:
    """From image, objects and id to the mask of the image."""
    crf = mean_field.Settings(**config.crf)
    step = 0 if segmenter is None else segmenter.steps[0]

    def rectangles(image, found, name):
        del name
        return objects.rectangles(found, image.shape[:2])

    def in_crf(image, found, name):
        del name
        masks = [
            in_boxes.dense_crf(image, x.box, settings=crf, center=options.center)
            for x in found
        ]
        return objects.paint(found, masks, image.shape[:2])

    def in_grabcut(image, found, name):
        del name
        masks = [in_boxes.grabcut(image, x.box) for x in found]
        return objects.paint(found, masks, image.shape[:2])

    def by_candidates(image, found, name):
        return boxsup.labels(
            candidates.propose(image),
            found,
            log_probabilities=None if segmenter is None else _predict(segmenter, image),
            rng=np.random.default_rng([config.seed, step, zlib.crc32(name.encode())]),
            settings=options.choice,
        )

    makers = {
        "rectangles": rectangles,
        "crf": in_crf,
        "grabcut": in_grabcut,
        "boxsup": by_candidates,
    }
    return makers[options.method]


def _predict(segmenter: inference.Segmenter, image: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, [H, W, K], of one image."""
    height, width = image.shape[:2]
    shape = height + -height % SIDE, width + -width % SIDE
    run = segmenter.executable((1, *shape), outputs=("scores",))
    padded = pipeline.mirror_to(image, shape)
    found = np.asarray(run(padded[None])["scores"])[0, :height, :width]
    return np.log(np.maximum(found, 1e-8))


def _options() -> Options:
    """The options of the flags.

    Raises:
      UserError: a flag that the method does not use, or a bad value.
    """
    values = flags.FLAGS
    if values.method not in METHODS:
        raise errors.unknown("--method", values.method, METHODS)
    used = {"crf": {"center"}, "boxsup": {"weight", "top", "smallest_overlap"}}
    for name in ("center", "weight", "top", "smallest_overlap"):
        if values[name].present and name not in used.get(values.method, set()):
            raise UserError(f"--{name} has no effect with --method={values.method}")
    if values.workdir and values.method != "boxsup":
        raise UserError(f"--workdir has no effect with --method={values.method}")
    if values.checkpoint != values["checkpoint"].default and not values.workdir:
        raise UserError("--checkpoint has no effect without --workdir")
    if values["weight"].present and not values.workdir:
        raise UserError("--weight has no effect without --workdir")
    return Options(
        method=values.method,
        center=values.center,
        choice=boxsup.Settings(values.weight, values.top, values.smallest_overlap),
    )


def main(argv) -> int:
    del argv
    options = _options()
    output = files.user_path("--output", flags.FLAGS.output).absolute()
    run = flags.FLAGS.workdir
    cli.start()
    check_alone("experiments.pseudo_labels")
    return write(
        flags.FLAGS.config,
        output,
        options=options,
        workdir=files.user_path("--workdir", run).absolute() if run else None,
        checkpoint=flags.FLAGS.checkpoint,
    )


def check_alone(program: str) -> None:
    """Raises UserError if other processes would write the same masks."""
    if jax.process_count() > 1:
        raise UserError(f"{program} runs in one process: --distributed=off")


def define_choices() -> None:
    """Defines the flags of BoxSup's choice of candidates."""
    chosen = boxsup.DEFAULT
    flags.DEFINE_float(
        "weight",
        chosen.weight,
        "boxsup: weight of the network's cross-entropy (lambda).",
        lower_bound=0,
    )
    flags.DEFINE_integer(
        "top", chosen.top, "boxsup: one of so many best is drawn.", lower_bound=1
    )
    flags.DEFINE_float(
        "smallest_overlap",
        chosen.smallest_overlap,
        "boxsup: IoU of a box with that of a candidate, from 0 to 1.",
        lower_bound=0,
        upper_bound=1,
    )


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "A file in configs/.")
    flags.DEFINE_string("method", "rectangles", f"One of {', '.join(METHODS)}.")
    flags.DEFINE_string("output", None, "Folder of the masks.")
    flags.DEFINE_string("workdir", "", "boxsup: run whose network judges candidates.")
    flags.DEFINE_string("checkpoint", "latest", "Of --workdir: best, latest or a step.")
    flags.DEFINE_float(
        "center",
        Options().center,
        "crf: share of a box, around its center, that is of its object.",
        lower_bound=0,
        upper_bound=1,
    )
    define_choices()
    flags.mark_flags_as_required(["config", "output"])
    cli.run(main)
