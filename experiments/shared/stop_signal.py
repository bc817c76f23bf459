"""SIGTERM and SIGINT ask a training to save and to end."""

import signal

import jax
from jax.experimental import multihost_utils


class StopSignal:
    """Whether SIGTERM or SIGINT asked for a save; agreed on by all processes."""

    def __init__(self):
        self._received = False
        self._many = jax.process_count() > 1
        self._questions = 0
        numbers = (signal.SIGINT, signal.SIGTERM)
        self._before = {number: signal.getsignal(number) for number in numbers}
        if self._many:
            # The runtime's own SIGTERM handler tells all processes; Ctrl-C joins it.
            signal.signal(signal.SIGINT, lambda *_: signal.raise_signal(signal.SIGTERM))
        else:
            signal.signal(signal.SIGTERM, self._receive)
            signal.signal(signal.SIGINT, self._receive)

    def _receive(self, number: int, _) -> None:
        self._received = True
        signal.signal(number, signal.SIG_DFL)  # the second one ends at once

    def restore(self) -> None:
        """Gives the signals back: what follows training is not to be saved."""
        for number, handler in self._before.items():
            if not (self._many and number == signal.SIGTERM):
                signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to stop now; all processes must ask equally often.

        The runtime agrees on the number of a question, beyond those that any process
        has asked so far, at which the answer is yes in every process.
        """
        self._questions += 1
        if self._many:
            return multihost_utils.reached_preemption_sync_point(self._questions)
        return self._received
