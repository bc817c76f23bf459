"""Heat maps of an ImageNet classifier that was made convolutional (FCN, CVPR 2015).

    python -m experiments.heatmap --weights VGG_ILSVRC_16_layers.caffemodel \\
        --backbone vgg16 --names synset_words.txt --output heat cat.jpg
    python -m experiments.heatmap --weights alexnet.caffemodel --backbone alexnet \\
        --class=281,282 --side=451 --output heat cat.jpg photos '*.png'

Reads the weights of a whole classifier as they were published (docs/weights.md), turns
its fully connected layers into convolutions, and applies it to images of any size: a
map of class probabilities, a location every 32 pixels (16 for SqueezeNet), which is
enlarged over the image.  Writes OUTPUT/heatmap/NAME.png for each image and
OUTPUT/heatmap.json, with the highest probability of every class that is shown.

For the classes of a trained segmentation network see experiments.visualize
--what=heatmap.

Exit codes: 0; 1 if an image could not be read or was skipped (all others are done); 2
bad input.
"""

import sys

import tqdm
from absl import flags

from experiments.shared import cli
from experiments.visualization import classifier, inputs
from segjax import errors, files
from segjax.errors import UserError
from segjax.inference import collection
from segjax.models import backbones


def main(argv) -> int:
    values = flags.FLAGS
    if len(argv) < 2:
        raise UserError("no images given: name files, folders, globs or @lists")
    if values.backbone not in backbones.BACKBONES:
        raise errors.unknown("--backbone", values.backbone, backbones.BACKBONES)
    least = backbones.BACKBONES[values.backbone].crop
    if values.side and values.side < least:
        raise UserError(
            f"--side={values.side}: expected 0, or at least {least} for "
            f"{values.backbone}"
        )
    if values.lrn_first and values.backbone != "alexnet":
        raise UserError("--lrn_first is of --backbone=alexnet only; leave it out")
    for name in ("top", "columns", "max_pixels"):
        if values[name].value < 1:
            raise UserError(f"--{name}={values[name].value}: expected 1 or more")
    cli.start()
    output = files.user_path("--output", values.output).absolute()
    images = inputs.of_files(argv[1:], output)
    file = files.user_path("--weights", values.weights)
    network = classifier.load(
        file, values.backbone, names=values.names, lrn_first=values.lrn_first
    )
    names = values["class"].value
    for name in names:
        inputs.class_index(network.classes, name)
    cli.make_folder(output)
    failures, found = {}, {}
    for path, source in tqdm.tqdm(images.sources.items(), "heatmap", unit="image"):
        try:
            pixels = inputs.read(source, channels=3, value_range=(0, 0))
            pixels = classifier.sized(pixels, values.backbone, values.side)
            inputs.check_pixels(pixels.shape, values.max_pixels)
        except UserError as error:
            failures[path] = inputs.message(path, error)
            continue
        picture, found[images.names[path]] = classifier.draw(
            network, pixels, names=names, top=values.top, columns=values.columns
        )
        inputs.save(output, "heatmap", images.names[path], picture)
    facts = {"failures": failures, "skipped": images.skipped, "images": found}
    files.write_json(output / "heatmap.json", facts)
    for message in failures.values():
        print(f"failed: {message}", file=sys.stderr)
    print(
        f"{len(found)} pictures written to {output / 'heatmap'}, {len(failures)} failed"
    )
    return 1 if failures or images.skipped else 0


if __name__ == "__main__":
    flags.DEFINE_string("weights", None, "A published file.", required=True)
    flags.DEFINE_string(
        "backbone",
        None,
        f"The network of the file, of {', '.join(backbones.BACKBONES)}.",
        required=True,
    )
    flags.DEFINE_string("output", None, "Folder for the pictures.", required=True)
    flags.DEFINE_list(
        "class", [], "Names or numbers of the classes to show; by default the --top."
    )
    flags.DEFINE_integer("top", 4, "Classes of the highest probability anywhere.")
    flags.DEFINE_string(
        "names", "", "File of the names of the classes, one per line; '': numbers."
    )
    flags.DEFINE_bool(
        "lrn_first",
        False,
        "AlexNet normalizes before it pools (bvlc_alexnet), and not after (CaffeNet).",
    )
    flags.DEFINE_integer(
        "side",
        0,
        "Shorter side to which images are resized; 0: their own size, or that of "
        "training if they are smaller.",
    )
    flags.DEFINE_integer(
        "max_pixels", collection.MAX_PIXELS, "Larger images are reported, not drawn."
    )
    flags.DEFINE_integer("columns", 5, "Pictures per row.")
    cli.run(main, positional=True)
