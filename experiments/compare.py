"""Compares trained networks on the same images: tables per class, costs, pictures.

    python -m experiments.compare runs/unet runs/pspnet
    python -m experiments.compare U-Net=runs/unet PSPNet=runs/psp1,runs/psp2,runs/psp3
    python -m experiments.compare runs/networks --flip --scales=0.75,1,1.25
    python -m experiments.compare runs/a runs/b --split=test --output=results

A run is a workdir of experiments.train, or a checkpoint in one.  NAME=RUN1,RUN2,..
are runs of one method that differ in their seed: it has the mean and the sample
standard deviation of their scores.  The folder of a sweep is a method for each of its
rows.

Every run is evaluated on the split as by experiments.evaluate, whose flags
--checkpoint, --tile, --window, --stride, --scales, --flip, --rotations, --crf,
--padding and --max_pixels hold for all runs, and so does --config.FIELD=VALUE, such as
--config.data.root.  Results of the same evaluation of the same checkpoint that are in
WORKDIR/evaluation or in --output are taken from there; --noreuse evaluates again.  All
runs must have the same classes and images.

Writes compare.txt (which is also printed), compare.md, compare.csv (all numbers,
unrounded), compare.tex (LaTeX, with booktabs), compare.json and compare.html, one page
with the tables, and the images on which two methods differ most, into --output; the
first of these images also as compare.png.
Published scores of the data set stand in a table of their own.  docs/compare.md
explains the columns.

Exit codes: 0; 1 if runs of a sweep are not finished, and so left out; 2 bad input.
"""

import os
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import ConfigDict

from experiments.comparison import methods as methods_lib
from experiments.comparison import page, pairs, tables
from experiments.comparison import pictures as pictures_lib
from experiments.comparison import results as results_lib
from experiments.comparison.results import Data, Protocol, Result
from experiments.shared import arguments, cli, predict_flags
from segjax import config as config_lib
from segjax import files, inference, published_scores, viz
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference import collection

_ALL_PAIRS = 4  # of more methods, pictures show differences from the best one alone


def compare(
    methods: Sequence[methods_lib.Method],
    *,
    protocol: Protocol,
    output: Path,
    pictures: int,
    photos: bool = True,
    problems: Sequence[str] = (),
    command: str = "",
) -> list[Result]:
    """Compares the methods, prints the tables and writes all files.

    Args:
      methods: two or more, or one.
      protocol: how they are predicted and scored.
      output: folder.
      pictures: images of each pair of methods and direction.
      photos: whether to show the images and their truth beside the predictions.
      problems: a line per run that is left out.
      command: what asked for this.
    """
    configs = results_lib.configs(methods, protocol.overrides)
    data = results_lib.open_data(configs, protocol.split)
    folder = output / "evaluations"
    scored = {}
    for i, method in enumerate(methods):
        for j, run in enumerate(method.runs):
            cli.log(f"{method.name}: {run.workdir}")
            place = folder / f"{i}_{j}"
            cli.make_folder(place)
            scored[run] = results_lib.score(
                run, configs[run], data=data, protocol=protocol, folder=place
            )
    by_image = np.stack([_by_image([scored[r] for r in m.runs]) for m in methods])
    compared = pairs.compare(by_image)
    telling = pairs.telling_images(
        by_image, _pairs_of_pictures(methods, scored, compared), pictures
    )
    results = []
    for method in tqdm.tqdm(methods, "speed and pictures", unit="method"):
        run = method.runs[0]
        labels, rate = results_lib.predict(
            run, configs[run], data=data, protocol=protocol, chosen=list(telling)
        )
        costs = results_lib.costs(configs[run], data)
        runs = tuple(scored[run] for run in method.runs)
        results.append(Result(method.name, runs, costs, rate, labels))
    _write(
        results,
        data=data,
        compared=compared,
        by_image=by_image,
        telling=telling,
        options=options_text(configs.values(), protocol),
        output=output,
        photos=photos,
        problems=problems,
        command=command,
    )
    return results


def _by_image(runs: Sequence[results_lib.Scored]) -> np.ndarray:
    """mIoU of single images [n], mean over the runs."""
    return np.mean([run.images for run in runs], axis=0)


def _pairs_of_pictures(
    methods: Sequence[methods_lib.Method],
    scored: Mapping[methods_lib.Run, results_lib.Scored],
    compared: Sequence[pairs.Pair],
) -> list[tuple[int, int]]:
    if len(methods) <= _ALL_PAIRS:
        return [(pair.first, pair.second) for pair in compared]
    means = [np.mean([scored[r].scores["miou"] for r in m.runs]) for m in methods]
    best = int(np.argmax(means))
    return [(best, i) for i in range(len(methods)) if i != best]


# Files


