"""Segments images with a trained model.

    python -m experiments.predict --workdir /tmp/run --output /tmp/out photo.jpg
    python -m experiments.predict --workdir /tmp/run --output /tmp/out FOLDER '*.png'
    python -m experiments.predict --workdir /tmp/run --output /tmp/out @list.txt \\
        --window=473 --scales=0.75,1,1.25 --flip --crf=config

Takes files, folders, globs and @lists of images of any size, gray or color, 8 or 16
bit.  Writes into OUTPUT, as --outputs chooses,

    labels/NAME.png         palette PNG of class ids, at the size of the image
    overlays/NAME.jpg       colors over the image
    ids/NAME.png            gray PNG of class ids, 16 bit above 255 classes
    probabilities/NAME.npz  float16 [H, W, K]

and summary.json: throughput, share of pixels of each class, failures, programs.
Images of similar size share a batch and a program, compiled ahead of time; images of
more than --max_pixels go through in windows or tiles.  docs/segment.md has more.

The same command again does only what is missing or has changed.  An image that cannot
be read is named and left out, and all others are done: exit code 1 then, 0 if every
image was segmented, 2 for bad flags.
"""

import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import ConfigDict

from experiments.shared import (
    cli,
    predict_flags,
    prediction_files,
    prediction_run,
    provenance,
)
from segjax import compilation, inference
from segjax import config as config_lib
from segjax.data import batching, windows
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.files import atomic_write
from segjax.inference import tiles, trained


def predict(
    config: ConfigDict,
    workdir: Path,
    paths: Sequence[str],
    output: Path,
    which: str = "best",
    crf: str = "",
    outputs: Sequence[str] = ("labels", "overlays"),
    ensemble: Sequence[str] = (),
    method: inference.Method | None = None,
    padding: float = batching.PADDING,
    max_pixels: int = trained.MAX_PIXELS,
    overwrite: bool = False,
) -> dict:
    """Segments ``paths``, writes the results and returns the summary."""
    config_lib.check(config)
    settings = predict_flags.crf_settings(config, crf)
    if padding < 0 or max_pixels < 1:
        raise UserError("--padding must be 0 or more, --max_pixels 1 or more")
    # a.png and ./a.png are one image.
    listed = image_files.list_images(paths).images
    files = list({Path(file).absolute(): file for file in listed}.values())
    names = prediction_files.output_names(files)
    model = inference.load(
        workdir, *ensemble, checkpoint=which, config=config, method=method
    )
    prediction_files.check_outputs(outputs, len(model.info.classes))
    process = jax.process_index(), jax.process_count()
    results = prediction_files.open_results(
        output,
        outputs,
        model.info,
        {
            "checkpoints": [
                {"step": step, "weights": trained.fingerprint(variables)}
                for step, variables in zip(model.steps, model.variables)
            ],
            # Overrides of it change predictions, too.
            "model": [config.model_name, config.model.to_dict()],
            "method": model.method._asdict(),
            "crf": settings._asdict() if settings else None,
            "padding": padding,
            "max_pixels": max_pixels,
        },
        overwrite,
        process,
    )
    # Every process works alone, on its share of the files and its own devices.
    files = files[process[0] :: process[1]]
    done = {f for f in files if prediction_files.is_done(results, names[f], f)}
    failures, sizes = {}, {}
    for file in files:
        if file not in done:
            try:
                sizes[file] = image_files.image_header(file)[0]
            except UserError as error:
                failures[file] = str(error)
    large = [file for file, (h, w) in sizes.items() if h * w > max_pixels]
    small = [file for file, (h, w) in sizes.items() if h * w <= max_pixels]
    done_sizes = [results.done[names[file]]["size"] for file in files if file in done]
    plan = batching.plan(
        [sizes[file] for file in small],
        model.batch,
        padding,
        model.mesh.size,
        max_pixels,
        [(h, w) for h, w in done_sizes if h * w <= max_pixels],
    )

    def failed(file: str, error: UserError) -> None:
        text = str(error)
        failures[file] = text if file in text else f"{file}: {text}"

    began, compiled = time.perf_counter(), compilation.count()
    with tqdm.tqdm(total=len(files), desc="predict", unit="image") as bar:
        bar.update(len(done) + len(failures))
        waited = prediction_run.predict_batches(
            model,
            results,
            names,
            small,
            plan,
            settings,
            config.threads,
            failed,
            bar.update,
        )
        for file in large:
            version = prediction_files.version_of(file)
            try:
                size, read = _open_large(model, file, sizes[file], bool(settings))
            except UserError as error:
                failed(file, error)
            else:
                prediction_run.predict_large(
                    model, results, names[file], file, version, read, size, max_pixels
                )
            bar.update()
    seconds, compiled = time.perf_counter() - began, compilation.count() - compiled
    ours = len(model.programs) * (2 if settings else 1)
    written = [file for file in sizes if file not in failures]
    pixels = sum(math.prod(sizes[file]) for file in written)
    summary = {
        "images": len(files),
        "written": len(written),
        "already_done": len(done),
        "failures": failures,
        "seconds": seconds,
        "seconds_waiting_for_programs": waited,
        "images_per_second": len(written) / max(seconds - waited, 1e-9),
        "megapixels_per_second": pixels / 1e6 / max(seconds - waited, 1e-9),
        "programs": [
            {"shape": [bucket.rows, *bucket.frame], "batches": len(bucket.batches)}
            for bucket in plan
        ],
        "in_parts": len(large),
        "padding": _padding(plan, [sizes[file] for file in small]),
        # The programs of a CRF follow from what the images show.
        "compiled": {
            "programs": ours,
            "crf" if settings else "after_warm_up": compiled - ours,
        },
        "classes": _shares(
            results, [names[file] for file in files if file not in failures]
        ),
        "versions": provenance.versions(),
    }
    name = "summary.json" if process[0] == 0 else f"summary_{process[0]}.json"
    with atomic_write(output / name) as partial:
        partial.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _open_large(
    model: trained.Trained, file: str, size: tuple[int, int], crf: bool
) -> tuple[tuple[int, int], windows.ReadWindow]:
    """``windows.open_windows``, of an image that can be predicted in parts."""
    tiles.layout(model.models, model.method, size)
    if crf:
        raise UserError(
            "a CRF needs the whole image: raise --max_pixels above its "
            f"{math.prod(size)} pixels, or leave --crf out"
        )
    return windows.open_windows(file, model.info.channels)


