"""Four fake CPU devices, quick compilation, and warnings are errors (pyproject.toml).

Compiling takes most of the time of these tests, and what is compiled runs for
milliseconds.  So XLA optimizes little, unless a test or a file (``pytestmark = ..``)
asks for what users get with ``pytest.mark.optimized``.  Compiled functions are kept
between runs, in ``$SEGJAX_TEST_CACHE`` or ``~/.cache/segjax/tests``; "" keeps none.
Both are environment variables: the programs that tests start inherit them.
"""

import hashlib
import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from absl import flags

CACHE_BYTES = 2 << 30  # a larger cache holds mostly what no test needs any more

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
flags.FLAGS.mark_as_parsed()  # Grain's worker processes read a flag of theirs


def cache_folder() -> Path | None:
    """Where compiled functions are kept: compiled code fits one kind of processor."""
    try:
        text = os.environ.get("SEGJAX_TEST_CACHE", "~/.cache/segjax/tests")
        if not text:
            return None
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        kind = [s for s in lines if s.startswith(("flags", "Features", "model name"))]
        kind = platform.machine() + "".join(sorted(set(kind)))
        digest = hashlib.sha256(kind.encode()).hexdigest()[:12]
        parent = Path(text).expanduser()
        folder = parent / f"jaxlib-{metadata.version('jaxlib')}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder if os.access(folder, os.W_OK) else None
    except (OSError, RuntimeError):  # no home, or a read-only one
        return None


# The processes of pytest-xdist get it from the first one.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ and (found := cache_folder()):
    if sum(path.stat().st_size for path in found.iterdir()) > CACHE_BYTES:
        shutil.rmtree(found)
        found.mkdir()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(found)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"


@pytest.fixture(scope="module", autouse=True)
def compiler_settings(request):
    """Every file starts with these settings, whatever the one before it set."""
    import jax

    optimized = request.node.get_closest_marker("optimized") is not None
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    settings = {
        "jax_disable_most_optimizations": not optimized,
        "jax_compilation_cache_dir": folder,
        "jax_enable_compilation_cache": True,
    }
    if folder:
        settings["jax_persistent_cache_min_compile_time_secs"] = 0.0
        settings["jax_persistent_cache_min_entry_size_bytes"] = 0
    for name, value in settings.items():
        jax.config.update(name, value)
    if optimized:
        jax.clear_caches()  # what earlier files compiled is used again otherwise


@pytest.fixture(autouse=True)
def optimized_test(request, compiler_settings):
    """The mark on a single test of a file."""
    import jax

    if not any(mark.name == "optimized" for mark in request.node.own_markers):
        yield
        return
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
