"""The errors a user can meet, one tree.

Each is also a standard-library error, is picklable (one message, no extra arguments) and carries the
exit code of the command-line contract.
"""


class LoragateError(Exception):
    """Base of every error that is an answer rather than a crash."""

    exit_code = 1


def first_line(error: Exception) -> str:
    """The first line of what an error of a library says, its kind where it says nothing."""
    said = str(error).strip()
    return said.splitlines()[0] if said else type(error).__name__


class ConfigError(LoragateError, ValueError):
    """The run file or the command line is wrong; nothing was started."""

    exit_code = 2


class DataFileError(ConfigError):
    """A data file is missing, unreadable or not in the format its name promises."""


class BaseModelError(ConfigError):
    """The base model cannot be found or loaded."""


class BusyError(LoragateError, RuntimeError):
    """Another release of the same model holds this home."""

    exit_code = 5


class BlockedError(LoragateError, RuntimeError):
    """Something else has to happen first: another release became champion in the meantime, an alias was moved."""

    exit_code = 5


class GateRefusedError(LoragateError, ValueError):
    """A gate refused the release: a result, not a crash."""

    exit_code = 3


class VerificationError(LoragateError, ValueError):
    """Stored bytes no longer match what was recorded about them."""

    exit_code = 4


class StepError(LoragateError, RuntimeError):
    """A step ended without an answer: its process died or a tool it ran failed."""


class NotApplicableError(LoragateError, ValueError):
    """A defect cannot be planted, because the run has not what it needs."""
