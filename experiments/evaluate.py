"""Scores a trained model, or predictions in files, on a split of a data set.

    python -m experiments.evaluate --workdir /tmp/run
    python -m experiments.evaluate --workdir /tmp/run --split test --checkpoint latest
    python -m experiments.evaluate --workdir /tmp/run --config.data.root=/other/folder
    python -m experiments.evaluate --workdir /tmp/run --crf=deeplab_v1 --trimap
    python -m experiments.evaluate --workdir /tmp/run --window=473 --flip \\
        --scales=0.75,1,1.25 --ensemble=/tmp/run2
    python -m experiments.evaluate --workdir /tmp/run --metrics=boundary_f1
    python -m experiments.evaluate --predictions FOLDER --config configs/unet_camvid.py

Prints pixel accuracy, mean accuracy, mIoU and frequency-weighted IoU (one confusion
matrix over all images; segjax/metrics.py defines them) with a table per class, beside
the baseline of always answering the most frequent class.  --metrics adds others
(docs/metrics.md).  Writes them as evaluation/SPLIT.json into the workdir or into
--output, with SPLIT_images.csv (a line per image), SPLIT_confusion.png and pictures of
the first and of the worst images.

The images are predicted as experiments.predict would, and all its options mean the
same: --tile, --window, --stride, --scales, --flip, --rotations, --ensemble (or more
workdirs as arguments), --checkpoint, --padding, --max_pixels.  With config.data.resize
images and labels are resized first, and the scores are those of the resized labels.
--config.* overrides fields of the run's own config.

Each stage has its column: the model alone, with the options above, and with --crf, a
fully connected CRF: "config" takes the fields config.crf, FILE.json what
experiments.tune_crf has found, other names published parameters (docs/crf.md).
--stages=last scores only the last of them.  --trimap adds the scores within 1 to 40
pixels of the boundaries of the true labels, as a curve and as numbers.

--predictions scores label maps of anybody's making instead of a model:
FOLDER/labels/ID.png or FOLDER/ID.png of every image, as ids (gray or palette PNG) or in
the colors of the classes; FOLDER/probabilities/ID.npz or .npy for metrics that need
probabilities.  The data set is that of --config or of the --workdir.
"""

import math
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from experiments.shared import (
    cli,
    evaluation_files,
    evaluation_results,
    evaluation_scoring,
    evaluation_stages,
    predict_flags,
    prediction_files,
)
from experiments.shared.evaluation_results import table as table
from experiments.shared.evaluation_stages import Stage
from experiments.shared.peers import Peers
from segjax import bucket_mirror, buckets, files, inference, scoring, sharding
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import batching
from segjax.errors import UserError
from segjax.inference import collection


def evaluate(
    config: ConfigDict,
    workdir: Path,
    *,
    checkpoint: str = "best",
    output: Path | None = None,
    options: inference.PredictOptions | None = None,
    ensemble: Sequence[str] = (),
    crf: str = "",
    stages: str = "all",
    padding: float = batching.PADDING,
    max_pixels: float = collection.MAX_PIXELS,
    split: str = "",
    trimap: bool = False,
    metrics: Sequence[str] = (),
    worst: int = evaluation_scoring.WORST,
) -> dict:
    """Evaluates the checkpoints, writes the results and returns them."""
    config_lib.check(config)
    settings = predict_flags.crf_settings(config, crf)
    collection.check_limits(padding, max_pixels)
    output = output or workdir / "evaluation"
    scored = evaluation_scoring.open_scoring(
        config, split=split, trimap=trimap, metrics=metrics, worst=worst
    )
    source, info = scored.source, scored.info
    workdir_lib.check_same_classes(workdir_lib.read_dataset(workdir), info)
    sharding.check_batch_size(config.eval_batch_size, "eval_batch_size")
    mesh = sharding.make_mesh()
    segmenter = inference.load(
        workdir,
        *ensemble,
        checkpoint=checkpoint,
        options=options,
        config=config,
        mesh=mesh,
    )
    plan = evaluation_stages.make_pass(segmenter, settings, stages)
    # Images resized to one size share a compiled shape, whatever that size is.
    limit = math.inf if any(segmenter.resize) else max_pixels
    large = [i for i, (h, w) in enumerate(source.sizes) if h * w > limit]
    evaluation_stages.check_parts(plan, source, large)
    for note in evaluation_results.notes(
        workdir_lib.read_splits(workdir),
        split=scored.split,
        train_split=config.data.train_split,
        source=source,
    ):
        cli.log(f"note: {note}")
    index, count = process = jax.process_index(), jax.process_count()
    images = chain(
        evaluation_stages.in_batches(
            evaluation_stages.make_step(plan, radius=scored.radius, keep=scored.keep),
            segmenter.with_regions(source),
            mesh=mesh,
            reading={
                "batch_size": config.eval_batch_size,
                "channels": info.channels,
                "process": process,
                "threads": config.threads,
                "padding": padding,
                "max_pixels": limit,
                "devices": mesh.size,
                "regions": segmenter.regions,
            },
        ),
        evaluation_stages.in_parts(
            plan,
            source,
            large[index::count],
            max_pixels=max_pixels,
            radius=scored.radius,
            keep=scored.keep,
        ),
    )
    facts = {
        "in_parts": len(large),
        "step": segmenter.steps[0],
        "models": [
            {"path": str(path), "step": step}
            for path, step in zip((workdir, *ensemble), segmenter.steps)
        ],
        "options": segmenter.options._asdict(),
        "padding": padding,
        "max_pixels": max_pixels,
        "config": config_lib.json_like(config),
    }
    if settings:
        facts["crf"] = {"settings": settings._asdict()}
    return evaluation_scoring.finish(
        scored,
        images,
        range(len(source)),
        stages=plan.stages,
        facts=facts,
        output=output,
    )


