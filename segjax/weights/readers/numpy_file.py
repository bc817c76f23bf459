"""NumPy's ``.npz``: a zip file of arrays by name. Pickled objects are not read."""

import zipfile
from pathlib import Path

import numpy as np

from segjax.errors import UserError


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a file by name: ``arr_0``, ``arr_1``, .. of ``np.savez(path, ..)``.

    Raises:
      UserError: a damaged file, or one with something else than arrays of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} not found")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # Compressed arrays of zeros could take any memory.
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(
                    f"{path} is refused: its arrays are larger than the file, and so "
                    "they are compressed; write it by np.savez"
                )
            arrays = {}
            for entry in entries:
                with archive.open(entry) as file:
                    array = np.lib.format.read_array(file, allow_pickle=False)
                arrays[entry.filename.removesuffix(".npy")] = array
    except UserError:
        raise
    except Exception as error:  # a damaged file can end in almost anything
        reason = " ".join(str(error).split())[:150] or type(error).__name__
        if "allow_pickle" in reason:
            reason = "it holds Python objects"
        raise UserError(
            f"{path} cannot be read as a file of np.savez ({reason}); write or "
            "download it again"
        ) from error
    if not arrays:
        raise UserError(f"{path} holds no arrays")
    return arrays
