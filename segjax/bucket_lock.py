"""Which process trains in a workdir of a bucket.

A bucket has no lock that ends with the process that holds it, and processes of pods are
killed without a word.  So the newest start has the run: it writes its name into the
object ``lock``, and an older one that is still at work finds another name there before
it saves its next checkpoint, and ends.  Nobody has to wait for a lock of the dead.
"""

import contextlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from segjax import buckets, files
from segjax.errors import Unavailable, UserError

_log = logging.getLogger(__name__)

SILENT_SECONDS = 900
"""A process that has logged nothing for so long is taken to be dead."""


@contextlib.contextmanager
def hold(lock: Path) -> Iterator[Callable[[], None]]:
    """Takes a run over; yields what raises UserError once another start has done so.

    Args:
      lock: the object that names the process.

    Raises:
      UserError: the bucket cannot be written to.
    """
    name = f"process {os.getpid()} on {socket.gethostname()}"
    own = f"{name} ({uuid.uuid4().hex[:12]})\n"
    if before := _holder(lock):
        _log.warning(
            "note: %s has trained in %s and did not end by itself; if it still runs, "
            "it stops before its next checkpoint",
            *(before.partition(" (")[0], lock.parent),
        )
    files.write_text(lock, own)

    def check() -> None:
        now = _holder(lock)
        if now != own:
            other = now.partition(" (")[0] or "another process"
            raise UserError(
                f"--workdir {lock.parent}: {other} has been started there and "
                "continues from the last checkpoint: this one stops"
            )

    def release() -> None:
        if _holder(lock) == own:
            buckets.remove(lock)

    try:
        yield check
    except Unavailable:
        raise  # it would not answer now, either
    except BaseException:
        with contextlib.suppress(UserError):  # the first error says more
            release()
        raise
    release()


def is_held(lock: Path) -> bool:
    """Whether a process holds the run and has logged something recently."""
    if not lock.exists():
        return False
    times = [
        files.modified(path)
        for path in (lock, lock.with_name("metrics.jsonl"))
        if path.exists()
    ]
    return max(times) > time.time() - SILENT_SECONDS


def _holder(lock: Path) -> str:
    """What the object says; "" if there is none."""
    try:
        return buckets.read_bytes(lock).decode(errors="replace")
    except FileNotFoundError:
        return ""
