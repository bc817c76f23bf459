"""Writes a trained model as programs that need neither segjax nor flax.

    python -m experiments.export --workdir /tmp/run --output /tmp/model --sizes=360x480
    python -m experiments.export --workdir /tmp/run --output /tmp/model FOLDER '*.png'

OUTPUT gets

    program_HxW.jax  a program per size, for --platforms (jax.export); the sizes are
                     --sizes, or those that suit the images named
    weights.npz      its arrays, by name
    metadata.json    classes, palette, input, outputs, sizes, versions
    load.py          runs them, with jax and numpy only: load()([image]) -> [labels]
    flatbuffers.zip  the package of that name, by which jax.export reads programs

Images smaller than a program are mirrored to its size.  The batch is free where the
model permits, otherwise --config.eval_batch_size.  --tile, --window, --scales, --flip
and --ensemble are as in experiments.predict.  At the end the files are loaded and
compared with the model; exit code 2 if they disagree, or for bad flags.
"""

import importlib.metadata
import importlib.util
import json
import math
import re
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.export
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.shared import cli, exported_loader, predict_flags, provenance
from segjax import config as config_lib
from segjax import inference
from segjax.data import batching
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.files import atomic_write
from segjax.inference import predictor, trained

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-3
"""Of probabilities; programs of the same source may round differently."""


def export(
    config: ConfigDict,
    workdir: Path,
    output: Path,
    sizes: Sequence[tuple[int, int]],
    which: str = "best",
    ensemble: Sequence[str] = (),
    method: inference.Method | None = None,
    platforms: Sequence[str] = PLATFORMS,
) -> dict:
    """Writes the programs of ``sizes``, compares them, returns the metadata.

    Raises:
      UserError: bad sizes or platforms, or a model that cannot be exported.
    """
    config_lib.check(config)
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(f"--platforms: unknown {platform!r}; known: {PLATFORMS}")
    if not sizes:
        raise UserError("no sizes: give --sizes=HEIGHTxWIDTH,.. or name images")
    model = inference.load(
        workdir, *ensemble, checkpoint=which, config=config, method=method
    )
    cli.make_folder(output)
    leaves, tree = jax.tree_util.tree_flatten_with_path(model.variables)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
    ]
    weights = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves)}
    predict = inference.compose(model.models, model.method)

    def run(weights: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        variables = tree.unflatten([weights[name] for name in names])
        probabilities = predict(variables, images)
        return predictor.most_probable(probabilities), probabilities

    rows = []
    for height, width in sorted(set(sizes), key=math.prod):
        cli.log(f"{height}x{width} for {', '.join(platforms)} ...")
        shape = height, width, model.info.channels
        program, batch = _export(run, weights, shape, model.batch, platforms)
        file = f"program_{height}x{width}.jax"
        data = program.serialize()
        with atomic_write(output / file) as partial:
            partial.write_bytes(data)
        rows.append(
            {
                "file": file,
                "height": height,
                "width": width,
                "batch": batch,
                "bytes": len(data),
                "platforms": list(program.platforms),
            }
        )
    with (
        atomic_write(output / "weights.npz") as partial,
        open(partial, "wb") as file,
    ):
        np.savez(file, **weights)
    shutil.copyfile(exported_loader.__file__, output / "load.py")
    _bundle("flatbuffers", output / "flatbuffers.zip")
    facts = _metadata(model, config, rows)
    with atomic_write(output / "metadata.json") as partial:
        partial.write_text(json.dumps(facts, indent=1) + "\n")
    facts["check"] = check(model, output)
    with atomic_write(output / "metadata.json") as partial:
        partial.write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _export(
    run, weights: dict, shape: tuple, batch: int, platforms: Sequence[str]
) -> tuple[jax.export.Exported, int]:
    """The program and its batch; 0: any."""
    arrays = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in weights.items()}
    exporter = jax.export.export(jax.jit(run), platforms=platforms)
    (free,) = jax.export.symbolic_shape("batch")
    try:
        images = jax.ShapeDtypeStruct((free, *shape), np.uint8)
        return exporter(arrays, images), 0
    except UserError:
        raise
    except Exception as error:  # shapes that need a number fail in many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        cli.log(f"the batch is fixed to {batch}: {reason[:150]}")
    images = jax.ShapeDtypeStruct((batch, *shape), np.uint8)
    return exporter(arrays, images), batch


