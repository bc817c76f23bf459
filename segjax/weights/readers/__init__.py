"""Readers of weight files, one module per format."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from segjax.errors import UserError
from segjax.weights.readers import (
    caffe,
    keras,
    numpy_file,
    safetensors_file,
    torch_file,
)

READERS: dict[str, Callable[[Path], dict[str, np.ndarray]]] = {
    ".caffemodel": caffe.read,
    ".pth": torch_file.read,
    ".pt": torch_file.read,
    ".h5": keras.read,
    ".hdf5": keras.read,
    ".npz": numpy_file.read,
    ".safetensors": lambda path: safetensors_file.read(path)[0],
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """All arrays of a published file, by the names they have there.

    Caffe: ``LAYER[INDEX]``; PyTorch: the keys of the state dict; Keras: ``LAYER/KIND``;
    NumPy: ``arr_INDEX``; safetensors: as they are, so PyTorch's if the file was made
    from a state dict.

    Raises:
      UserError: unknown kind of file, not readable, or its reader is not installed;
        something in it that is no array of numbers.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UserError(
            f"{path}: unknown kind of weight file {path.suffix!r}; known: "
            f"{', '.join(READERS)}"
        )
    arrays = READERS[path.suffix](path)
    for name, array in arrays.items():
        if not name.isprintable():
            raise UserError(f"{path}: the name {name!r} of an array is no plain text")
        if array.dtype.name == "bfloat16":
            arrays[name] = array.astype(np.float32)
        elif array.dtype.kind not in "fiub":
            raise UserError(f"{path}: {name} holds {array.dtype}, expected numbers")
    return arrays
