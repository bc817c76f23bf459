"""Searches the parameters of the fully connected CRF for a trained model.

    python -m experiments.tune_crf --workdir /tmp/run
    python -m experiments.tune_crf --workdir /tmp/run --images=100 \\
        --appearance_weight=3,4,5,6 --appearance_sigma_xy=30,50,70,90 \\
        --appearance_sigma_rgb=3,4,5,6
    python -m experiments.evaluate --workdir /tmp/run --crf=/tmp/run/crf/best.json

Every combination of the given values is tried on --images random images of a split:
training images by default, so that the validation stays clean; DeepLab took 100
validation images.  Start again with finer values around the best ones to go from coarse
to fine: what has been tried with these images is kept, and the table has it all.

The flags are the fields of a CRF (docs/crf.md).  As a rule, try appearance_weight and
the two sigmas of the appearance kernel; the smoothness kernel changes little.  A weight
of 0 leaves a kernel out.  Combinations with lattices of similar size share an
executable.

Writes into WORKDIR/crf or --output: probabilities/ (of the network, computed once),
search.json (what they are of), results.jsonl (a line per combination) and best.json,
the fields of the best one.  A search that was stopped continues with the same command.
A folder in a bucket is uploaded when the search ends or is interrupted.
"""

import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tqdm
from absl import flags
from ml_collections import ConfigDict

from experiments.shared import cli, evaluation, predict_flags
from segjax import compilation, evaluators, files, inference, metrics, sharding, tables
from segjax import config as config_lib
from segjax import workdir as workdir_lib
from segjax.data import datasets, pipeline
from segjax.errors import UserError
from segjax.inference import trained
from segjax.ops import filters, mean_field

# The values that are tried, of each field of a CRF.
GRID = {
    "iterations": (10,),
    "smoothness_weight": (3.0,),
    "smoothness_sigma": (3.0,),  # px
    "appearance_weight": (3.0, 5.0, 10.0),
    "appearance_sigma_xy": (30.0, 50.0, 80.0),  # px
    "appearance_sigma_rgb": (3.0, 5.0, 10.0),  # gray levels
    "normalization": ("after",),
    "smoothness_filter": ("lattice",),
    "relaxation": (1.0,),
    "color_order": ("rgb",),
}


def tune_crf(
    config: ConfigDict,
    workdir: Path,
    *,
    output: Path,
    grid: dict[str, tuple],
    split: str = "",
    images: int = 50,
    checkpoint: str = "best",
    options: inference.PredictOptions | None = None,
    ensemble: Sequence[str] = (),
) -> list[dict]:
    """Tries the combinations of ``grid`` that ``output`` does not have yet.

    Returns:
      A row per combination tried there so far, the best first; ``settings`` is None in
      the row without a CRF.
    """
    config_lib.check(config)
    if jax.process_count() > 1:
        raise UserError("the search works in one process: give --distributed=off")
    tried = [
        inference.crf_settings(dict(zip(grid, values)), "--config.crf")
        for values in itertools.product(*grid.values())
    ]
    batches, classes = _probabilities(
        config,
        workdir,
        output=output,
        split=split,
        images=images,
        checkpoint=checkpoint,
        options=options,
        ensemble=ensemble,
    )
    mesh = sharding.make_mesh()
    score = jax.jit(evaluators.make_score(classes))
    rows = _read_rows(output / "results.jsonl")
    known = [row["settings"] for row in rows]
    todo = [s for s in (None, *tried) if (s and s._asdict()) not in known]
    bar = tqdm.tqdm(total=len(todo) * len(batches), desc="search", unit="batch")
    with bar, (output / "results.jsonl").open("a") as file:
        for settings in todo:
            began, h = time.perf_counter(), 0
            for path in batches:
                batch = _load(path)
                p = np.float32(batch["probabilities"])
                p = jax.device_put(p, sharding.split(mesh))
                if settings:
                    pixels = jax.device_put(batch["image"], sharding.split(mesh))
                    p = inference.refine(
                        p,
                        pixels,
                        settings=settings,
                        mesh=mesh,
                        # Files of an older search have none.
                        sizes=batch["sizes"].tolist() if "sizes" in batch else None,
                    )
                confusion = score(batch["label"], p)[0][:, 0, 0]
                h = h + np.asarray(confusion, np.int64).sum(0)
                bar.update()
            scores = metrics.scores(h)
            row = {name: scores[name] for name in ("miou", "pixel_accuracy")}
            row["seconds"] = round(time.perf_counter() - began, 3)
            row["settings"] = settings._asdict() if settings else None
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    rows.sort(key=lambda row: -row["miou"])
    best = next(row["settings"] for row in rows if row["settings"])
    files.write_json(output / "best.json", best)
    return rows


