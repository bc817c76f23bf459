"""PyTorch's ``.pth`` and ``.pt``, through PyTorch's own restricted loader only.

These files are pickles, which can run any code when they are loaded.  Nothing here
unpickles: ``torch.load(weights_only=True)`` builds tensors and plain containers and
refuses the rest, and without PyTorch the file is not read.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segjax.errors import UserError


def read(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict by name, for example ``layer1.0.conv1.weight``.

    A training checkpoint may hold it under ``state_dict`` or ``model``; the prefix
    ``module.`` of DataParallel is cut off.

    Raises:
      UserError: no PyTorch, a damaged file, one with code in it, or no tensors.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} not found")
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{path}: PyTorch files are read by PyTorch, which is not installed; pip "
            "install torch, or convert the file to .safetensors where it is"
        ) from error
    try:
        # A list of the allowed, of the type of the tensors' containers.
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError, ..
        raise UserError(_reason(path, str(error))) from error
    for key in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        raise UserError(f"{path} holds no state dict (a dict of tensors)")
    arrays = {}
    for name, value in loaded.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(
                f"{path}: {name} is a {type(value).__name__}, expected a state dict of "
                "tensors only"
            )
        if value.dtype == torch.bfloat16:  # numpy has no such type
            value = value.float()
        arrays[str(name).removeprefix("module.")] = value.detach().numpy()
    return arrays


def _reason(path: str | Path, message: str) -> str:
    # PyTorch's own message recommends to load the file without the restrictions.
    if code := re.search(r"GLOBAL ([\w.]+)", message):
        return (
            f"{path} is refused: it holds Python code ({code[1]}), not only tensors; "
            "loading it could run anything"
        )
    return (
        f"{path} cannot be read by torch.load(weights_only=True) "
        f"({' '.join(message.split())[:150]}); it is damaged or holds more than tensors"
    )
