"""The files of an exported model: programs, weights, loader and metadata.

A new format is a line of :data:`FORMATS`.
"""

import hashlib
import importlib.metadata
import json
import math
import shutil
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np

from experiments.shared import cli, exported_loader, provenance
from segjax import compilation, files, inference
from segjax.errors import UserError
from segjax.inference import predictors

FORMATS: dict[str, Callable[[jax.export.Exported], bytes]] = {
    # The portable artifact of StableHLO, which outlives the version that wrote it.
    "stablehlo": lambda exported: exported.mlir_module_serialized,
}
"""Further formats of a program, by the suffix of the file: what the file holds."""


def write_programs(
    segmenter: inference.Segmenter,
    output: Path,
    *,
    sizes: Sequence[tuple[int, int]],
    platforms: Sequence[str],
    formats: Sequence[str] = (),
) -> list[dict]:
    """Writes ``program_HxW.jax`` for every size, and the weights that they take.

    Args:
      segmenter: the model.
      output: folder for the files.
      sizes: (height, width) of the images.
      platforms: that the programs run on.
      formats: of FORMATS, written beside each program.

    Returns:
      A row per program: file, size, batch (0: any), bytes and platforms, the files of
      other formats, and the names of the arrays that the program takes, in their order.
    """
    leaves, tree = jax.tree_util.tree_flatten_with_path(segmenter.variables)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
    ]
    weights = {name: np.asarray(leaf) for name, (_, leaf) in zip(names, leaves)}
    predict = segmenter.predictor()
    predict = compilation.precision(segmenter.precision)(predict)

    def run(weights: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        variables = tree.unflatten([weights[name] for name in names])
        probabilities = predict(variables, images)
        return predictors.most_probable(probabilities), probabilities

    inputs, rows = [*sorted(weights), "images"], []  # dicts are flattened sorted
    for height, width in sorted(set(sizes), key=math.prod):
        cli.log(f"{height}x{width} for {', '.join(platforms)} ...")
        exported, batch = _export(
            run,
            weights,
            shape=(height, width, segmenter.info.channels),
            batch=segmenter.batch_size,
            platforms=platforms,
        )
        contents = {"jax": exported.serialize()}
        contents |= {suffix: FORMATS[suffix](exported) for suffix in formats}
        names_of_files = [f"program_{height}x{width}.{suffix}" for suffix in contents]
        for name, data in zip(names_of_files, contents.values()):
            with files.atomic_write(output / name) as partial:
                partial.write_bytes(data)
        rows.append(
            {
                "file": names_of_files[0],
                "other_files": names_of_files[1:],
                "height": height,
                "width": width,
                "batch": batch,
                "bytes": len(contents["jax"]),
                "platforms": list(exported.platforms),
                # A program lacks the arrays that it does not use.
                "arguments": [inputs[i] for i in exported.module_kept_var_idx],
            }
        )
    with (
        files.atomic_write(output / "weights.npz") as partial,
        open(partial, "wb") as file,
    ):
        np.savez(file, **weights)
    return rows


def _export(
    run: Callable,
    weights: dict[str, np.ndarray],
    *,
    shape: tuple[int, int, int],
    batch: int,
    platforms: Sequence[str],
) -> tuple[jax.export.Exported, int]:
    """The exported function and its batch size; 0: any."""
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


def write_loader(output: Path) -> None:
    """Writes ``load.py`` and the package by which ``jax.export`` reads programs."""
    shutil.copyfile(exported_loader.__file__, output / "load.py")
    package = importlib.metadata.distribution("flatbuffers")
    with (
        files.atomic_write(output / "flatbuffers.zip") as partial,
        zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive,
    ):
        for file in package.files:  # with its license
            if file.suffix != ".pyc" and ".." not in file.parts:
                archive.write(file.locate(), str(file))


def metadata(
    segmenter: inference.Segmenter, model_name: str, rows: Sequence[dict]
) -> dict[str, Any]:
    """What a user of the files must know."""
    info = segmenter.info
    channels, classes = info.channels, len(info.classes)
    label = np.dtype(predictors.label_type(classes)).name
    return {
        "model": model_name,
        "checkpoint_steps": segmenter.steps,
        "dataset": info.name,
        "classes": info.classes,
        "palette": np.asarray(info.palette).tolist(),
        "channels": channels,
        "resize": list(segmenter.resize) if any(segmenter.resize) else None,
        "value_range": (
            list(segmenter.value_range) if any(segmenter.value_range) else None
        ),
        "label_type": label,
        "input": {
            "weights": "dict of the arrays in weights.npz",
            "images": f"uint8 [batch, height, width, {channels}], "
            + {1: "gray", 3: "RGB"}.get(channels, "channels as in training")
            + ", 0..255 (of files: load.py applies value_range to their samples); "
            "normalized inside the program",
        },
        "outputs": [
            f"labels: {label} [batch, height, width]",
            f"probabilities: float32 [batch, height, width, {classes}]",
        ],
        "options": segmenter.options._asdict(),
        "precision": segmenter.precision,
        "programs": list(rows),
        "versions": provenance.versions(),
    }


def write_metadata(output: Path, facts: dict[str, Any]) -> None:
    """Writes ``metadata.json`` with checksums of the other files and of itself."""
    names = [n for row in facts["programs"] for n in (row["file"], *row["other_files"])]
    names += ["weights.npz", "flatbuffers.zip"]
    checksums = {name: _sha256((output / name).read_bytes()) for name in names}
    facts = json.loads(json.dumps(facts | {"sha256": checksums}))
    checksum = _sha256(json.dumps(facts, sort_keys=True).encode())
    files.write_json(output / "metadata.json", facts | {"checksum": checksum})


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