_ROW_SCHEMA = {
    "type": "object",
    "required": ["miou", "pixel_accuracy", "seconds", "settings"],
    "properties": {
        "miou": {"type": "number"},
        "pixel_accuracy": {"type": "number"},
        "seconds": {"type": "number"},
        "settings": {"type": ["object", "null"]},
    },
}


def _read_rows(path: Path) -> list[dict]:
    """The finished lines of a file; removes one that was cut off by a kill.

    Raises:
      UserError: another line is damaged.
    """
    what = "a search of experiments.tune_crf"
    text = files.read_text(path, what) if path.is_file() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        files.write_text(path, whole)
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        address = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{address}: is not valid JSON ({error}); expected {what}: remove the "
                "line"
            ) from error
        files.check_json(row, path=address, what=what, schema=_ROW_SCHEMA)
        if row["settings"]:
            settings = inference.crf_settings(row["settings"], address)
            row["settings"] = settings._asdict()
        rows.append(row)
    return rows


def _probabilities(
    config: ConfigDict,
    workdir: Path,
    *,
    output: Path,
    split: str,
    images: int,
    checkpoint: str,
    options: inference.PredictOptions | None,
    ensemble: Sequence[str],
) -> tuple[list[Path], int]:
    """Files of batches with ``probabilities``, ``image`` and ``label``; classes K.

    Raises:
      UserError: ``output`` holds the probabilities of something else.
    """
    split = split or config.data.train_split
    source, info = datasets.load(config.data, split)
    workdir_lib.check_same_classes(workdir_lib.read_dataset(workdir), info)
    filters.check_colors(info.channels)
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
    source = _Subset(source, images, config.seed)
    plan = pipeline.eval_plan(source.sizes, config.eval_batch_size)
    search = {
        "workdir": str(workdir),
        "step": segmenter.steps[0],
        "weights": [trained.fingerprint(v) for v in segmenter.variables],
        "model": [config.model_name, config.model.to_dict()],
        "options": segmenter.options._asdict(),
        "data": info.name,
        "split": split,
        "images": len(source),
        "seed": config.seed,
        "resize": list(segmenter.resize),
        "precision": segmenter.precision,
        "search": segmenter.search_facts(),
        "eval_batch_size": config.eval_batch_size,
        "fingerprint": datasets.fingerprint(source),
    }
    folder = output / "probabilities"
    cli.make_folder(folder)
    path = output / "search.json"
    search = json.loads(json.dumps(search))
    before = search
    if path.is_file():
        before = files.read_json(path, "what a search of experiments.tune_crf is of")
        if isinstance(before.get("options"), dict):  # written before some options
            defaults = json.loads(json.dumps(inference.PredictOptions()._asdict()))
            before["options"] = defaults | before["options"]
    if different := [key for key in search if before.get(key) != search[key]]:
        key = different[0]
        raise UserError(
            f"{output} has a search with {key} {before.get(key)!r}, this command has "
            f"{search[key]!r}: use another --output"
        )
    files.write_json(path, search)

    paths = [folder / f"{index:05}.npz" for index in range(len(plan))]
    if not all(file.is_file() for file in paths):
        predictor = segmenter.predictor()
        predict = jax.jit(compilation.precision(segmenter.precision)(predictor))
        searched = segmenter.with_regions(source)
        batches = evaluation.eval_batches(
            config, searched, info.channels, segmenter.regions
        )
        feed = zip(paths, plan, sharding.prefetch(batches, mesh))
        bar = tqdm.tqdm(feed, total=len(plan), desc="network", unit="batch")
        for file, (_, indices), (batch, on_device) in bar:
            # Half precision: relative errors of 1e-3 in p, of p near 1e-5 of 1e-2.
            inputs = segmenter.inputs(on_device)
            p = np.asarray(predict(segmenter.variables, *inputs), np.float16)
            with files.atomic_write(file) as partial, partial.open("wb") as handle:
                np.savez(
                    handle,
                    probabilities=p,
                    image=batch["image"],
                    label=batch["label"],
                    sizes=[source.sizes[i] for i in indices]
                    + (len(p) - len(indices)) * [(0, 0)],
                )
    return paths, len(info.classes)


