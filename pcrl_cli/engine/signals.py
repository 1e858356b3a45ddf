"""Signals that ask a run to stop: the step ends, everything is saved, the process leaves with exit code 75."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """Set by SIGTERM, SIGUSR1 or a first Ctrl-C."""

    def __init__(self) -> None:
        self.on = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the three signals inside the block; a second Ctrl-C stops at once. Restores the former handlers."""
        self.on = False
        numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
        try:
            former = {number: signal.signal(number, self._stop) for number in numbers}
        except ValueError:  # not in the main thread: signals are somebody else's
            yield
            return
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.on:
            raise KeyboardInterrupt
        self.on = True