def _padding(
    plan: Sequence[batching.Bucket], sizes: Sequence[tuple[int, int]]
) -> float:
    """Computed pixels over those of the images, less 1: frames and empty rows."""
    computed = sum(b.rows * math.prod(b.frame) * len(b.batches) for b in plan)
    return computed / sum(map(math.prod, sizes)) - 1 if sizes else 0.0


def _shares(
    results: prediction_files.Results, names: Sequence[str]
) -> dict[str, float]:
    """Share of the pixels of every class, over all images that are done."""
    found = [results.done[name]["pixels"] for name in names if name in results.done]
    total = np.sum(found, axis=0) if found else np.zeros(len(results.info.classes))
    shares = total / max(total.sum(), 1)
    return dict(zip(results.info.classes, shares.tolist(), strict=True))


def main(argv) -> int:
    paths = argv[1:]
    values = flags.FLAGS
    if not paths:
        raise UserError("no images given: name files, folders, globs or @lists")
    method = predict_flags.method(values.config)
    cli.start()
    output = Path(values.output).expanduser().absolute()
    summary = predict(
        values.config,
        Path(values.workdir).expanduser().absolute(),
        paths,
        output,
        values.checkpoint,
        values.crf,
        values.outputs,
        values.ensemble,
        method,
        values.padding,
        values.max_pixels,
        values.overwrite,
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
    return 1 if summary["failures"] else 0


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_string("output", None, "Folder for the results.", required=True)
    flags.DEFINE_list(
        "outputs",
        ["labels", "overlays"],
        f"What to write, of {', '.join(prediction_files.SUFFIXES)}.",
    )
    predict_flags.define()
    flags.adopt_module_key_flags(predict_flags)  # for --help
    flags.DEFINE_string("crf", "", predict_flags.CRF_HELP)
    flags.DEFINE_float(
        "padding",
        batching.PADDING,
        "So many more pixels than the images have may be computed to compile fewer "
        "programs; 0: every image at its own size.",
    )
    flags.DEFINE_integer(
        "max_pixels",
        trained.MAX_PIXELS,
        "Larger images are predicted in windows or tiles; also the limit of a batch on "
        "each device.",
    )
    flags.DEFINE_bool("overwrite", False, "Do again what is done already.")
    cli.run(main, positional=True)