class _Subset:
    """A random choice of a source's examples, in their order."""

    def __init__(self, source: Any, number: int, seed: int):
        chosen = np.random.default_rng(seed).permutation(len(source))[:number]
        self._source, self._indices = source, sorted(chosen.tolist())
        sizes = source.sizes
        self.sizes = [sizes[index] for index in self._indices]

    def __len__(self) -> int:
        return len(self._indices)

    @property
    def identities(self) -> list[str]:
        """See ``datasets.Source``."""
        identities = self._source.identities
        return [identities[index] for index in self._indices]

    def __getitem__(self, index: int) -> dict:
        return self._source[self._indices[index]]


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as arrays:
            batch = dict(arrays)
        if not {"probabilities", "image", "label"} <= batch.keys():
            raise ValueError("arrays are missing")
    except Exception as error:  # a damaged archive raises anything
        raise UserError(
            f"{path}: is damaged ({' '.join(str(error).split())[:100]}); remove it and "
            "start the same command again"
        ) from error
    return batch


def table(rows: list[dict]) -> str:
    """The rows as aligned text, with a column for each field that was varied."""
    tried = [row["settings"] for row in rows if row["settings"]]
    fields = [f for f in GRID if len({settings[f] for settings in tried}) > 1]
    lines = [["mIoU", "pixel acc", "seconds", *fields, ""]]
    for row in rows:
        numbers = [f"{100 * row[key]:.2f}" for key in ("miou", "pixel_accuracy")]
        settings = row["settings"] or {}
        values = [str(settings.get(field, "-")) for field in fields]
        note = "" if settings else "no CRF"
        lines.append([*numbers, f"{row['seconds']:.1f}", *values, note])
    return tables.text_table(lines)


def main(argv) -> None:
    del argv
    values = flags.FLAGS
    options = predict_flags.options(values.config)
    cli.start()
    workdir = files.absolute(values.workdir)
    output = files.path(values.output or workdir / "crf")
    grid = {
        field: _values(field, getattr(values, field), values.config) for field in GRID
    }
    with files.folder_on_disk(output, continued=True) as folder:
        rows = tune_crf(
            values.config,
            workdir,
            output=folder,
            grid=grid,
            split=values.split,
            images=values.images,
            checkpoint=values.checkpoint,
            options=options,
            ensemble=values.ensemble,
        )
    print(table(rows))
    if rows[0]["settings"] is None:
        print("no combination is better than no CRF: try smaller weights and sigmas")
    print(f"the best one is in {output / 'best.json'}: give it to --crf")


def _values(field: str, texts: list[str], config: ConfigDict) -> tuple:
    """The values of a flag, of the type of the field.

    Of a field that is not searched by default, without the flag, the value of
    ``config.crf`` if that has been set.

    Raises:
      UserError: they are no numbers, or none.
    """
    kind = type(GRID[field][0])
    if not texts and len(GRID[field]) == 1:
        chosen = config.crf[field]
        is_default = chosen == mean_field.Settings()._asdict()[field]
        return GRID[field] if is_default else (chosen,)
    try:
        if not texts:
            raise ValueError
        return tuple(kind(text) for text in texts)
    except ValueError as error:
        raise UserError(
            f"--{field}={','.join(texts)}: expected {kind.__name__} values joined by "
            "commas"
        ) from error


if __name__ == "__main__":
    cli.define_workdir_config()
    predict_flags.define(crf=False)
    flags.adopt_module_key_flags(predict_flags)  # for --help
    flags.DEFINE_string("split", "", "Of the dataset; '': config.data.train_split.")
    flags.DEFINE_integer("images", 50, "How many, chosen at random.", lower_bound=1)
    flags.DEFINE_string("output", "", "Folder; '': WORKDIR/crf.")
    for name, default in GRID.items():
        text, meaning = [str(value) for value in default], "Values to try, by commas."
        if len(default) == 1:
            meaning += f" '': config.crf.{name} if that was set, or {text[0]}."
            text = []
        flags.DEFINE_list(name, text, meaning)
    cli.run(main)
