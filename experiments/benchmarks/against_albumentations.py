"""Times the input pipeline beside albumentations: decoding and augmenting on one core.

    python -m experiments.benchmarks.against_albumentations \\
        --config configs/pspnet50_camvid.py --config.data.root=/path/to/CamVid

Reads images and labels of the training split and augments them, here and by OpenCV and
albumentations, in turns, in one thread.  The peer has the augmentation of PSPNet with
the values of the config, in two forms:

    albumentations  what one would write: a random scale, a rotation, padding, a crop, a
                    mirror image and a blur
    one affine      scale, rotation and place as one affine map of the image's size,
                    which it cuts before the crop: faster, and not quite the same

The ratio comes first: above 1, ours is faster.  albumentations must be installed (pip
install albumentations).

Exit codes: 0; 2 bad input, or albumentations is missing.
"""

import functools
import statistics
from collections.abc import Callable

import cv2
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from PIL import Image

from experiments.benchmarks import measuring
from experiments.shared import cli
from segjax import config as config_lib
from segjax import tables
from segjax.data import augment_options, datasets, transforms
from segjax.errors import UserError
from segjax.labels import VOID

# What the peer does; every other option must have its default.
_SHARED = "crop", "scale", "rotate", "rotate_prob", "flip", "blur_prob"


def peers(options: augment_options.Options) -> dict[str, Callable]:
    """The same augmentation by albumentations: functions of image and mask.

    Raises:
      UserError: an option that they do not have is set, or albumentations is missing.
    """
    defaults = augment_options.Options()
    for name in options._fields:
        if name in (*_SHARED, *augment_options.DERIVED):
            continue
        if getattr(options, name) != getattr(defaults, name):
            raise UserError(
                f"--config.augment.{name}={getattr(options, name)}: the peer has only "
                f"{', '.join(_SHARED)}; give the default, {getattr(defaults, name)}"
            )
    try:
        import albumentations as A
    except ImportError as error:
        raise UserError(
            f"albumentations is needed: pip install albumentations ({error})"
        ) from error
    height, width = options.crop
    angle = -options.rotate, options.rotate
    low, high = options.scale
    outside = {"fill": [round(value) for value in options.fill], "fill_mask": VOID}
    rest = [
        A.PadIfNeeded(height, width, **outside),
        A.RandomCrop(height, width),
        A.HorizontalFlip(p=options.flip),
        A.GaussianBlur(blur_limit=(5, 5), p=options.blur_prob),
    ]
    plain = [
        A.RandomScale((low - 1, high - 1), p=1),
        A.Rotate(angle, p=options.rotate_prob, **outside),
        *rest,
    ]
    place = {"translate_percent": (-0.25, 0.25)}
    affine = A.Affine(options.scale, rotate=angle, p=1, **place, **outside)
    return {
        "albumentations": A.Compose(plain),
        "one affine": A.Compose([affine, *rest]),
    }


def measure(config: ConfigDict, *, images: int, repeats: int) -> dict[str, list[float]]:
    """Seconds per image of every round, of ``ours`` and of the :func:`peers`.

    Raises:
      UserError: the data are not files of a published layout, or see :func:`peers`.
    """
    source, info = datasets.load(config.data, config.data.train_split)
    if info.layout is None or not config.data.root:
        raise UserError(
            f"--config.data.name={config.data.name}: the peer reads the files of a "
            "published data set; give one, and its folder as --config.data.root"
        )
    frames = info.layout.find(config.data)[1][config.data.train_split]
    options = transforms.options(config.augment, info.mean)
    rng = np.random.default_rng(config.seed)
    order = np.resize(rng.permutation(len(source)), images).tolist()

    def ours() -> None:
        for index in order:
            transforms.augment(source[index], rng, options)

    def theirs(compose: Callable) -> None:
        for index in order:
            frame = frames[index]
            pixels = cv2.cvtColor(cv2.imread(str(frame.image)), cv2.COLOR_BGR2RGB)
            compose(image=pixels, mask=np.array(Image.open(frame.label)))

    others = {
        name: functools.partial(theirs, compose)
        for name, compose in peers(options).items()
    }
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        seconds = measuring.rounds({"ours": ours} | others, repeats)
    finally:
        cv2.setNumThreads(threads)
    return {name: [s / images for s in times] for name, times in seconds.items()}


def main(argv) -> None:
    del argv
    values = flags.FLAGS
    config = values.config
    if config is None:
        raise UserError("--config must be given, such as configs/pspnet50_camvid.py")
    config_lib.check(config)
    cli.start()
    seconds = measure(config, images=values.images, repeats=values.repeats)
    rows = [("", "ratio", "images/s on one core")]
    for name, times in seconds.items():
        pairs = zip(seconds["ours"], times, strict=True)
        ratio = statistics.median(theirs / ours for ours, theirs in pairs)
        rows.append((name, f"{ratio:.2f}", f"{1 / statistics.median(times):.0f}"))
    print(tables.text_table(rows))


if __name__ == "__main__":
    config_flags.DEFINE_config_file("config", None, "Data and augmentation.")
    flags.DEFINE_integer("images", 100, "Per round.", lower_bound=1)
    flags.DEFINE_integer("repeats", 5, "Rounds; medians count.", lower_bound=1)
    cli.run(main)
