"""Segments images with a trained model.

    python -m experiments.predict --workdir /tmp/run --output /tmp/out photo.jpg
    python -m experiments.predict --workdir /tmp/run --output /tmp/out FOLDER '*.png'
    python -m experiments.predict --workdir /tmp/run --output /tmp/out @list.txt \\
        --window=473 --scales=0.75,1,1.25 --flip --crf=config

Takes files, folders, globs and @lists of images of any size, gray or color, 8 or 16
bit, or with --split=test a split of the data set of the run (config.data), whose images
are read as in training.  Writes into OUTPUT, as --outputs chooses,

    labels/NAME.png         palette PNG of class ids, at the size of the image
    overlays/NAME.jpg       colors over the image
    ids/NAME.png            gray PNG of class ids, 16 bit above 255 classes
    probabilities/NAME.npz  float16 [H, W, K]

and summary.json: throughput, share of pixels of each class, failures, programs.
--submission=NAME adds what the evaluation server of a data set takes.
Images of similar size share a batch and a program, compiled ahead of time; images of
more than --max_pixels go through in windows or tiles.  docs/segment.md has more.

The same command again does only what is missing or has changed.  An image that cannot
be read is named and left out, and all others are done: exit code 1 then, also for
images of a folder that are skipped for their format; 0 if every image was segmented, 2
for bad flags.  Results of earlier runs among the files named are left out.
"""

import collections
import concurrent.futures
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import tqdm
from absl import flags
from ml_collections import ConfigDict

from experiments.shared import (
    cli,
    predict_flags,
    prediction_files,
    prediction_folder,
    prediction_images,
    prediction_summary,
    provenance,
    submissions,
)
from experiments.shared.peers import Peers
from segjax import buckets, compilation, files, inference
from segjax import config as config_lib
from segjax.data import batching
from segjax.errors import UserError
from segjax.inference import collection, trained


def predict(
    config: ConfigDict,
    workdir: Path,
    *,
    output: Path,
    paths: Sequence[str] = (),
    split: str = "",
    checkpoint: str = "best",
    crf: str = "",
    outputs: Sequence[str] = ("labels", "overlays"),
    ensemble: Sequence[str] = (),
    options: inference.PredictOptions | None = None,
    padding: float = batching.PADDING,
    max_pixels: int = collection.MAX_PIXELS,
    overwrite: bool = False,
    submission: str = "",
) -> dict:
    """Segments files or a split, writes the results and returns the summary."""
    config_lib.check(config)
    settings = predict_flags.crf_settings(config, crf)
    collection.check_limits(padding, max_pixels)
    if split:
        images = prediction_images.of_split(config, split, workdir)
    else:
        images = prediction_images.of_files(paths, output)
    paths, names = list(images.sources), images.names
    segmenter = inference.load(
        workdir,
        *ensemble,
        checkpoint=checkpoint,
        config=config,
        options=options,
        crf=settings,
    )
    process = jax.process_index(), jax.process_count()
    submitted = None
    if submission:
        if buckets.is_bucket(output):
            raise UserError(
                f"--output={output}: --submission needs a folder on this machine"
            )
        if process[1] > 1:
            raise UserError(
                "--submission is written by one process: give it afterwards, with "
                "--distributed=off, to the same command; nothing is done again"
            )
        submitted = submissions.check(submission, segmenter.info.classes, paths)
        outputs = tuple(dict.fromkeys((*outputs, submitted.needs)))
    prediction_files.check_outputs(outputs, len(segmenter.info.classes))
    results = prediction_folder.open_folder(
        output,
        outputs,
        info=segmenter.info,
        settings=_settings(config, segmenter, padding=padding, max_pixels=max_pixels)
        | {"split": images.split},
        overwrite=overwrite,
        process=process,
    )
    # Every process works alone, on its share of the images and its own devices.
    paths = paths[process[0] :: process[1]]
    done = [p for p in paths if prediction_folder.is_done(results, names[p], p)]
    remaining = [path for path in paths if path not in set(done)]
    plan = collection.plan(
        segmenter,
        [images.sources[path] for path in remaining],
        padding=padding,
        max_pixels=max_pixels,
        finished=[results.done[names[path]]["size"] for path in done],
    )
    if submitted:
        sizes = {path: results.done[names[path]]["size"] for path in done}
        sizes |= {remaining[index]: size for index, size in plan.sizes.items()}
        submissions.check_sizes(submission, submitted, sizes)
    began, compiled = time.perf_counter(), compilation.count()
    with tqdm.tqdm(total=len(paths), desc="predict", unit="image") as bar:
        bar.update(len(done) + len(plan.errors))
        failures, waited = run(
            segmenter,
            plan,
            results=results,
            names=names,
            threads=config.threads,
            bar=bar,
        )
    results.log.sync()
    seconds, compiled = time.perf_counter() - began, compilation.count() - compiled
    expected = len(segmenter.executables) * (2 if settings else 1)
    written = [i for i in plan.sizes if remaining[i] not in failures]
    pixels = sum(math.prod(plan.sizes[index]) for index in written)
    summary = {
        "images": len(paths),
        "written": len(written),
        "already_done": len(done),
        "failures": failures,
        "skipped": images.skipped,
        "seconds": seconds,
        "seconds_waiting_for_programs": waited,
        "images_per_second": len(written) / max(seconds - waited, 1e-9),
        "megapixels_per_second": pixels / 1e6 / max(seconds - waited, 1e-9),
        "programs": [
            {
                "shape": [group.batch_size, *group.padded_shape],
                "batches": len(group.batches),
            }
            for group in plan.groups
        ],
        "in_parts": len(plan.large),
        "padding": prediction_summary.padding(segmenter, plan),
        # With a CRF, shapes depend on what the images show.
        "compiled": {
            "programs": expected,
            "crf" if settings else "after_warm_up": compiled - expected,
        },
        "classes": prediction_summary.shares(
            results, [names[path] for path in paths if path not in failures]
        ),
        "versions": provenance.versions(),
    }
    if submitted and not failures:
        written_to = submissions.write(
            output, submission, submitted, {path: names[path] for path in paths}
        )
        summary["submission"] = str(written_to)
    name = "summary.json" if process[0] == 0 else f"summary_{process[0]}.json"
    files.write_json(output / name, summary)
    return summary


