"""Worker processes of the input pipeline: they end with their parent, never alone.

Grain starts the workers.  What is added here: they leave signals to the program that
started them, end when it has ended however that happened, and their death is one line.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import re
import signal
import threading
import time
import weakref
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from segjax.errors import UserError

if TYPE_CHECKING:  # importing it takes 0.2 s, which no --help should wait for
    import grain

BUFFER = 2
"""Batches that each worker prepares ahead."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class WorkerDied(UserError):
    """A worker process ended or was killed, often because memory ran out.

    The state of the training is not touched by it: it may be saved and continued.
    """


class WorkerBatches:
    """Batches that worker processes read; an iterator to be closed after use."""

    def __init__(self, batches: grain.DatasetIterator):
        self._open, self._started = [batches], False
        # Also at the exit of the program, before Python takes its modules apart.
        self._finalizer = weakref.finalize(self, _close, self._open)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if not self._open:
            raise StopIteration
        try:
            with contextlib.nullcontext() if self._started else _signals_delayed():
                batch = next(self._open[0])
            self._started = True
        except RuntimeError as error:
            # Grain has no type of its own for it.
            code = re.search(r"unexpectedly with exit code (-?\d+)", str(error))
            if code is None:
                raise
            self.close()
            raise WorkerDied(_description(int(code[1]))) from error
        # Copied: memory that is shared with a worker must not outlive it.
        return {key: np.array(part) for key, part in batch.items()}

    def close(self) -> None:
        """Ends the workers and frees the memory they share with this process."""
        self._finalizer()


@contextlib.contextmanager
def _signals_delayed() -> Iterator[None]:
    """Delays signals to this program while its workers start.

    They are blocked, which processes inherit: a worker that still imports its modules,
    and does not ignore signals yet, would print a traceback for Ctrl-C.  And they are
    noted and raised in the end, because Python interrupts the main thread also for
    signals that another thread has received: where Grain starts threads, that leaves
    one which never ends.
    """
    arrived: list[int] = []
    handlers: dict[int, Any] = {}

    def note(number: int, frame: Any) -> None:
        arrived.append(number)

    if threading.current_thread() is threading.main_thread():
        for each in _SIGNALS:
            if callable(signal.getsignal(each)):
                handlers[each] = signal.signal(each, note)
    _start_resource_tracker()
    mask = getattr(signal, "pthread_sigmask", lambda how, numbers: ())
    before = mask(getattr(signal, "SIG_BLOCK", 0), _SIGNALS)
    try:
        yield
    finally:
        mask(getattr(signal, "SIG_SETMASK", 0), before)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived:
            signal.raise_signal(number)


def _start_resource_tracker() -> None:
    """Starts the process in which Python frees what killed processes have shared.

    Now, because starting it unblocks signals; and without its warnings of "leaked"
    memory, which it frees, after a process was killed.
    """
    before = os.environ.get("PYTHONWARNINGS")
    os.environ["PYTHONWARNINGS"] = f"{before or 'default'},ignore:resource_tracker"
    try:
        resource_tracker.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONWARNINGS"]
        else:
            os.environ["PYTHONWARNINGS"] = before


def _close(opened: list[grain.DatasetIterator]) -> None:
    while opened:
        opened.pop().close()
    # Grain frees shared memory when its arrays are collected, in a thread of its own,
    # which would not get to it at the exit of the program.
    gc.collect()
    time.sleep(0.1)


def start_workers(batches: grain.IterDataset, workers: int) -> WorkerBatches:
    """Reads a dataset in worker processes.

    Args:
      batches: to be read; worker i of n prepares every n-th element, so that their
        order does not depend on n.
      workers: number of processes, 1 or more.
    """
    import grain

    _mark_flags_of_grain()
    dataset = batches.mp_prefetch(
        grain.MultiprocessingOptions(workers, BUFFER), worker_init_fn=_start
    )
    with _signals_delayed():
        return WorkerBatches(iter(dataset))


def _start(index: int, count: int) -> None:
    """Runs in every worker before it reads."""
    del index, count
    # Ctrl-C and schedulers signal all processes of a group.  The parent decides what
    # to do, and its workers have to serve it until it has saved.
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()  # waits for a pipe, which the system closes even after SIGKILL
    os._exit(1)


def _mark_flags_of_grain() -> None:
    """Lets Grain read its flags in programs that do not parse any: defaults hold."""
    if not flags.FLAGS.is_parsed():
        for name in flags.FLAGS:
            if name.startswith("grain_"):
                flags.FLAGS[name].present = 1


def _description(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else -code
        how, cure = f"was killed by {name}", "lower --config.workers if memory is short"
        if -code == signal.SIGKILL:
            how += ", as Linux does when memory runs out"
    else:
        how = f"ended with exit code {code}"
        cure = (
            "its own message stands above; a program that is not experiments.train "
            'needs to start under `if __name__ == "__main__":`'
        )
    return f"a worker process of the input pipeline {how}; {cure}"
