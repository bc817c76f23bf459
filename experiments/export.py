"""Writes a trained model as programs that need neither segjax nor flax.

    python -m experiments.export --workdir /tmp/run --output /tmp/model --sizes=360x480
    python -m experiments.export --workdir /tmp/run --output /tmp/model FOLDER '*.png'

OUTPUT gets

    program_HxW.jax  a program per size, for --platforms (jax.export); the sizes are
                     --sizes, or those that suit the images named
    weights.npz      its arrays, by name
    metadata.json    classes, palette, input, outputs, sizes, versions, checksums
    load.py          runs them, with jax and numpy only: load()([image]) -> [labels]
    flatbuffers.zip  the package of that name, by which jax.export reads programs

--formats=stablehlo adds program_HxW.stablehlo, for runtimes other than jax (a portable
artifact; metadata.json lists its arguments, in front of which is the index of the
platform if there are several --platforms).

Images smaller than a program are mirrored to its size.  For a model trained at
config.data.resize there is one program, of that size, and load.py resizes images of any
size to it and the results back.  The batch is free where the
model permits, otherwise --config.eval_batch_size.  --tile, --window, --scales, --flip
and --ensemble are as in experiments.predict.  At the end the files are loaded and
compared with the model; exit code 2 if they disagree, or for bad flags.
"""

import importlib.util
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from experiments.shared import cli, export_programs, predict_flags
from segjax import config as config_lib
from segjax import errors, files, inference
from segjax import workdir as workdir_lib
from segjax.data import batching
from segjax.data import images as image_files
from segjax.errors import UserError
from segjax.inference import collection

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-3
"""Largest difference of probabilities; compilers may round differently."""
RESIZED_AGREEMENT = 0.99
"""Share of equal labels where the loader resizes by itself, to the same gray levels
but for rounding."""


def export(
    config: ConfigDict,
    workdir: Path,
    *,
    output: Path,
    sizes: Sequence[tuple[int, int]] = (),
    checkpoint: str = "best",
    ensemble: Sequence[str] = (),
    options: inference.PredictOptions | None = None,
    platforms: Sequence[str] = PLATFORMS,
    formats: Sequence[str] = (),
) -> dict:
    """Writes the programs of ``sizes``, compares them, returns the metadata.

    Raises:
      UserError: bad sizes, platforms or formats, or a model that cannot be exported.
    """
    config_lib.check(config)
    for platform in platforms:
        if platform not in PLATFORMS:
            raise UserError(f"--platforms: unknown {platform!r}; known: {PLATFORMS}")
    for name in formats:
        if name not in export_programs.FORMATS:
            raise errors.unknown("--formats", name, export_programs.FORMATS)
    if options and options.proposals:
        raise UserError(
            f"--proposals={options.proposals}: boxes are proposed by OpenCV, which "
            "exported programs do without: leave it out, and predict with "
            "experiments.predict"
        )
    resize = tuple(config.data.resize)
    if any(resize):
        if set(sizes) - {resize}:
            raise UserError(
                f"--sizes: the model was trained at --config.data.resize={resize}, to "
                "which load.py resizes images of any size: leave sizes and images out, "
                "or give --config.data.resize=0,0"
            )
        sizes = [resize]
    if not sizes:
        raise UserError("no sizes: give --sizes=HEIGHTxWIDTH,.. or name images")
    segmenter = inference.load(
        workdir, *ensemble, checkpoint=checkpoint, config=config, options=options
    )
    cli.make_folder(output)
    rows = export_programs.write_programs(
        segmenter, output, sizes=sizes, platforms=platforms, formats=formats
    )
    export_programs.write_loader(output)
    facts = export_programs.metadata(segmenter, config.model_name, rows)
    export_programs.write_metadata(output, facts)
    facts["check"] = check(segmenter, output)
    export_programs.write_metadata(output, facts)
    return facts


