"""Runs what experiments.export wrote, with jax and numpy only.

predict = load("FOLDER")
labels = predict([image, ..])  # uint8 [H, W, C], RGB 0..255 -> class ids [H, W]
scores = predict([image, ..], probabilities=True)  # -> float32 [H, W, K]
"""

import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np


def load(folder=Path(__file__).parent, batch=8):
    folder, programs = Path(folder), {}
    sys.path.append(str(folder / "flatbuffers.zip"))  # jax.export reads programs by it
    facts = json.loads((folder / "metadata.json").read_text())
    weights = {n: jax.device_put(x) for n, x in np.load(folder / "weights.npz").items()}
    for row in facts["programs"]:  # the smallest first; batch 0: any number of images
        program = jax.export.deserialize(bytearray((folder / row["file"]).read_bytes()))
        programs[row["height"], row["width"]] = jax.jit(program.call), row["batch"]

    def size_for(image):
        if image.dtype != np.uint8 or image.shape[2:] != (facts["channels"],):
            raise ValueError(f"expected uint8 [H, W, {facts['channels']}]")
        for size in programs:
            if size[0] >= image.shape[0] and size[1] >= image.shape[1]:
                return size
        raise ValueError(f"{image.shape} is larger than all of {list(programs)}")

    def predict(images, probabilities=False):
        found, sizes = [None] * len(images), [size_for(image) for image in images]
        for size, (program, fixed) in programs.items():
            indices = [i for i, other in enumerate(sizes) if other == size]
            rows = fixed or min(batch, max(len(indices), 1))
            for part in (indices[k : k + rows] for k in range(0, len(indices), rows)):
                padded = np.zeros((rows, *size, facts["channels"]), np.uint8)
                for row, index in zip(padded, part):  # mirrored to the program's size
                    rest = np.subtract(row.shape, images[index].shape)
                    row[:] = np.pad(images[index], [(0, n) for n in rest], "reflect")
                result = np.asarray(program(weights, padded)[probabilities])
                for row, index in zip(result, part):
                    found[index] = row[tuple(map(slice, images[index].shape[:2]))]
        return found

    return predict
