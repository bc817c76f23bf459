"""Whole training runs: killed, stopped, damaged, and on several processes."""

import contextlib
import random
import signal
import socket
import time

import kill
import numpy as np
import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


STEPS = 12
ARGS = {"total_steps": STEPS, "eval_every": 0, "eval_images": 0}
ARGS |= {"save_every": 4, "keep": 3}


@pytest.fixture(scope="module")
def whole(folder):
    """A run of one process with one device."""
    log = kill.finish(kill.fork(kill.command(folder / "whole", folder, **ARGS)))
    assert log.startswith("process 0/1, 1 of 1 devices")
    return folder / "whole"


def test_killed_at_random_moments_ends_with_the_same_bits(folder):
    kill.kill_test(folder / "kills", kills=2, steps=40)


def wait_for_rows(workdir, count):
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) >= count:
            return
        time.sleep(0.02)
    raise TimeoutError


def test_sigterm_saves_and_exits_with_75(folder, whole):
    """Stopped between two regular saves; continued with another number of threads."""
    args = ARGS | {"save_every": 1000, "total_steps": 400}
    stopped = folder / "stopped"
    process = kill.fork(kill.command(stopped, folder, **args))
    wait_for_rows(stopped, 3)
    process.send_signal(signal.SIGTERM)
    log = kill.finish(process, code=75)
    saved = [int(p.name) for p in (stopped / "checkpoints").iterdir()]
    assert len(saved) == 1 and f"saved at step {saved[0]}" in log
    step = saved[0] + 8
    args |= {"total_steps": step, "threads": 3}
    log = kill.finish(kill.fork(kill.command(stopped, folder, **args)))
    assert f"continuing from step {saved[0]} of {step}" in log
    # The same as in the other run, as far as both went (the schedule differs later).
    assert sorted(kill.losses(stopped)) == list(range(1, step + 1))
    assert kill.losses(stopped)[1] == kill.losses(whole)[1]


def test_truncated_checkpoint_falls_back_to_the_same_bits(folder, whole):
    run = folder / "truncated"
    kill.finish(kill.fork(kill.command(run, folder, **ARGS)))
    for data in (run / "checkpoints" / str(STEPS)).rglob("d/*"):
        data.write_bytes(data.read_bytes()[: data.stat().st_size // 2])
    log = kill.finish(kill.fork(kill.command(run, folder, **ARGS)))
    assert f"checkpoints/{STEPS} is damaged" in log
    assert f"continuing from step {STEPS - 4} of {STEPS}" in log
    kill.assert_same_run(whole, run, STEPS)


def free_port():
    """Below the ports that the kernel hands out by itself, so that it stays free."""
    for port in random.SystemRandom().sample(range(20000, 32000), 100):
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("localhost", port))
            return port
    raise OSError("no free port")


def start_two(workdir, folder, **args):
    """Two processes of two devices each."""
    flags = [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    command = kill.command(workdir, folder, **args)
    return [
        kill.fork([*command, *flags, f"--process_id={i}"], devices=2) for i in (0, 1)
    ]


def close(a, b):
    """The same training up to the order of float32 sums: 1e-5 relative in the loss."""
    a, b = kill.losses(a), kill.losses(b)
    assert a.keys() == b.keys()
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5)


def test_processes_and_devices_give_the_same_training(folder, whole):
    four, two = folder / "four", folder / "two"
    kill.finish(kill.fork(kill.command(four, folder, **ARGS), devices=4))
    processes = start_two(two, folder, **ARGS)
    logs = [kill.finish(process) for process in processes]
    assert "process 0/2, 2 of 4 devices" in logs[0]
    assert "process 1/2, 2 of 4 devices" in logs[1]
    assert "done" in logs[0] and "done" not in logs[1]
    close(whole, four)
    close(whole, two)
    for other in (four, two):
        # Sums in another order differ by 1e-7, until the sign of a single activation
        # differs for once (after step 8 here): then gradients do by some 1e-4.
        for step, rtol, atol in ((4, 1e-4, 1e-5), (STEPS, 1e-2, 1e-3)):
            a, b = kill.final_arrays(whole, step), kill.final_arrays(other, step)
            for name in a:
                np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol)


def test_sigterm_to_one_process_saves_on_both_and_restores_on_another_topology(
    folder, whole
):
    run = folder / "moved"
    shares = ARGS | {"state_sharding": "parameters", "model.widths": "4,24"}
    processes = start_two(run, folder, **(shares | {"total_steps": 100000}))
    wait_for_rows(run, 3)
    processes[1].send_signal(signal.SIGTERM)
    for process in processes:
        kill.finish(process, code=75)
    step = max(int(path.name) for path in (run / "checkpoints").iterdir())
    # No process had the whole kernel of 24 x 24 channels.
    assert '\\"data\\"' in (run / f"checkpoints/{step}/model/_sharding").read_text()
    args = shares | {"total_steps": step + 4, "state_sharding": "replicated"}
    log = kill.finish(kill.fork(kill.command(run, folder, **args)))
    assert f"continuing from step {step}" in log
    assert sorted(kill.losses(run)) == list(range(1, step + 5))


def test_when_one_process_of_two_is_killed_the_other_ends_and_says_so(folder):
    """Within seconds, in one sentence; started again, both end with the same bits."""
    run, whole = folder / "killed", folder / "not_killed"
    args = ARGS | {"optim.schedule": "constant", "total_steps": 100000}
    processes = start_two(run, folder, **args)
    wait_for_rows(run, 6)
    processes[1].kill()
    began = time.monotonic()
    log = kill.finish(processes[0], code=75)
    assert time.monotonic() - began < 30
    processes[1].communicate()
    assert "error: process 1 of 2 has ended, its own output says why; start" in log
    assert "Traceback" not in log and "stack trace" not in log

    saved = [int(p.name) for p in (run / "checkpoints").iterdir() if p.name.isdigit()]
    args |= {"total_steps": max(saved) + 4}
    for workdir in (run, whole):
        for process in start_two(workdir, folder, **args):
            kill.finish(process)
    kill.assert_same_run(whole, run, max(saved) + 4)


def test_infinite_loss_stops_and_names_step_batch_and_checkpoint(folder):
    run = folder / "infinite"
    args = ARGS | {"optim.lr": 1e30, "optim.schedule": "constant", "save_every": 1}
    log = kill.finish(kill.fork(kill.command(run, folder, **args)), code=3)
    line = next(line for line in log.splitlines() if line.startswith("error:"))
    # The loss of the first step is finite, but the state behind it is of no use.
    assert "the largest weight is" in line and "at step 1;" in line
    assert "last good checkpoint: none; start again in another --workdir with" in line
    assert not list((run / "checkpoints").iterdir())
