"""Signals that ask a training run to end after the present step, with a checkpoint."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from segzoo.errors import SegZooError, WorkerError


class TrainingStopped(SegZooError):
    """Training was asked to stop and did, with a checkpoint; exit code 75 (EX_TEMPFAIL) means "resume me"."""

    exit_code = 75


class TrainingInterrupted(TrainingStopped):
    """Stopped by Ctrl-C, with a checkpoint."""

    exit_code = 130


class StopRequest:
    """Remembers SIGTERM and SIGINT while `watching`; a second SIGINT interrupts at once.

    Attributes:
        signal: the first signal that came, 0 if none.
        checkpoint: path of the last checkpoint, for the message.
    """

    def __init__(self) -> None:
        self.signal: int = 0
        self.checkpoint = ""
        self._is_immediate = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Installs the handlers (in the main thread; elsewhere signals cannot be caught) and restores the old ones.

        A loader worker that dies of the same signal, sent to the whole process group, ends in the same error.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        except (RuntimeError, WorkerError) as error:
            if self.signal:
                raise self.error() from error
            raise
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within the context, when nothing is at stake (an evaluation after a checkpoint), a signal ends at once.

        So does one that came before, while the checkpoint was written: nobody else may look at it for long.

        Raises:
            TrainingStopped: a signal came, before or within.
        """
        self._is_immediate = True
        try:
            if self.signal:
                raise self.error()
            yield
        finally:
            self._is_immediate = False

    def error(self) -> TrainingStopped:
        """The error to end with."""
        remedy = (
            f"checkpoint {self.checkpoint}; go on with --resume" if self.checkpoint else "there is no checkpoint yet"
        )
        if self.signal == signal.SIGINT:
            return TrainingInterrupted("training interrupted (Ctrl-C)", remedy)
        return TrainingStopped("training stopped by request (SIGTERM)", remedy)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number
        if self._is_immediate:
            raise self.error()
