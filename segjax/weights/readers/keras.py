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
    if "th_kernels" in path.name or "th_dim_ordering" in path.name:
        raise UserError(
            f"{path}: kernels of Theano are turned around, which the file does not "
            "tell; take the file whose name ends in tf_kernels"
        )
    try:
        with h5py.File(path, "r") as file:
            # A whole model was saved, or its weights only.
            nested = file.get("model_weights", getlink=True) is not None
            return _arrays(path, _member(file, "model_weights") if nested else file)
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
    left = path.stat().st_size
    for layer in map(_text, group.attrs["layer_names"]):
        members = _member(group, layer)
        for name in map(_text, members.attrs["weight_names"]):
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
            array = _member(members, name)
            # Its bytes may be those of another file.
            if array.external or array.is_virtual:
                raise UserError(f"{path} is refused: {name!r} is stored in other files")
            # A few bytes of HDF5 can announce an array of any size, and any number of
            # names can stand for one array.
            left -= array.nbytes
            if left < 0:
                raise ValueError(f"{name} announces {array.nbytes:,} bytes")
            arrays[target] = array[()]
    return arrays


def _member(group, name: str):
    """What lies at a path in a group, without following links to other places.

    Raises:
      UserError: a soft or an external link.
    """
    import h5py

    for part in name.split("/"):
        if not isinstance(group.get(part, getlink=True), h5py.HardLink):
            raise UserError(
                f"{group.file.filename} is refused: {name!r} is missing or is a link"
            )
        group = group[part]
    return group


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)