def _bundle(package: str, path: Path) -> None:
    """An importable zip of an installed package of pure Python, with its licence."""
    found = importlib.metadata.distribution(package)
    with (
        atomic_write(path) as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for file in found.files:
            if file.suffix != ".pyc" and ".." not in file.parts:
                archive.write(file.locate(), str(file))


def _metadata(model: trained.Trained, config: ConfigDict, rows: list[dict]) -> dict:
    channels, classes = model.info.channels, len(model.info.classes)
    label = np.dtype(predictor.label_type(classes)).name
    return {
        "model": config.model_name,
        "checkpoint_steps": model.steps,
        "dataset": model.info.name,
        "classes": model.info.classes,
        "palette": np.asarray(model.info.palette).tolist(),
        "channels": channels,
        "input": {
            "weights": "dict of the arrays in weights.npz",
            "images": f"uint8 [batch, height, width, {channels}], "
            + ("RGB" if channels == 3 else "gray")
            + ", 0..255; normalized inside the program",
        },
        "outputs": [
            f"labels: {label} [batch, height, width]",
            f"probabilities: float32 [batch, height, width, {classes}]",
        ],
        "method": model.method._asdict(),
        "programs": rows,
        "versions": provenance.versions(),
    }


def check(model: trained.Trained, output: Path) -> dict:
    """Compares load.py of a folder with the model, on noise of every size.

    Also of a smaller size, which both mirror.

    Returns:
      The number of pixels, of labels that differ, and the largest difference of the
      probabilities.

    Raises:
      UserError: the files do not say what the model says.
    """
    spec = importlib.util.spec_from_file_location("exported", output / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    facts = json.loads((output / "metadata.json").read_text())
    predict, rng = module.load(output), np.random.default_rng(0)
    result = {"pixels": 0, "different_labels": 0, "max_difference": 0.0}
    for row in facts["programs"]:
        size = row["height"], row["width"]
        bucket = batching.Bucket(size, model.mesh.size, [])
        run = trained.program(model, (model.mesh.size, *size), ("labels", "scores"))
        smaller = tuple(max(side - 1, 1) for side in size)
        for h, w in (size, smaller):
            coarse = rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, facts["channels"]))
            image = coarse.repeat(8, 0).repeat(8, 1)[:h, :w].astype(np.uint8)
            found = run(trained.stack([image], bucket))
            label, scores = (np.asarray(found[k])[0] for k in ("labels", "scores"))
            other = predict([image], probabilities=True)[0]
            difference = np.abs(scores[:h, :w] - other).max()
            result["pixels"] += h * w
            result["different_labels"] += int(
                (predict([image])[0] != label[:h, :w]).sum()
            )
            result["max_difference"] = max(result["max_difference"], float(difference))
    if not result["max_difference"] < TOLERANCE:
        raise UserError(
            f"{output}: probabilities of the exported programs differ by "
            f"{result['max_difference']:.1e} from the model's, expected below "
            f"{TOLERANCE}"
        )
    return result


def parse_sizes(values: Sequence[str]) -> list[tuple[int, int]]:
    """["360x480"] -> [(360, 480)]."""
    for value in values:
        if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", value):
            raise UserError(f"--sizes: found {value!r}, expected HEIGHTxWIDTH")
    return [tuple(map(int, value.split("x"))) for value in values]


def main(argv) -> int:
    values = flags.FLAGS
    method = predict_flags.method(values.config)
    sizes = parse_sizes(values.sizes)
    if argv[1:]:
        files = image_files.list_images(argv[1:]).images
        found = [image_files.image_header(file)[0] for file in files]
        sizes += batching.frames(found, values.padding).values()
    cli.start()
    output = Path(values.output).expanduser().absolute()
    facts = export(
        values.config,
        Path(values.workdir).expanduser().absolute(),
        output,
        sizes,
        values.checkpoint,
        values.ensemble,
        method,
        values.platforms,
    )
    for row in facts["programs"]:
        print(
            f"{row['file']}  {row['bytes']:,} bytes, batch "
            f"{row['batch'] or 'free'}, {', '.join(row['platforms'])}"
        )
    found = facts["check"]
    print(
        f"loaded and compared on {found['pixels']} pixels: "
        f"{found['different_labels']} labels differ, probabilities by at most "
        f"{found['max_difference']:.1e}; written to {output}"
    )
    return 0


if __name__ == "__main__":
    cli.define_workdir_config()
    flags.DEFINE_string("output", None, "Folder for the files.", required=True)
    flags.DEFINE_list("sizes", [], "HEIGHTxWIDTH of the programs, joined by commas.")
    flags.DEFINE_float(
        "padding", batching.PADDING, "Of sizes chosen from images: see predict."
    )
    flags.DEFINE_list("platforms", list(PLATFORMS), "To run on.")
    predict_flags.define()
    flags.adopt_module_key_flags(predict_flags)  # for --help
    cli.run(main, positional=True)
