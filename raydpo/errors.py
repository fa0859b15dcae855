"""Errors that a user can cause and can fix.

Each message gives the value that was found, the rule it breaks and the remedy. Each class also derives from the
matching builtin exception, so that `except ValueError` works without knowledge of this package.
"""


class RaydpoError(Exception):
    """The base class of raydpo's errors; the command line prints them as one line, without a traceback."""


class ConfigError(RaydpoError, ValueError):
    """A flag or a YAML key is unknown, out of range or in conflict with another."""


class DataError(RaydpoError, ValueError):
    """The preference data cannot be read, or contains more bad rows than `max_bad_rows` allows."""


class ModelError(RaydpoError, ValueError):
    """A model or tokenizer cannot be loaded, or has an architecture that raydpo cannot train."""


class ReferenceMismatch(RaydpoError, RuntimeError):
    """Stored reference log-probs belong to other weights, numerics or pairs than those of this run."""


class ResumeError(RaydpoError, RuntimeError):
    """A run cannot be resumed from a checkpoint: it is incomplete, or belongs to a run with other options."""


class StorageError(RaydpoError, OSError):
    """A folder or URL cannot be read or written by a process that needs it."""


class DamagedFile(StorageError):
    """The content of a file differs from what was written to it."""


class TrainingError(RaydpoError, RuntimeError):
    """Training cannot continue: the loss is not a number, or workers failed more often than `max_failures` allows."""
