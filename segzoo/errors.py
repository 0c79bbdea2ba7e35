"""Errors a user can act on: each names the file, the id, the value and the remedy.

The command lines print them without a traceback and end with `exit_code`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class SegZooError(Exception):
    """Base of all errors that are the input's fault, not the program's.

    Args:
        message: what is wrong and where (file, image id, annotation id, value).
        remedy: what the user can do about it; printed on its own line.
    """

    exit_code: int = 2

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  -> {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        # Errors cross process borders (loader workers, spawned ranks) by pickle.
        return type(self), (self.message, self.remedy)


class DatasetError(SegZooError):
    """An annotation file, an image or a data set that cannot be used as it is."""


class ConfigError(SegZooError):
    """A config key, value or combination of values that cannot work."""


class CheckpointError(SegZooError):
    """A checkpoint that is unreadable, unsafe or does not fit the model."""


class TrainingError(SegZooError):
    """A training run that had to stop, such as a loss that is not finite."""

    exit_code = 3


class WorkerError(TrainingError):
    """A process that loads samples has ended before its time."""


# What the system says where nothing more can be written: no space left, over the quota, larger than a file may be, a
# file system that has become read-only, a broken disk.
UNWRITABLE = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO))


@contextmanager
def naming_full_disks() -> Iterator[None]:
    """Within the context an OSError of a disk that takes no more becomes a TrainingError with its file.

    Raises:
        TrainingError: see above; other errors of the system pass as they are.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = error.filename or "a file of the run"
        raise TrainingError(
            f"{where}: cannot be written: {error.strerror}",
            "free space or choose another disk, then go on with --resume from the last checkpoint, which is whole",
        ) from error
