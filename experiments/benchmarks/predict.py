"""Measures segmenting a collection: against a plain loop, and its reading and writing.

    python -m experiments.benchmarks.predict --workdir /tmp/run FOLDER '*.png'

The same images are segmented and written, in turns, by

    batches     the loop of experiments.predict: frames, batches, threads
    one by one  a plain loop: read, predict at the image's own size, write; every size
                is compiled the first time it occurs
    files       the loop of experiments.predict with a program that answers at once:
                what reading and writing take, the bound of the first one

after one round of each that compiles.  Prints a table; docs/segment.md has results.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments.shared import cli, predict_flags, prediction_files, prediction_run
from segjax import compilation, inference
from segjax.data import batching
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference import trained


def benchmark(
    model: trained.Trained,
    files: Sequence[str],
    outputs: Sequence[str],
    padding: float,
    threads: int,
    rounds: int,
) -> dict[str, dict]:
    """Seconds of the first and of the other rounds, and programs compiled, by way."""
    sizes = [image_files.image_header(file)[0] for file in files]
    plan = batching.plan(
        sizes, model.batch, padding, model.mesh.size, trained.MAX_PIXELS
    )
    names = prediction_files.output_names(files)
    alone = jax.jit(
        inference.predict_labels(inference.compose(model.models, model.method))
    )

    def batches(model: trained.Trained, results: prediction_files.Results) -> None:
        prediction_run.predict_batches(
            model, results, names, files, plan, None, threads, _fail, lambda count: None
        )

    def one_by_one(results: prediction_files.Results) -> None:
        for file in files:
            image = image_files.decode_image(file, model.info.channels)
            label = np.asarray(alone(model.variables, image[None]))[0]
            version = prediction_files.version_of(file)
            prediction_files.write(results, names[file], file, image, label, version)

    def answer(shape: tuple[int, ...]) -> Callable:
        return lambda images: {"labels": np.zeros(shape, np.uint8)}

    shapes = [(bucket.rows, *bucket.frame) for bucket in plan]
    programs = {(shape, ("labels",), None): answer(shape) for shape in shapes}
    idle = model._replace(programs=programs)
    ways = {
        "batches": lambda results: batches(model, results),
        "one by one": one_by_one,
        "files": lambda results: batches(idle, results),
    }
    found = {way: {"seconds": [], "programs": []} for way in ways}
    for _ in range(rounds + 1):
        for way, run in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                results = prediction_files.open_results(
                    Path(folder), outputs, model.info, {}
                )
                began, compiled = time.perf_counter(), compilation.count()
                run(results)
                found[way]["seconds"].append(time.perf_counter() - began)
                found[way]["programs"].append(compilation.count() - compiled)
    return found


def _fail(file: str, error: UserError) -> None:
    raise error


def table(found: dict[str, dict], count: int) -> str:
    """Images per second, by way, and how they compare."""
    lines = ["             first round          after it, images/s   compiled after it"]
    rates = {}
    for way, row in found.items():
        seconds = row["seconds"]
        rates[way] = count / statistics.median(seconds[1:])
        lines.append(
            f"{way:11}  {seconds[0]:6.1f} s, {row['programs'][0]:3} programs  "
            f"{rates[way]:8.1f} ({count / max(seconds[1:]):.1f} to "
            f"{count / min(seconds[1:]):.1f})  {sum(row['programs'][1:]):3}"
        )
    lines.append(
        f"batches: {rates['batches'] / rates['one by one']:.2f} times one by one, "
        f"{rates['batches'] / rates['files']:.2f} of files; first round "
        f"{found['one by one']['seconds'][0] / found['batches']['seconds'][0]:.2f} "
        "times one by one"
    )
    return "\n".join(lines)


def main(argv) -> None:
    values = flags.FLAGS
    method = predict_flags.method(values.config)
    files = image_files.list_images(argv[1:]).images
    if not files:
        raise UserError("no images given: name files, folders, globs or @lists")
    if "probabilities" in values.outputs:
        raise UserError("--outputs: probabilities are not measured; name the others")
    cli.start()
    model = inference.load(
        values.workdir,
        *values.ensemble,
        checkpoint=values.checkpoint,
        config=values.config,
        method=method,
    )
    prediction_files.check_outputs(values.outputs, len(model.info.classes))
    found = benchmark(
        model,
        files,
        values.outputs,
        values.padding,
        values.config.threads,
        values.rounds,
    )
    sizes = {image_files.image_header(file)[0] for file in files}
    print(f"{len(files)} images of {len(sizes)} sizes; {', '.join(values.outputs)}")
    print(table(found, len(files)))


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_list("outputs", ["labels", "overlays"], "As of experiments.predict.")
    flags.DEFINE_float("padding", batching.PADDING, "As of experiments.predict.")
    flags.DEFINE_integer("rounds", 3, "After the first one.", lower_bound=1)
    predict_flags.define()
    flags.adopt_module_key_flags(predict_flags)  # for --help
    cli.run(main, positional=True)
