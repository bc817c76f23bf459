"""Runs what experiments.export wrote, with jax and numpy only.

predict = load("FOLDER")
labels = predict([image, ..])  # uint8, uint16 [H, W, C] as of files -> ids [H, W]
scores = predict([image, ..], probabilities=True)  # -> float32 [H, W, K]
"""

import hashlib
import io
import json
import sys
from pathlib import Path

import jax
import jax.export
import numpy as np


def load(folder=Path(__file__).parent, batch=8):
    folder, programs = Path(folder), {}
    facts = json.loads((folder / "metadata.json").read_text())
    checksum = facts.pop("checksum")
    if checksum != sha256(json.dumps(facts, sort_keys=True).encode()):
        raise ValueError(f"{folder / 'metadata.json'} is damaged: export again")

    def read(name):
        data = (folder / name).read_bytes()
        if sha256(data) != facts["sha256"][name]:
            raise ValueError(f"{folder / name} is damaged: export again")
        return data

    read("flatbuffers.zip")
    sys.path.append(str(folder / "flatbuffers.zip"))  # jax.export reads programs by it
    arrays = np.load(io.BytesIO(read("weights.npz")))
    weights = {name: jax.device_put(array) for name, array in arrays.items()}
    for row in facts["programs"]:  # the smallest first; batch 0: any number of images
        program = jax.export.deserialize(bytearray(read(row["file"])))
        programs[row["height"], row["width"]] = jax.jit(program.call), row["batch"]

    def prepare(image):
        """The image as a program takes it: (size of the program, image)."""
        known = image.dtype in (np.uint8, np.uint16)
        if not known or image.shape[2:] != (facts["channels"],):
            raise ValueError(f"expected uint8 or uint16 [H, W, {facts['channels']}]")
        if not image.size:
            raise ValueError(f"expected an image, found {image.shape}, which is empty")
        if image.dtype == np.uint16 or facts["value_range"]:
            image = stretch(image, *(facts["value_range"] or (0, 2**16 - 1)))
        if facts["resize"]:  # as the images of the training
            return tuple(facts["resize"]), resize_area(image, facts["resize"])
        for size in programs:
            if size[0] >= image.shape[0] and size[1] >= image.shape[1]:
                return size, image
        raise ValueError(f"{image.shape} is larger than all of {list(programs)}")

    def predict(images, probabilities=False):
        results, prepared = [None] * len(images), [prepare(image) for image in images]
        scores = probabilities or bool(facts["resize"])
        for size, (program, fixed) in programs.items():
            indices = [i for i, (other, _) in enumerate(prepared) if other == size]
            rows = fixed or min(batch, max(len(indices), 1))
            for part in (indices[k : k + rows] for k in range(0, len(indices), rows)):
                padded = np.zeros((rows, *size, facts["channels"]), np.uint8)
                for row, index in zip(padded, part):  # mirrored to the program's size
                    missing = np.subtract(row.shape, prepared[index][1].shape)
                    around = [(0, n) for n in missing]
                    row[:] = np.pad(prepared[index][1], around, "reflect")
                outputs = np.asarray(program(weights, padded)[scores])
                for row, index in zip(outputs, part):
                    result = row[tuple(map(slice, prepared[index][1].shape[:2]))]
                    if facts["resize"]:
                        result = resize_bilinear(result, images[index].shape)
                        if not probabilities:
                            result = result.argmax(-1).astype(facts["label_type"])
                    results[index] = result
        return results

    return predict


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def stretch(image, low, high):
    """The values low..high as uint8 0..255, others cut off, halves rounded up."""
    doubled = 510 * (np.clip(np.int64(image), low, high) - low) + high - low
    return np.uint8(doubled // (2 * (high - low)))


def resize_area(image, size):
    """uint8 [H, W, C] -> [h, w, C], averaged over areas (INTER_AREA of OpenCV)."""
    if image.shape[:2] == tuple(size):
        return image
    shrinks = all(new <= old for new, old in zip(size, image.shape))
    rows, columns = (taps(*n, shrinks) for n in zip(image.shape, size))
    mean = np.matmul(columns, np.tensordot(rows, np.float64(image), 1))
    halved = image.shape[:2] == tuple(2 * n for n in size)  # there 0.5 is rounded up
    return np.uint8(np.floor(mean + 0.5) if halved else np.rint(mean))


def taps(old, new, shrinks):
    """Weights [new, old] of the pixels of an axis: overlaps, or of two neighbors."""
    start, scale = np.arange(new) * (old / new), old / new
    if shrinks:
        pixels = np.arange(old)
        ends = np.minimum(start[:, None] + scale, pixels + 1)
        return np.maximum(ends - np.maximum(start[:, None], pixels), 0) / scale
    first = np.floor(start).astype(int)
    share = np.maximum(np.arange(new) + 1 - (first + 1) / scale, 0) % 1
    return between(first, share, old)


def resize_bilinear(scores, size):
    """float32 [h, w, K] -> [H, W, K], between half-pixel centers."""
    weights = []
    for old, new in zip(scores.shape[:2], size[:2]):
        center = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
        weights.append(between(np.floor(center).astype(int), center % 1, old))
    rows, columns = weights
    return np.matmul(np.float32(columns), np.tensordot(np.float32(rows), scores, 1))


def between(first, share, old):
    """Weights [new, old] of the pixels ``first`` and the ones after them."""
    weights, rows = np.zeros((len(first), old)), np.arange(len(first))
    weights[rows, first] = 1 - share
    weights[rows, np.minimum(first + 1, old - 1)] += share
    return weights