def check(segmenter: inference.Segmenter, output: Path) -> dict:
    """Compares load.py of a folder with the model, on noise of every size.

    Also of a smaller size, which both mirror, or resize.

    Returns:
      The number of pixels, of labels that differ, and the largest difference of the
      probabilities.

    Raises:
      UserError: the files do not predict what the model does.
    """
    spec = importlib.util.spec_from_file_location("exported", output / "load.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    facts = json.loads((output / "metadata.json").read_text())
    predict, rng = module.load(output), np.random.default_rng(0)
    result = {"pixels": 0, "different_labels": 0, "max_difference": 0.0}

    def noise(height: int, width: int) -> np.ndarray:
        shape = height // 8 + 1, width // 8 + 1, facts["channels"]
        coarse = rng.integers(0, 256, shape)
        return coarse.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.uint8)

    for row in facts["programs"]:
        size = row["height"], row["width"]
        group = batching.BatchGroup(size, segmenter.mesh.size, [])
        outputs = "labels", "scores"
        run = segmenter.executable((segmenter.mesh.size, *size), outputs=outputs)
        smaller = tuple(max(side - 1, 1) for side in size)
        for h, w in [size] if facts["resize"] else [size, smaller]:
            image = noise(h, w)
            pixels = image_files.to_pixels(
                image, facts["channels"], value_range=segmenter.value_range
            )
            arrays = run(collection.stack([pixels], group))
            label, scores = (np.asarray(arrays[k])[0, :h, :w] for k in outputs)
            (other,) = predict([image], probabilities=True)
            difference = float(np.abs(scores - other).max())
            result["pixels"] += h * w
            result["different_labels"] += int((predict([image])[0] != label).sum())
            result["max_difference"] = max(result["max_difference"], difference)
    if not result["max_difference"] < TOLERANCE:
        raise UserError(
            f"{output}: probabilities of the exported programs differ by "
            f"{result['max_difference']:.1e} from the model's, expected below "
            f"{TOLERANCE}"
        )
    if facts["resize"]:
        image = noise(*(2 * side - 1 for side in facts["resize"]))
        same = (predict([image])[0] == segmenter.predict([image])[0]).mean()
        if not same > RESIZED_AGREEMENT:
            raise UserError(
                f"{output}: {1 - same:.1%} of the labels of a resized image differ "
                f"from the model's, expected at most {1 - RESIZED_AGREEMENT:.0%}"
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
    options = predict_flags.options(values.config)
    workdir = files.absolute(values.workdir)
    if not 0 <= values.padding < math.inf:
        raise UserError(f"--padding={values.padding}: expected a number of 0 or more")
    sizes = parse_sizes(values.sizes)
    if argv[1:]:
        listed = image_files.list_images(argv[1:]).images
        channels = workdir_lib.read_dataset(workdir).channels
        headers = [image_files.image_header(file, channels)[0] for file in listed]
        sizes += batching.padded_shapes(headers, values.padding).values()
    cli.start()
    output = files.absolute(values.output)
    with files.folder_on_disk(output) as folder:
        facts = export(
            values.config,
            workdir,
            output=folder,
            sizes=sizes,
            checkpoint=values.checkpoint,
            ensemble=values.ensemble,
            options=options,
            platforms=values.platforms,
            formats=values.formats,
        )
    for row in facts["programs"]:
        print(
            f"{row['file']}  {row['bytes']:,} bytes, batch "
            f"{row['batch'] or 'free'}, {', '.join(row['platforms'])}"
        )
    checked = facts["check"]
    print(
        f"loaded and compared on {checked['pixels']} pixels: "
        f"{checked['different_labels']} labels differ, probabilities by at most "
        f"{checked['max_difference']:.1e}; written to {output}"
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
    flags.DEFINE_list(
        "formats",
        [],
        "Further files of each program: " + ", ".join(export_programs.FORMATS),
    )
    predict_flags.define(crf=False)
    flags.adopt_module_key_flags(predict_flags)  # for --help
    cli.run(main, positional=True)