def _settings(
    config: ConfigDict,
    segmenter: inference.Segmenter,
    *,
    padding: float,
    max_pixels: float,
) -> dict:
    """What the predictions depend on; the same for all of a folder."""
    return {
        "checkpoints": [
            {"step": step, "weights": trained.fingerprint(variables)}
            for step, variables in zip(segmenter.steps, segmenter.variables)
        ],
        # Overrides of its fields change predictions, too.
        "model": [config.model_name, config.model.to_dict()],
        "options": segmenter.options._asdict(),
        "crf": segmenter.crf._asdict() if segmenter.crf else None,
        "resize": list(segmenter.resize),
        "value_range": list(segmenter.value_range),
        "precision": segmenter.precision,
        "search": segmenter.search_facts(),
        "padding": padding,
        "max_pixels": max_pixels,
    }


def run(
    segmenter: inference.Segmenter,
    plan: collection.Plan,
    *,
    results: prediction_folder.PredictionFolder,
    names: Mapping[str, str],
    threads: int,
    bar: tqdm.tqdm | None = None,
) -> tuple[dict[str, str], float]:
    """Predicts a collection and writes the results, some images behind.

    Returns:
      What is wrong with the images that failed, by path, and the seconds spent waiting
      for compilation.

    Raises:
      UserError: results cannot be written.
    """
    failures, waited = {}, 0.0
    writes: collections.deque = collections.deque()

    def failed(path: str, error: UserError) -> None:
        text = str(error)
        failures[path] = text if path in text else f"{path}: {text}"

    def finish_one() -> None:
        path, future = writes.popleft()
        try:
            future.result()
        except prediction_files.NotWritable as error:
            failed(path, error)

    for index, error in plan.errors.items():
        failed(str(plan.images[index]), error)
    with concurrent.futures.ThreadPoolExecutor(max(threads, 1)) as pool:
        try:
            for result in collection.run(
                segmenter, plan, outputs=_arrays(results.outputs), threads=threads
            ):
                path = str(plan.images[result.image_index])
                if bar is not None:
                    bar.update()
                if isinstance(result, collection.Failure):
                    failed(path, result.error)
                    continue
                waited += result.waited
                written = pool.submit(
                    prediction_folder.write,
                    results,
                    names[path],
                    file=path,
                    prediction=result,
                )
                writes.append((path, written))
                # Writing may be slower than predicting; large images go one by one.
                limit = 0 if result.parts else 2 * segmenter.batch_size
                while len(writes) > limit:
                    finish_one()
            while writes:
                finish_one()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return failures, waited


def _arrays(outputs: Sequence[str]) -> tuple[str, ...]:
    """What the devices compute for these outputs."""
    return ("labels", "probabilities") if "probabilities" in outputs else ("labels",)


def main(argv) -> int:
    paths = argv[1:]
    values = flags.FLAGS
    if not paths and not values.split:
        raise UserError(
            "no images given: name files, folders, globs or @lists, or a --split"
        )
    if paths and values.split:
        raise UserError(f"{paths[0]} and --split={values.split} are both given")
    options = predict_flags.options(values.config)
    collection.check_limits(values.padding, values.max_pixels)
    cli.start()
    output = files.absolute(values.output)
    with Peers(exit_code=cli.LOST):
        summary = predict(
            values.config,
            files.absolute(values.workdir),
            output=output,
            paths=paths,
            split=values.split,
            checkpoint=values.checkpoint,
            crf=values.crf,
            outputs=values.outputs,
            ensemble=values.ensemble,
            options=options,
            padding=values.padding,
            max_pixels=values.max_pixels,
            overwrite=values.overwrite,
            submission=values.submission,
        )
    for message in summary["failures"].values():
        print(f"failed: {message}", file=sys.stderr)
    compiled, rate = summary["compiled"], summary["megapixels_per_second"]
    if "crf" in compiled:
        others = f"{compiled['crf']} of the CRF"
    else:
        others = f"{compiled['after_warm_up']} compiled after warm-up"
    print(
        f"{summary['written']} images segmented, {summary['already_done']} there "
        f"already, {len(summary['failures'])} failed; "
        f"{summary['images_per_second']:.1f} images/s, {rate:.2f} megapixels/s, "
        f"{compiled['programs']} programs, {others}; results in {output}"
    )
    if values.submission:
        where = summary.get("submission", "none, because images failed")
        print(f"submission to {values.submission}: {where}")
    return 1 if summary["failures"] or summary["skipped"] else 0


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_string("output", None, "Folder for the results.", required=True)
    flags.DEFINE_string(
        "split", "", "Segment this split of the run's data set, instead of files."
    )
    flags.DEFINE_list(
        "outputs",
        ["labels", "overlays"],
        f"What to write, of {', '.join(prediction_files.SUFFIXES)}.",
    )
    predict_flags.define()
    predict_flags.define_limits()
    flags.adopt_module_key_flags(predict_flags)  # for --help
    flags.DEFINE_string(
        "submission",
        "",
        "Also write what the evaluation server takes of a model of these classes, of "
        f"{', '.join(submissions.SUBMISSIONS)}.",
    )
    flags.DEFINE_bool("overwrite", False, "Do again what is done already.")
    cli.run(main, positional=True)
