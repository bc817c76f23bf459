"""How programs are compiled: the cache on disk, a counter, and the precision."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
from jax import monitoring

from segjax import files

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_seconds: list[float] = []


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
    if event == _COMPILE_EVENT:
        _seconds.append(duration_secs)


monitoring.register_event_duration_secs_listener(_listen)


def count() -> int:
    """Programs compiled (or fetched from the cache) by this process so far."""
    return len(_seconds)


def seconds() -> float:
    """Seconds that these took."""
    return sum(_seconds)


def use_cache(folder: str | Path) -> None:
    """Keeps compiled programs in ``folder``, for later runs on the same hardware."""
    folder = files.path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# Precision of products of float32 numbers: of the device's choice, or at least this.
PRECISIONS = ("default", "tensorfloat32", "float32")


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Everything that is traced inside multiplies float32 numbers at this precision.

    Also a decorator, for functions that are jitted: ``jit(precision(name)(f))``.

    Args:
      name: one of PRECISIONS, ``config.precision``. "default" changes nothing: TPUs
        then multiply in bfloat16, and recent GPUs in TensorFloat-32.
    """
    if name == "default":
        yield
    else:
        with jax.default_matmul_precision(name):
            yield
