"""This machine: the worker command in one or several processes that find each other."""

import signal
import socket
import subprocess
import sys

from experiments.launch.job import FATAL, ROOT, Job


def run(job: Job, processes: int) -> int:
    """Runs the processes to their end; returns the exit code.

    0, or that of a process that has failed: if one did for a reason that no restart can
    cure, then its code, as the others have stopped because of it. SIGTERM and Ctrl-C
    reach all of them, and they save.
    """
    command = [sys.executable, *job.command[1:]]
    extra: list[list[str]] = [[]]
    if processes > 1:
        with socket.socket() as sock:
            sock.bind(("localhost", 0))
            port = sock.getsockname()[1]
        flags = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
        extra = [[*flags, f"--process_id={i}"] for i in range(processes)]
    workers: list[subprocess.Popen] = []
    stopped = False

    def stop(*_) -> None:
        nonlocal stopped
        stopped = True
        for worker in workers:
            worker.terminate()

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    for flags in extra:
        # A group of their own: the terminal would send them Ctrl-C a second time.
        worker = subprocess.Popen([*command, *flags], cwd=ROOT, process_group=0)
        workers.append(worker)
    if stopped:  # before all of them had started
        stop()
    codes = [worker.wait() for worker in workers]
    for number, handler in before.items():
        signal.signal(number, handler)
    codes = [code if code >= 0 else 128 - code for code in codes]  # as a shell has it
    failed = [code for code in codes if code]
    return next((code for code in failed if code in FATAL), failed[0] if failed else 0)
