"""Every error that a user can cause, and the exit code that it ends in.

    PcrlError                  never raised itself
    ├── UsageError         2   a wrong word on the command line
    ├── ConfigError        3   settings that contradict each other, the data or the weights
    ├── DataError          4   scans or tables that cannot be used
    ├── NumericalError     5   a non-finite loss, a collapsed representation
    ├── MachineError       6   no GPU, memory, disk or permission
    ├── IntegrityError     7   a torn, changed or unsafe file
    ├── ThresholdError     8   `--fail-under` not met, or a metric that is null
    └── Preempted         75   stopped by a signal, everything saved

The message is one sentence that says what, where, and what to do next. Anything else that escapes is our bug (exit 1).
"""

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

OF_READING = frozenset((errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE))
"""What keeps a sound file from being read: the permission, the disk, the mount."""


class PcrlError(Exception):
    exit_code = 1


class UsageError(PcrlError):
    exit_code = 2


class ConfigError(PcrlError):
    exit_code = 3


class DataError(PcrlError):
    """slug: the kind of refusal in one word, which `prep --json` counts by:

        unreadable     a file that is torn, lies about its size, or is of no known format
        bad_slices     a DICOM series with missing, doubled, uneven or mixed slices
        bad_geometry   a spacing, position or orientation that no scan has
        bad_values     voxels that are not finite or beyond 16 bits
        too_small      no crop fits
        no_crops       crops fit, and none was acceptable in as many tries as allowed
        unusable       anything else

    counts: what had been tried and refused by then.
    """

    exit_code = 4

    def __init__(self, message: str, *, slug: str = "unusable", counts: Mapping[str, int] | None = None) -> None:
        super().__init__(message)
        self.slug, self.counts = slug, dict(counts or {})


class NumericalError(PcrlError):
    exit_code = 5


class MachineError(PcrlError):
    exit_code = 6


class IntegrityError(PcrlError):
    exit_code = 7


class ThresholdError(PcrlError):
    exit_code = 8


class Preempted(PcrlError):
    exit_code = 75


@contextmanager
def blame_reading(path: object) -> Iterator[None]:
    """Turns a missing permission, a failing disk or a lost mount into a `MachineError`: the file may be sound."""
    try:
        yield
    except OSError as error:
        if error.errno not in OF_READING:
            raise
        what = (error.strerror or "input/output error").lower()
        raise MachineError(
            f"cannot read {error.filename or path}: {what}; mend the permission, disk or mount and run again"
        ) from error


@contextmanager
def blame_memory(what: str, where: str, instead: str) -> Iterator[None]:
    """Turns a failed allocation, of Python, NumPy or torch, on a CPU or a GPU, into a `MachineError`.

    what: did not fit. where: cpu or cuda. instead: the setting to try.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        raise MachineError(f"not enough memory on {where} for {what}; try {instead}") from error


def _is_of_memory(error: BaseException | None) -> bool:
    """torch's own class exists for GPUs only; on a CPU its words tell, here or in what the error was raised from."""
    if error is None or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return error is not None
    return "allocate memory" in str(error) or _is_of_memory(error.__cause__)
