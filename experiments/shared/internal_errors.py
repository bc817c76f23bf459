"""Internal errors of XLA: whether starting again may help.

A failed chip raises them, and so do faults of the compiler or of a program, which come
back at every start.  Their texts do not tell.  What does is that they come back: the
same batches follow the same checkpoint.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import jax

from segjax import checkpoint_scores, files
from segjax import workdir as workdir_lib
from segjax.errors import UserError

STARTS = 3  # a chip that is lost twice is not a fault of the program yet
_STATUS = "INTERNAL"


@contextlib.contextmanager
def counted(workdir: Path) -> Iterator[None]:
    """Counts the starts of a run that end with the same internal error.

    Raises:
      RuntimeError: it is the third one in a row, and no checkpoint was saved in
        between, so that no restart will cure it.  Each process counts its own.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not str(error).startswith(_STATUS):
            raise
        starts = _count(workdir, str(error))
        if starts < STARTS:
            raise
        raise RuntimeError(
            f"{workdir}: {starts} starts in a row have ended with the same internal "
            "error of XLA, without a checkpoint in between: another restart will not "
            "help; try another version of jax, another device or another config"
        ) from error


def _count(workdir: Path, text: str) -> int:
    """How many starts in a row have failed with this text, this one included."""
    # Addresses differ from start to start.
    text = re.sub(r"0x[0-9a-fA-F]+", "0x", text.splitlines()[0])
    steps = checkpoint_scores.steps(workdir / workdir_lib.CHECKPOINTS)
    now = {"step": max(steps, default=0), "error": text}
    path = workdir / workdir_lib.INTERNAL_ERROR.format(process=jax.process_index())
    try:
        before = files.read_json(path, "an internal error of XLA")
    except UserError:  # none yet
        before = {}
    same = all(before.get(name) == value for name, value in now.items())
    starts = before.get("starts", 0) + 1 if same else 1
    with contextlib.suppress(OSError, UserError):  # the first error says more
        files.write_json(path, now | {"starts": starts})
    return starts
