"""Measures segmenting a collection: against a plain loop, and its reading and writing.

    python -m experiments.benchmarks.predict --workdir /tmp/run FOLDER '*.png'

The same images are segmented and written, in turns, by

    batches     the loop of experiments.predict: padded shapes, batches, threads
    one by one  a plain loop: read, predict at the image's own size, write; every size
                is compiled the first time it occurs
    plain jax   the same loop with the convolutions of XLA, which a network that is
                written with flax.linen.Conv has
    files       the loop of experiments.predict with a program that answers at once:
                what reading and writing take, the bound of the first one
    flax        with --flax: a plain loop in Flax, of a network of the same layers
    pytorch     with --torch: the same in PyTorch

after one round of each that compiles.  Prints a table; docs/segment.md has results.
"""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from experiments import predict
from experiments.benchmarks import flax_predict, torch_predict
from experiments.shared import (
    cli,
    predict_flags,
    prediction_files,
    prediction_folder,
)
from segjax import compilation, inference
from segjax.data import batching, windows
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference import collection
from segjax.inference.stored import file_version
from segjax.ops import conv_forms


def benchmark(
    segmenter: inference.Segmenter,
    paths: Sequence[str],
    *,
    outputs: Sequence[str],
    padding: float,
    threads: int,
    rounds: int,
    flax: bool = False,
    torch: bool = False,
) -> dict[str, dict]:
    """Seconds of the first and of the other rounds, and shapes compiled, by way.

    Raises:
      UserError: an image is bad or too large, or `flax` or `torch` asks for a network
        that has no counterpart there.
    """
    plan = collection.plan(segmenter, paths, padding=padding)
    for error in plan.errors.values():
        raise error
    if plan.large:
        raise UserError(
            f"{paths[plan.large[0]]}: has more than {plan.max_pixels} pixels, which "
            "experiments.predict predicts in parts: only smaller images are measured"
        )
    names = prediction_files.output_names(paths)
    predictor = segmenter.predictor()
    labels = inference.predict_labels(predictor)
    alone = jax.jit(compilation.precision(segmenter.precision)(labels))
    plain = jax.jit(
        compilation.precision(segmenter.precision)(conv_forms.native_only()(labels))
    )

    def batches(
        segmenter: inference.Segmenter, results: prediction_folder.PredictionFolder
    ) -> None:
        failures, _ = predict.run(
            segmenter, plan, results=results, names=names, threads=threads
        )
        for text in failures.values():
            raise UserError(text)

    def one_by_one(
        alone: Callable, results: prediction_folder.PredictionFolder
    ) -> None:
        for index, path in enumerate(paths):
            image = image_files.decode_image(
                path, segmenter.info.channels, value_range=segmenter.value_range
            )
            label = np.asarray(alone(segmenter.variables, image[None]))[0]
            prediction = collection.Prediction(
                image_index=index,
                size=label.shape,
                label=label,
                probabilities=None,
                parts=None,
                read=windows.array_windows(image, segmenter.info.channels),
                version=file_version(path),
                waited=0.0,
            )
            prediction_folder.write(
                results, names[path], file=path, prediction=prediction
            )

    def answer(shape: tuple[int, ...]) -> Callable:
        return lambda images: {"labels": np.zeros(shape, np.uint8)}

    shapes = [(group.batch_size, *group.padded_shape) for group in plan.groups]
    idle = segmenter._replace(
        executables={(shape, ("labels",)): answer(shape) for shape in shapes}
    )
    ways = {
        "batches": lambda results: batches(segmenter, results),
        "one by one": functools.partial(one_by_one, alone),
        "plain jax": functools.partial(one_by_one, plain),
        "files": lambda results: batches(idle, results),
    }
    peers = {"flax": (flax, flax_predict), "pytorch": (torch, torch_predict)}
    for way, (wanted, peer) in peers.items():
        if wanted:
            run_peer = peer.loop(segmenter)
            ways[way] = lambda results, run=run_peer: run(paths, results.folder)
    measured = {way: {"seconds": [], "programs": []} for way in ways}
    for _ in range(rounds + 1):
        for way, run in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                results = prediction_folder.open_folder(
                    Path(folder), outputs, info=segmenter.info, settings={}
                )
                began, compiled = time.perf_counter(), compilation.count()
                run(results)
                measured[way]["seconds"].append(time.perf_counter() - began)
                measured[way]["programs"].append(compilation.count() - compiled)
    return measured


def table(measured: dict[str, dict], count: int) -> str:
    """Images per second, by way, and how they compare."""
    lines = ["             first round          after it, images/s   compiled after it"]
    rates = {}
    for way, row in measured.items():
        seconds = row["seconds"]
        rates[way] = count / statistics.median(seconds[1:])
        lines.append(
            f"{way:11}  {seconds[0]:6.1f} s, {row['programs'][0]:3} programs  "
            f"{rates[way]:8.1f} ({count / max(seconds[1:]):.1f} to "
            f"{count / min(seconds[1:]):.1f})  {sum(row['programs'][1:]):3}"
        )
    first = {way: row["seconds"][0] for way, row in measured.items()}
    for way in [way for way in rates if way not in ("batches", "files")]:
        lines.append(
            f"batches: {rates['batches'] / rates[way]:.2f} times {way}; first round "
            f"{first[way] / first['batches']:.2f} times"
        )
    lines.append(f"batches: {rates['batches'] / rates['files']:.2f} of files")
    return "\n".join(lines)


def main(argv) -> None:
    values = flags.FLAGS
    options = predict_flags.options(values.config)
    collection.check_limits(values.padding, 1)
    paths = image_files.list_images(argv[1:]).images
    if not paths:
        raise UserError("no images given: name files, folders, globs or @lists")
    if "probabilities" in values.outputs:
        raise UserError("--outputs: probabilities are not measured; name the others")
    cli.start()
    if options.proposals:
        raise UserError(
            f"--proposals={options.proposals}: only predictions of whole images are "
            "measured; leave it out"
        )
    segmenter = inference.load(
        values.workdir,
        *values.ensemble,
        checkpoint=values.checkpoint,
        config=values.config,
        options=options,
    )
    if any(segmenter.resize):
        raise UserError(
            f"--config.data.resize={segmenter.resize}: the loop one by one predicts "
            "images at their own size; give --config.data.resize=0,0"
        )
    prediction_files.check_outputs(values.outputs, len(segmenter.info.classes))
    measured = benchmark(
        segmenter,
        paths,
        outputs=values.outputs,
        padding=values.padding,
        threads=values.config.threads,
        rounds=values.rounds,
        flax=values.flax,
        torch=values.torch,
    )
    channels = segmenter.info.channels
    sizes = {image_files.image_header(path, channels)[0] for path in paths}
    print(f"{len(paths)} images of {len(sizes)} sizes; {', '.join(values.outputs)}")
    print(table(measured, len(paths)))


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_list("outputs", ["labels", "overlays"], "As of experiments.predict.")
    flags.DEFINE_float("padding", batching.PADDING, "As of experiments.predict.")
    flags.DEFINE_integer("rounds", 3, "After the first one.", lower_bound=1)
    flags.DEFINE_boolean("flax", False, "Also a plain loop in Flax.")
    flags.DEFINE_boolean("torch", False, "Also a plain loop in PyTorch.")
    predict_flags.define(crf=False)
    flags.adopt_module_key_flags(predict_flags)  # for --help
    cli.run(main, positional=True)
