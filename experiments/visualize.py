"""Looks inside a trained network: pictures of what it computes of an image.

    python -m experiments.visualize --workdir runs/net --output look photo.jpg
    python -m experiments.visualize --workdir runs/net --output look photo.jpg \\
        --what=field --pixel=120,200
    python -m experiments.visualize --workdir runs/net --output look photos \\
        --what=heatmap --class=tree,wire --scales=0.75,1,1.25
    python -m experiments.visualize --workdir runs/a --other runs/b --output look \\
        --what=disagreement --split=validation --number=20

--what chooses the picture:

    activations   a map of every layer, enlarged to the size of the image: the channel
                  that is most representative of it, or --channel; --endpoints chooses
                  layers, by names or patterns such as 'deconv*'
    field         which pixels move the score of the pixel --pixel, the gradient: the
                  effective receptive field; the theoretical one is framed
    heatmap       the probability of the classes --class at every pixel
    disagreement  where this run (A) and --other (B) predict different classes, and
                  which of them is right, if there are labels: those of a --split, or
                  masks of train ids in --labels

heatmap and disagreement predict as experiments.predict does, and take its flags;
activations and field are of the network alone, of whole images.  Takes files, folders,
globs and @lists, or with --split the first --number images of a split of the run's data
set.  Writes OUTPUT/WHAT/NAME.png, and OUTPUT/WHAT.json with what failed and, for
disagreement, the counts of pixels.  docs/visualize.md explains the pictures.

Exit codes: 0; 1 if an image could not be read, was skipped or had no mask (all others
are done); 2 bad input.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags

from experiments.shared import cli, predict_flags
from experiments.visualization import activations, disagreement, field, heat, inputs
from segjax import config as config_lib
from segjax import files, inference
from segjax.analysis.activations import RULES
from segjax.errors import UserError
from segjax.inference import collection

WHAT = ("activations", "field", "heatmap", "disagreement")

# Flags that have an effect on some pictures only.
_ONLY = {
    "endpoints": ("activations",),
    "channel": ("activations",),
    "rule": ("activations",),
    "pixel": ("field",),
    "class": ("activations", "field", "heatmap"),
    "columns": ("activations", "heatmap", "disagreement"),
    "other": ("disagreement",),
    "labels": ("disagreement",),
} | {
    name: ("heatmap",) if name.startswith("ensemble") else ("heatmap", "disagreement")
    for name in predict_flags.NAMES
    if name not in ("checkpoint", "max_pixels")
}


def look(
    images: inputs.Images,
    draw: Callable[[np.ndarray], np.ndarray],
    *,
    segmenter: inference.Segmenter,
    what: str,
    output: Path,
    max_pixels: int,
) -> dict[str, str]:
    """Draws image by image and writes the pictures; what is wrong, by image."""
    failures: dict[str, str] = {}
    for path, image in tqdm.tqdm(images.sources.items(), what, unit="image"):
        try:
            pixels = inputs.read(
                image,
                channels=segmenter.info.channels,
                value_range=segmenter.value_range,
            )
            size = segmenter.input_size((pixels.shape[0], pixels.shape[1]))
            inputs.check_pixels(size, max_pixels)
            picture = draw(pixels)
        except UserError as error:
            failures[path] = inputs.message(path, error)
            continue
        inputs.save(output, what, images.names[path], picture)
    return failures


def _load(workdir: Path, config: Any) -> inference.Segmenter:
    """The run with the flags of prediction."""
    values = flags.FLAGS
    return inference.load(
        workdir,
        *values.ensemble,
        checkpoint=values.checkpoint,
        config=config,
        options=predict_flags.options(config),
        crf=predict_flags.crf_settings(config, values.crf),
    )


def _other(segmenter: inference.Segmenter, first: Path) -> dict:
    """Run A and run B, by names that differ."""
    path = files.absolute(flags.FLAGS.other)
    second = _load(path, config_lib.load(path / "config.json"))
    for what in ("classes", "channels"):
        if getattr(second.info, what) != getattr(segmenter.info, what):
            raise UserError(
                f"--other={path}: was trained for other {what} than {first}; runs that "
                "are compared need the same"
            )
    names = [first.name, path.name]
    if names[0] == names[1]:
        shared = os.path.commonpath([first.parent, path.parent])
        names = [os.path.relpath(p, shared) for p in (first, path)]
    if names[0] == names[1]:
        raise UserError(f"--other={path}: is the run itself; expected another one")
    return dict(zip(names, (segmenter, second), strict=True))


def _pixel(values: Sequence[str]) -> tuple[int, int] | None:
    if not values:
        return None
    if len(values) != 2 or not all(value.isdecimal() for value in values):
        raise UserError(
            f"--pixel={','.join(values)}: expected ROW,COLUMN of the image, from 0"
        )
    return int(values[0]), int(values[1])


def _check(arguments: Sequence[str]) -> None:
    """Raises a UserError for flags that do not go together."""
    values = flags.FLAGS
    for name, uses in _ONLY.items():
        if values[name].present and values.what not in uses:
            raise UserError(
                f"--{name} has no effect on --what={values.what}, only on "
                f"{' and '.join(uses)}; leave it out"
            )
    if bool(arguments) == bool(values.split):
        raise UserError(
            "name either images (files, folders, globs or @lists) or a --split"
        )
    if values.split and values.labels:
        raise UserError("--labels is for images in files; a split has its own labels")
    if values.number < 0 or (values["number"].present and not values.split):
        raise UserError(
            f"--number={values.number}: expected 0 or more, with --split only"
        )
    if (values.what == "disagreement") != bool(values.other):
        raise UserError("--what=disagreement compares with another run: give --other")
    if values.what == "field" and len(values["class"].value) > 1:
        raise UserError("--class: --what=field shows one class")
    if values.what == "activations" and len(values["class"].value) > 1:
        raise UserError("--class: --what=activations compares with one class")
    if values.columns < 1:
        raise UserError(f"--columns={values.columns}: expected 1 or more")


def main(argv: Sequence[str]) -> int:
    values, config = flags.FLAGS, flags.FLAGS.config
    _check(argv[1:])
    pixel = _pixel(values.pixel)
    collection.check_limits(values.padding, values.max_pixels)
    labels = None
    if values.labels:
        labels = files.find_folder("--labels", values.labels, "masks of train ids")
    cli.start()
    if jax.process_count() > 1:
        raise UserError("experiments.visualize runs in one process: --distributed=off")
    config_lib.check(config)
    workdir = files.absolute(values.workdir)
    output = files.user_path("--output", values.output).absolute()
    if values.split:
        images = inputs.of_split(
            config, values.split, workdir=workdir, number=values.number
        )
    else:
        images = inputs.of_files(argv[1:], output)
    if labels:
        inputs.check_stems(images)
    segmenter = _load(workdir, config)
    if len(segmenter.info.classes) > 255:
        raise UserError(
            f"--workdir={workdir}: has {len(segmenter.info.classes)} classes; pictures "
            "have colors for 255"
        )
    what, names = values.what, values["class"].value
    limits = (values.padding, values.max_pixels)
    counts: dict[str, disagreement.Counts] = {}
    shared = {"output": output, "columns": values.columns}
    shared |= {"limits": limits, "threads": config.threads}
    if what == "heatmap":
        cli.make_folder(output)
        failures = heat.write(images, segmenter, names=names, **shared)
    elif what == "disagreement":
        runs = _other(segmenter, workdir)
        cli.make_folder(output)
        failures, counts = disagreement.write(images, runs, labels=labels, **shared)
    else:
        if what == "field":
            network = field.load(segmenter, pixel, "".join(names))
            draw = field.draw
        else:
            network = activations.load(
                segmenter,
                activations.Options(
                    endpoints=values.endpoints,
                    channel=values.channel,
                    rule=values.rule,
                    class_name="".join(names),
                    columns=values.columns,
                ),
            )
            draw = activations.draw
        cli.make_folder(output)
        failures = look(
            images,
            lambda pixels: draw(network, pixels),
            segmenter=segmenter,
            what=what,
            output=output,
            max_pixels=values.max_pixels,
        )
    facts = {"failures": failures, "skipped": images.skipped}
    if what == "disagreement":
        facts["shares"] = disagreement.total(counts)
        facts["images"] = {
            images.names[path]: {"pixels": one.pixels, **one.by_kind}
            for path, one in counts.items()
        }
        for kind, share in facts["shares"].items():
            print(f"{kind}: {share:.2%} of the pixels")
    files.write_json(output / f"{what}.json", facts)
    for message in failures.values():
        print(f"failed: {message}", file=sys.stderr)
    written = len(images.sources) - len(failures)
    print(f"{written} pictures written to {output / what}, {len(failures)} failed")
    return 1 if failures or images.skipped else 0


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_enum("what", "activations", WHAT, "Which picture; see above.")
    flags.DEFINE_string("output", None, "Folder for the pictures.", required=True)
    flags.DEFINE_string("split", "", "Look at this split of the run's data set.")
    flags.DEFINE_integer("number", 8, "How many of its images; 0: all.")
    flags.DEFINE_list(
        "endpoints",
        ["*"],
        "activations: names of layers, or patterns; all by default. A wrong name lists "
        "all that there are.",
    )
    flags.DEFINE_integer(
        "channel",
        -1,
        "activations: this channel of each, from 0; -1: chosen by --rule.",
    )
    flags.DEFINE_enum(
        "rule",
        RULES[0],
        RULES,
        "activations: the most representative channel is the one of the highest "
        "correlation with the probability of a class, of the largest variance over the "
        "image, or of the largest mean.",
    )
    flags.DEFINE_list(
        "class",
        [],
        "Names or numbers of classes. heatmap: those to show, by default those "
        "predicted; activations: the one to compare with, by default that of most "
        "pixels; field: whose score, by default that of the class predicted there.",
    )
    flags.DEFINE_list("pixel", [], "field: ROW,COLUMN, from 0; by default the center.")
    flags.DEFINE_string("other", "", "disagreement: the workdir of run B.")
    flags.DEFINE_string(
        "labels", "", "disagreement: folder of masks STEM.png of the images in files."
    )
    flags.DEFINE_integer("columns", 5, "Pictures per row.")
    predict_flags.define()
    predict_flags.define_limits()
    flags.adopt_module_key_flags(predict_flags)  # for --help
    cli.run(main, positional=True)
