"""Keras' HDF5 weight files, as published for Keras 1 and 2."""

import re
from pathlib import Path

import numpy as np

from segjax.errors import UserError

# End of an array's name in the file -> what it is called here. In Keras 1 the variance
# was called "running_std".
_KINDS = {
    "kernel": "kernel",
    "W": "kernel",
    "bias": "bias",
    "b": "bias",
    "gamma": "gamma",
    "beta": "beta",
    "moving_mean": "moving_mean",
    "running_mean": "moving_mean",
    "moving_variance": "moving_variance",
    "running_std": "moving_variance",
}


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file as ``{"LAYER/KIND": array}``, ``conv1_conv/kernel`` say.

    KIND is kernel, bias, gamma, beta, moving_mean or moving_variance, whatever Keras
    called it at the time. Convolution kernels are [h, w, in, out], dense ones [in, out]
    where ``in`` runs over h, w, channels.

    Raises:
      UserError: no h5py, or not such a file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} not found")
    try:
        import h5py
    except ImportError as error:
        raise UserError(
            f"{path}: Keras files need h5py; pip install 'segjax[weights]'"
        ) from error
    try:
        with h5py.File(path, "r") as file:
            # A whole model was saved, or its weights only.
            return _arrays(path, file.get("model_weights", file))
    except UserError:
        raise
    except Exception as error:  # h5py has many for damage and for another structure
        raise UserError(
            f"{path} is not a readable HDF5 file of Keras weights "
            f"({' '.join(str(error).split())[:150]}); download it again"
        ) from error


def _arrays(path: Path, group) -> dict[str, np.ndarray]:
    if "layer_names" not in group.attrs:
        raise UserError(
            f"{path} has no layer_names: it is not in the format of Keras 1 and 2 "
            "(.h5) in which the published weights are"
        )
    arrays = {}
    for layer in map(_text, group.attrs["layer_names"]):
        for name in map(_text, group[layer].attrs["weight_names"]):
            # "conv1_conv/kernel:0", or "block1_conv1_W_1:0" in older files.
            match = re.fullmatch(
                rf"(?:.*[/_])?({'|'.join(_KINDS)})(?:_\d+)?(?::0)?", name
            )
            if not match:
                raise UserError(
                    f"{path}: layer {layer!r} has an unknown array {name!r}"
                )
            target = f"{layer}/{_KINDS[match[1]]}"
            if target in arrays:
                raise UserError(f"{path}: layer {layer!r} has two arrays like {name!r}")
            array = group[layer][name]
            # A few bytes of HDF5 can announce an array of any size.
            if array.nbytes > path.stat().st_size:
                raise ValueError(f"{name} announces {array.nbytes:,} bytes")
            arrays[target] = array[()]
    return arrays


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
