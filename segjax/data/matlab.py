"""Label maps that are stored as MATLAB files."""

from pathlib import Path

import numpy as np

from segjax.errors import UserError


def read_matlab(path: Path, variable: str, field: str = "", *, name: str) -> np.ndarray:
    """Reads a map from a MATLAB file of version 7.2 or earlier.

    Args:
      path: of the file.
      variable: its name in the file.
      field: of the variable, if that is a struct.
      name: of the data set, for messages.

    Returns:
      Integers [H, W], 0 or more.

    Raises:
      UserError: the file is missing or damaged, or holds no such map.
    """
    from scipy.io import loadmat  # takes a while, and few programs need it

    full = f"{variable}.{field}" if field else variable
    try:
        found = loadmat(path, variable_names=[variable])
    except Exception as error:  # scipy has many for damage
        reason = (str(error).split("\n")[0] or type(error).__name__)[:120]
        raise UserError(
            f"{name}: {path} cannot be read ({reason}); expected a MATLAB file that "
            f"holds {full}: load it again"
        ) from error
    try:
        value = found[variable][field][0, 0] if field else found[variable]
        pixels = np.asarray(value)
        whole = pixels.astype(np.int32)
        if pixels.ndim != 2 or not pixels.size or (whole != pixels).any():
            raise ValueError(full)
        if whole.min() < 0:
            raise ValueError(full)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise UserError(
            f"{name}: {path} holds no map of ids {full}; expected the MATLAB file of "
            f"the download"
        ) from error
    return whole