def _write(
    results: Sequence[Result],
    *,
    data: Data,
    compared: Sequence[pairs.Pair],
    by_image: np.ndarray,
    telling: Mapping[int, list[tuple[int, int]]],
    options: str,
    output: Path,
    photos: bool,
    problems: Sequence[str],
    command: str,
) -> None:
    published = published_scores.of(data.info.name, data.info.classes)
    facts = _facts(results, data, options)
    parts = tables.sections(
        results,
        data=data,
        pairs=compared,
        published=published,
        facts=facts,
        costs_note=_costs_note(data),
    )
    print(tables.text(parts), end="")
    for problem in problems:
        print(f"left out: {problem}")
    figure = _figure(results)
    written = {
        "compare.txt": tables.text(parts),
        "compare.md": tables.markdown(parts),
        "compare.csv": tables.comma_separated(results, data=data, published=published),
        "compare.tex": tables.latex(
            results, data=data, published=published, facts=facts
        ),
        "compare.html": page.page(
            results,
            data=data,
            sections=parts,
            telling=telling,
            scores=by_image,
            problems=problems,
            figure=figure,
            photos=photos,
            command=command,
        ),
    }
    for name, text in written.items():
        files.write_text(output / name, text)
    values = {
        "protocol": options,
        "device": _device(),
        "command": command,
        "left_out": list(problems),
    }
    values = tables.json_values(
        results, data=data, pairs=compared, published=published, facts=values
    )
    files.write_json(output / "compare.json", values)
    names = [*written, "compare.json"]
    sheet = output / "compare.png"
    sheet.unlink(missing_ok=True)  # of another comparison
    if telling:
        drawn = pictures_lib.sheet(telling, results, data=data, photos=photos)
        with files.atomic_write(sheet) as partial:
            partial.write_bytes(image_files.encode_png(drawn))
        names.append(sheet.name)
    print(f"written to {output}: {', '.join(names)}")


def _facts(results: Sequence[Result], data: Data, options: str) -> str:
    seeds = any(len(result.runs) > 1 for result in results)
    size = "{}x{}".format(*data.size)
    return (
        f"IoU in percent on {len(data.source)} images of {data.info.name}/{data.split} "
        f"({size}{' and other sizes' if data.sizes > 1 else ''}), "
        f"{options}"
        + ("; mean ± sample standard deviation over the runs" if seeds else "")
        + "."
    )


def options_text(configs: Iterable[ConfigDict], protocol: Protocol) -> str:
    """The options that differ from predicting each image in one piece.

    Args:
      configs: of all runs: their tiles may differ.
      protocol: of all runs.
    """
    plain = inference.PredictOptions()._asdict()
    texts: dict[str, None] = {}
    for config in configs:
        options = protocol.options(config)._asdict()
        chosen = [
            f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
            for name, value in options.items()
            if value != plain[name]
        ]
        chosen += [f"crf={protocol.crf}"] if protocol.crf else []
        texts[", ".join(chosen) or "predicted in one piece"] = None
    return " or ".join(texts)


def _costs_note(data: Data) -> str:
    height, width = data.size
    return (
        f"Parameters; GFLOPs (2 x MACs) of the network alone for one image of "
        f"{height}x{width}; images per second of the whole protocol, compiled and in "
        f"memory, on {_device()}."
    )


def _device() -> str:
    devices = jax.local_devices()
    if devices[0].platform == "cpu":
        return f"{os.cpu_count()} CPU cores"
    return f"{len(devices)} x {devices[0].device_kind}"


def _figure(results: Sequence[Result]) -> bytes:
    """PNG of mIoU over costs."""
    costs = {
        "GFLOPs per image": [result.costs.flops / 1e9 for result in results],
        "million parameters": [result.costs.parameters / 1e6 for result in results],
        "images per second": [result.rate for result in results],
    }
    known = {k: v for k, v in costs.items() if not np.isnan(v).all()}
    scores = [100 * tables.scores_of(result, "miou") for result in results]
    return viz.tradeoff_figure([r.name for r in results], known, {"mIoU, %": scores})


# Flags


def _overrides() -> dict[str, Any]:
    """The fields that --config.FIELD=VALUE sets in the configs of all runs."""
    values = config_lib.flatten(flags.FLAGS.config)
    given = {name: values[name] for name in arguments.given_fields()}
    for name in given:
        if name == "model_name" or name.startswith("model."):
            raise UserError(
                f"--config.{name}: networks are what they were trained as; expected a "
                "field of the data or of the evaluation"
            )
    return given


def main(argv) -> int:
    values = flags.FLAGS
    overrides = _overrides()
    if values.ensemble:
        raise UserError(
            "--ensemble: expected runs that are compared; experiments.evaluate scores "
            "ensembles"
        )
    if values.pictures < 0:
        raise UserError(f"--pictures={values.pictures}: expected 0 or more")
    collection.check_limits(values.padding, values.max_pixels)
    methods, problems = methods_lib.read(argv[1:], values.checkpoint)
    cli.start()
    if jax.process_count() > 1:
        raise UserError("experiments.compare runs in one process: --distributed=off")
    output = files.path(values.output)
    cli.make_folder(output)
    protocol = Protocol(
        split=values.split,
        options=predict_flags.options,
        crf=values.crf,
        padding=values.padding,
        max_pixels=values.max_pixels,
        overrides=overrides,
        reuse=values.reuse,
    )
    compare(
        methods,
        protocol=protocol,
        output=output,
        pictures=values.pictures,
        photos=values.photos,
        problems=problems,
        command=shlex.join(["python", "-m", "experiments.compare", *sys.argv[1:]]),
    )
    return 1 if problems else 0


if __name__ == "__main__":
    cli.define_common_overrides()
    flags.DEFINE_string(
        "split", "", "Of the data set; '': config.data.eval_split of the first run."
    )
    flags.DEFINE_string("output", "runs/compare", "Folder of the results.")
    predict_flags.define()
    predict_flags.define_limits()
    flags.adopt_module_key_flags(predict_flags)  # for --help
    flags.DEFINE_bool(
        "reuse", True, "Take the results of the same evaluation where they are there."
    )
    flags.DEFINE_integer(
        "pictures", 1, "Images of each pair of methods and direction on the page."
    )
    flags.DEFINE_bool(
        "photos",
        True,
        "Show the images and their truth, too; --nophotos for data that must not be "
        "passed on.",
    )
    cli.run(main, positional=True)