def evaluate_predictions(
    config: ConfigDict,
    folder: Path,
    *,
    output: Path | None = None,
    allow_missing: bool = False,
    split: str = "",
    trimap: bool = False,
    metrics: Sequence[str] = (),
    worst: int = evaluation_scoring.WORST,
) -> dict:
    """Scores the predictions in a folder, writes the results and returns them.

    They have the size of the images, whatever ``config.data.resize`` says.
    """
    config_lib.check(config)
    output = output or folder / "evaluation"
    facts = {"predictions": str(folder)}
    if buckets.is_bucket(folder):
        folder = bucket_mirror.pull(folder)
    if any(config.data.resize):
        cli.log(
            f"note: --config.data.resize={tuple(config.data.resize)} does not count: "
            "predictions in files are scored at the size of the images"
        )
        config = config.copy_and_resolve_references()
        config.data.resize = (0, 0)
    scored = evaluation_scoring.open_scoring(
        config, split=split, trimap=trimap, metrics=metrics, worst=worst
    )
    source, sizes = scored.source, scored.source.sizes
    ids = prediction_files.ids_of(source, config.threads)
    found = evaluation_files.find(folder, ids, allow_missing=allow_missing)
    evaluation_files.check(
        folder,
        [ids[i] for i in found],
        [sizes[i] for i in found],
        probabilities=scored.keep,
    )
    if missing := len(source) - len(found):
        cli.log(f"note: {missing} of {len(source)} images have no prediction")
    images = evaluation_files.read_all(
        folder,
        source,
        found[jax.process_index() :: jax.process_count()],
        info=scored.info,
        radius=scored.radius,
        probabilities=scored.keep,
        threads=config.threads,
    )
    return evaluation_scoring.finish(
        scored,
        images,
        found,
        stages=[Stage("predictions", "")],
        facts=facts | {"missing": missing},
        output=output,
    )


def main(argv) -> None:
    values = flags.FLAGS
    output = files.path(values.output) if values.output else None
    common = {
        "split": values.split,
        "output": output,
        "trimap": values.trimap,
        "metrics": values.metrics,
        "worst": values.worst,
    }
    if values.predictions:
        _check_unused(argv[1:])
        cli.start()
        folder = files.absolute(values.predictions)
        with Peers(exit_code=cli.LOST):
            results = evaluate_predictions(
                values.config, folder, allow_missing=values.allow_missing, **common
            )
        written = output or folder / "evaluation"
    else:
        options = predict_flags.options(values.config)
        ensemble = predict_flags.ensemble(argv[1:])
        collection.check_limits(values.padding, values.max_pixels)
        if values.allow_missing:
            raise UserError("--allow_missing is for --predictions")
        cli.start()
        workdir = files.absolute(values.workdir)
        with Peers(exit_code=cli.LOST):
            results = evaluate(
                values.config,
                workdir,
                checkpoint=values.checkpoint,
                options=options,
                ensemble=ensemble,
                crf=values.crf,
                stages=values.stages,
                padding=values.padding,
                max_pixels=values.max_pixels,
                **common,
            )
        written = output or workdir / "evaluation"
    if jax.process_index() == 0:
        print(table(results))
        print(f"written to {written}")


def _check_unused(arguments: Sequence[str]) -> None:
    """Raises UserError for flags that say how to predict, as nothing is predicted."""
    given = [name for name in predict_flags.NAMES if flags.FLAGS[name].present]
    given += ["stages"] if flags.FLAGS["stages"].present else []
    if given or arguments:
        name = f"--{given[0]}" if given else repr(arguments[0])
        raise UserError(f"{name} says how to predict: leave it or --predictions out")


if __name__ == "__main__":
    words = [word.lstrip("-").partition("=")[0] for word in sys.argv[1:]]
    if "predictions" in words and "workdir" not in words:
        config_flags.DEFINE_config_file("config", None, "With --predictions: the data.")
        flags.DEFINE_string("workdir", "", "A training run.")
        flags.mark_flag_as_required("config")
    else:
        cli.define_workdir_config()
    flags.DEFINE_string("split", "", "Of the dataset; '': config.data.eval_split.")
    flags.DEFINE_string(
        "output", "", "Folder; '': evaluation in the workdir, or in --predictions."
    )
    predict_flags.define()
    predict_flags.define_limits()
    flags.adopt_module_key_flags(predict_flags)  # for --help
    flags.DEFINE_enum(
        "stages",
        "all",
        evaluation_stages.CHOICES,
        "Score the model alone, with its test-time options and with the CRF ('all'), "
        "or only the 'last' of these.",
    )
    flags.DEFINE_bool("trimap", False, "Also score bands around label boundaries.")
    flags.DEFINE_list(
        "metrics",
        [],
        f"Metrics of whole images, of {', '.join(scoring.IMAGE_METRICS)}.",
    )
    flags.DEFINE_integer(
        "worst", evaluation_scoring.WORST, "Pictures of the images of the lowest mIoU."
    )
    flags.DEFINE_string(
        "predictions", "", "Folder of label maps ID.png to score, instead of a model."
    )
    flags.DEFINE_bool(
        "allow_missing", False, "Leave images out that --predictions does not have."
    )
    cli.run(main, positional=True)
