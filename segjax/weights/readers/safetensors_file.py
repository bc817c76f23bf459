"""The ``.safetensors`` format: named arrays and a dict of strings, no code."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segjax import files
from segjax.errors import UserError


def _import(path: str | Path):
    try:
        import safetensors
        import safetensors.numpy
    except ImportError as error:
        raise UserError(
            f"{path}: this format needs safetensors; pip install 'segjax[weights]'"
        ) from error
    return safetensors


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays by name, and the metadata.

    Raises:
      UserError: no safetensors package, or a damaged file.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} not found")
    safetensors = _import(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            # Not file.items(): there are no such methods in older versions.
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return arrays, dict(file.metadata() or {})
    except Exception as error:  # an unknown type, or more dimensions than NumPy has
        raise UserError(
            f"{path} is not a readable safetensors file "
            f"({' '.join(str(error).split())[:150]}); write or download it again"
        ) from error


def write(
    path: str | Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes the file under a temporary name and renames it when it is complete.

    Raises:
      UserError: no safetensors package, or the file cannot be written.
    """
    safetensors = _import(path)
    path = Path(path)
    # Views of other memory orders would be written as they lie in memory.
    whole = {
        name: np.array(array, order="C", copy=None) for name, array in arrays.items()
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error
    try:
        with files.atomic_write(path) as partial:
            safetensors.numpy.save_file(whole, partial, dict(metadata))
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(f"cannot write {path}: {error}") from error
