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


class PcrlError(Exception):
    exit_code = 1


class UsageError(PcrlError):
    exit_code = 2


class ConfigError(PcrlError):
    exit_code = 3


class DataError(PcrlError):
    exit_code = 4


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
