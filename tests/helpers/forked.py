"""Programs in forks of one process that has imported what they need.

A Python process that imports JAX, Orbax and Grain takes 5 CPU seconds before it does
anything.  Here the fork server of the standard library does it once per test process.
Nothing is computed there, so that every fork may choose its number of devices.
"""

import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import jax

ROOT = Path(__file__).parents[2]
IMPORTED = [
    "experiments.shared.training_run",
    "grain",
    "orbax.checkpoint",
    "segjax.viz",
    "segjax.writer",
]


def _run(argv: list[str], env: dict[str, str], out: str, err: str) -> None:
    """In the fork: runs a module or a piece of code as Python itself would."""
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.path[:0] = [] if str(ROOT) in sys.path else [str(ROOT)]
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    signal.signal(signal.SIGINT, signal.default_int_handler)
    kind, what, *rest = argv
    code = 0
    try:
        if kind == "-m":
            sys.argv = [what, *rest]
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *rest]
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if code == 1 and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()  # as at the end of a whole Python process
    os._exit(code)  # tidying up would take longer than all else


@functools.cache
def _server() -> multiprocessing.context.BaseContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    # Python 3.12 warns of threads at a fork; those of the imports only wait for work.
    extra = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    with mock.patch.dict(os.environ, extra):
        forkserver.ensure_running()
    return context


class Program:
    """A started program, with the part of subprocess.Popen that tests use."""

    def __init__(self, argv: list[str], env: dict[str, str]):
        self._files = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115
        self._process = _server().Process(
            target=_run, args=(argv, env, *(file.name for file in self._files))
        )
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float = 300) -> tuple[str, str]:
        """Waits for the end; what was written to stdout and stderr."""
        self._process.join(timeout)
        if self.returncode is None:
            self.kill()
            self._process.join()
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        texts = [Path(file.name).read_text() for file in self._files]
        return texts[0], texts[1]


def run(argv: list[str], env: dict[str, str], timeout: float = 300):
    """Runs a program; its exit code, stdout and stderr."""
    program = Program(argv, env)
    out, err = program.communicate(timeout)
    return program.returncode, out, err
