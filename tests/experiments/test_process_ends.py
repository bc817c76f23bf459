"""How programs of one and of several processes end, and with which exit code."""

import contextlib
import signal
import subprocess
import sys
from types import SimpleNamespace

import kill
import pytest
from test_resume import free_port

from experiments import evaluate, predict, recalibrate
from experiments.shared import cli

LOSING = """\
import sys
import jax
from absl import flags
from experiments.shared import cli
def main(argv):
    raise {error}
cli.run(main)
"""


@pytest.mark.parametrize(
    "error, code",
    [
        ("jax.errors.JaxRuntimeError('UNAVAILABLE: connection lost')", 69),
        ("jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: out of memory')", 1),
        ("OSError(5, 'Input/output error')", 69),
        ("ImportError('no module')", 1),
    ],
)
def test_programs_tell_what_a_restart_may_cure_by_their_code(error, code):
    command = [sys.executable, "-c", LOSING.format(error=error)]
    done = subprocess.run(
        command, cwd=kill.ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code and "Traceback" in done.stderr


ALONE = """\
import os, signal, sys
from experiments.shared import cli
cli._JOIN_SECONDS, cli._REMIND_SECONDS = 2, 1
def main(argv):
    cli.start()
    os.kill(os.getpid(), signal.SIGTERM)
cli.run(main)
"""


@pytest.mark.parametrize("processes, code", [(2, 69), (1, -signal.SIGTERM)])
def test_a_host_that_never_comes_is_told_and_sigterm_ends_what_does_not_train(
    processes, code
):
    command = [sys.executable, "-c", ALONE, "--compilation_cache=", "--process_id=0"]
    command += [f"--coordinator=localhost:{free_port()}"]
    done = subprocess.run(
        [*command, f"--num_processes={processes}"],
        cwd=kill.ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=kill.environment(1),
    )
    assert done.returncode == code
    lines = done.stderr.splitlines()
    if processes == 2:
        assert lines[0] == "waiting for the other processes for 1 s ..."
        assert lines[1].startswith("error: after 2 s some processes of this job are")
        assert len(lines) == 2


def test_nobody_is_waited_for_after_ctrl_c_and_the_last_process_always(monkeypatch):
    ended = []
    monkeypatch.setattr(cli.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(cli.os, "_exit", ended.append)
    monkeypatch.setattr(cli.sys, "exit", ended.append)

    def interrupted(argv):
        raise KeyboardInterrupt

    cli._guarded(interrupted, [])
    assert ended[0] == 130
    given = {}
    monkeypatch.setattr(
        cli.jax.distributed, "initialize", lambda *_, **values: given.update(values)
    )
    cli._join()
    assert given["shutdown_timeout_seconds"] > 24 * 3600


@pytest.mark.parametrize(
    "trains, processes, ends", [(True, 2, 0), (True, 1, 1), (False, 2, 1)]
)
def test_sigterm_is_left_to_several_processes_that_train(
    trains, processes, ends, monkeypatch
):
    calls = []
    monkeypatch.setattr(cli.jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(cli.jax, "process_count", lambda: processes)
    monkeypatch.setattr(cli.signal, "signal", lambda *call: calls.append(call))
    cli._set_sigterm(trains)
    assert calls == ends * [(signal.SIGTERM, signal.SIG_DFL)]


@pytest.mark.parametrize("module", [evaluate, predict, recalibrate])
def test_a_process_that_dies_ends_the_others(module, tmp_path, monkeypatch):
    """In one sentence, and not by the runtime after its heartbeats are missed."""
    watched = []

    @contextlib.contextmanager
    def peers(exit_code):
        watched.append(exit_code)
        yield

    def work(*_, **__):
        raise RuntimeError(f"watched {watched}")

    values = dict.fromkeys(
        [
            "predictions",
            "split",
            "output",
            "trimap",
            "metrics",
            "worst",
            "allow_missing",
            "config",
            "checkpoint",
            "crf",
            "stages",
            "outputs",
            "overwrite",
            "submission",
            "ensemble",
            "batches",
        ],
        "",
    )
    values |= {"padding": 0.1, "max_pixels": 10, "workdir": str(tmp_path)}
    given = type("Flags", (), {"FLAGS": SimpleNamespace(**values)})
    monkeypatch.setattr(module, "flags", given)
    monkeypatch.setattr(module.predict_flags, "options", lambda *_: None)
    monkeypatch.setattr(module.predict_flags, "ensemble", lambda *_: ())
    monkeypatch.setattr(module.cli, "start", lambda: None)
    monkeypatch.setattr(module, "Peers", peers)
    monkeypatch.setattr(module, module.__name__.rpartition(".")[2], work)
    with pytest.raises(RuntimeError, match=r"watched \[69\]"):
        module.main(["program", "a.png"])
