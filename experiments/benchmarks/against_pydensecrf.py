"""Times the dense CRF of --crf beside pydensecrf, on photos of any sizes.

    python -m experiments.benchmarks.against_pydensecrf PHOTOS
    python -m experiments.benchmarks.against_pydensecrf PHOTOS --classes=2

    python -m experiments.benchmarks.against_pydensecrf PHOTOS --batch=1

Each photo gets class probabilities by chance, smooth over the image, and 10 iterations
with the parameters of pydensecrf's example, here and there, in turns, in one process.
Ours refines the photos of a batch at once, one per core, as --crf of evaluate and
predict does; pydensecrf has one thread.  With --batch=1 both have one core.  In the
first round the programs are compiled, the same ones as by --crf, a few for any
collection.  The ratio comes first: above 1, ours is faster.  pydensecrf must be
installed (pip install pydensecrf2).

Exit codes: 0; 1 the two disagree about more than a pixel in a thousand; 2 bad input, or
pydensecrf is missing.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from absl import flags

from experiments.shared import cli, predict_flags
from segjax import compilation, tables
from segjax import config as config_lib
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference import crf_points
from segjax.ops import mean_field

DIFFERENT = 1e-3
"""Share of the pixels with other labels, from which on the two disagree."""


def peer(settings: mean_field.Settings) -> Callable[[np.ndarray, np.ndarray], None]:
    """The same CRF by pydensecrf: a function of probabilities and image.

    Raises:
      UserError: it is not installed, or does not have such a CRF.
    """
    try:
        import pydensecrf.densecrf
    except ImportError as error:
        raise UserError(
            f"pydensecrf is needed: pip install pydensecrf2 ({error})"
        ) from error
    known = mean_field.SETTINGS["pydensecrf"]
    for name in ("normalization", "smoothness_filter", "color_order", "relaxation"):
        if getattr(settings, name) != getattr(known, name):
            raise UserError(
                f"--crf: its {name} is {getattr(settings, name)!r}; pydensecrf has "
                f"{getattr(known, name)!r} only"
            )

    def run(probabilities: np.ndarray, image: np.ndarray) -> np.ndarray:
        height, width, classes = probabilities.shape
        crf = pydensecrf.densecrf.DenseCRF2D(width, height, classes)
        unary = -np.log(np.clip(probabilities, mean_field.CLIP, 1))
        crf.setUnaryEnergy(np.ascontiguousarray(unary.reshape(-1, classes).T))
        crf.addPairwiseGaussian(
            sxy=settings.smoothness_sigma, compat=settings.smoothness_weight
        )
        crf.addPairwiseBilateral(
            sxy=settings.appearance_sigma_xy,
            srgb=settings.appearance_sigma_rgb,
            rgbim=image,
            compat=settings.appearance_weight,
        )
        found = np.array(crf.inference(settings.iterations))
        return found.T.reshape(probabilities.shape)

    return run


def probabilities_of(size: tuple[int, int], classes: int, seed: int) -> np.ndarray:
    """Of an image: smooth noise, float32 [H, W, classes]."""
    height, width = size
    rng = np.random.default_rng(seed)
    coarse = rng.normal(0, 4, (height // 16 + 2, width // 16 + 2, classes))
    planes = [
        cv2.resize(np.float32(p), (width, height)) for p in np.rollaxis(coarse, 2)
    ]
    logits = np.stack(planes, axis=-1)
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def measure(
    images: Sequence[np.ndarray],
    *,
    classes: int,
    settings: mean_field.Settings,
    rounds: int,
    batch: int,
) -> dict:
    """Seconds of all images by round, and the share of pixels with other labels.

    Of so many images per `batch`, ours refines as many at once as there are cores.

    Returns:
      ``ours`` and ``pydensecrf``: seconds of the first round and of the others;
      ``programs`` compiled in the first round and ``later``; ``different``.
    """
    theirs = peer(settings)
    given = [
        probabilities_of(image.shape[:2], classes, seed)
        for seed, image in enumerate(images)
    ]
    ways = {
        "ours": lambda p, seen: crf_points.dense_crfs(p, seen, settings),
        "pydensecrf": lambda p, seen: list(map(theirs, p, seen)),
    }
    parts = [slice(i, i + batch) for i in range(0, len(images), batch)]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    compiled, different = [], []
    for _ in range(rounds + 1):
        total, before = dict.fromkeys(ways, 0.0), compilation.count()
        for part in parts:
            labels = []
            for way, run in ways.items():
                began = time.perf_counter()
                found = run(given[part], images[part])
                total[way] += time.perf_counter() - began
                labels.append([marginals.argmax(-1) for marginals in found])
            different += [np.mean(a != b) for a, b in zip(*labels, strict=True)]
        compiled.append(compilation.count() - before)
        for way in ways:
            seconds[way].append(total[way])
    return seconds | {
        "programs": compiled[0],
        "later": sum(compiled[1:]),
        "different": float(np.mean(different)),
    }


def main(argv) -> int:
    values = flags.FLAGS
    settings = predict_flags.crf_settings(config_lib.make(), values.crf)
    if settings is None:
        raise UserError("--crf names the parameters, such as pydensecrf")
    peer(settings)
    paths = image_files.list_images(argv[1:]).images[: values.images or None]
    if not paths:
        raise UserError("no images given: name files, folders, globs or @lists")
    images = [image_files.decode_image(path, 3) for path in paths]
    cli.start()
    found = measure(
        images,
        classes=values.classes,
        settings=settings,
        rounds=values.rounds,
        batch=values.batch,
    )
    sizes = {image.shape[:2] for image in images}
    print(f"{len(images)} images of {len(sizes)} sizes, {values.classes} classes")
    rows = [("", "ratio", "ours s", "pydensecrf s", "programs")]
    parts = {"first round": slice(1), "after it": slice(1, None)}
    for (name, part), programs in zip(parts.items(), ("programs", "later")):
        ours, theirs = found["ours"][part], found["pydensecrf"][part]
        ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
        times = (statistics.median(ours), statistics.median(theirs))
        rows.append(
            (
                name,
                f"{statistics.median(ratios):.2f}",
                *(f"{time:.1f}" for time in times),
                str(found[programs]),
            )
        )
    print(tables.text_table(rows))
    print(f"pixels with another label: {found['different']:.6f}")
    return int(found["different"] > DIFFERENT)


if __name__ == "__main__":
    flags.DEFINE_integer("classes", 21, "Classes.", lower_bound=2)
    flags.DEFINE_integer("images", 0, "So many of them at most; 0: all.", lower_bound=0)
    flags.DEFINE_integer("batch", 8, "Photos at once, one per core.", lower_bound=1)
    flags.DEFINE_integer("rounds", 3, "After the first one.", lower_bound=1)
    flags.DEFINE_string("crf", "pydensecrf", "Parameters: a name or a FILE.json.")
    cli.run(main, positional=True)
