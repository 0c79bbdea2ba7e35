"""Signals that ask a training run to end after the present step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from segzoo.errors import SegZooError


class TrainingStopped(SegZooError):
    """Training was asked to stop and did, with a checkpoint; exit code 75 (EX_TEMPFAIL) means "resume me"."""

    exit_code = 75


class TrainingInterrupted(TrainingStopped):
    """Stopped by Ctrl-C, with a checkpoint."""

    exit_code = 130


class StopRequest:
    """Remembers SIGTERM and SIGINT while `watching`; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: int = 0

    @contextmanager
    def watching(self) -> Iterator[StopRequest]:
        """Installs the handlers (in the main thread; elsewhere signals cannot be caught) and restores the old ones."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield self
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def error(self, checkpoint: str) -> TrainingStopped:
        """The error to end with after `checkpoint` was written."""
        remedy = f"checkpoint {checkpoint}; go on with --resume"
        if self.signal == signal.SIGINT:
            return TrainingInterrupted("training interrupted (Ctrl-C)", remedy)
        return TrainingStopped("training stopped by request (SIGTERM)", remedy)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
