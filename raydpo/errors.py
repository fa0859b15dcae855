"""Errors that a user can cause, and so can mend.

Each message says the value that was met, the rule it broke and the remedy. Each class is also the builtin that a
caller would expect, so that `except ValueError` works for those who do not know this package.
"""


class RaydpoError(Exception):
    """Base of all errors below; the command line prints it as one line, without a traceback."""


class ConfigError(RaydpoError, ValueError):
    """A flag or a YAML key is unknown, out of range or at odds with another."""


class DataError(RaydpoError, ValueError):
    """The preference data cannot be read, or holds more bad rows than `max_bad_rows` allows."""


class ModelError(RaydpoError, ValueError):
    """A model or tokenizer cannot be loaded, or has a shape that this package cannot train."""


class ReferenceMismatch(RaydpoError, RuntimeError):
    """The stored reference log-probs belong to other weights or numerics than those now asked for."""


class ResumeError(RaydpoError, RuntimeError):
    """A checkpoint cannot be continued: it is incomplete, or the run it belongs to had other settings."""


class StorageError(RaydpoError, OSError):
    """A folder or URL cannot be read or written by a process that needs it."""


class DamagedFile(StorageError):
    """A file is not as it was written."""


class TrainingError(RaydpoError, RuntimeError):
    """Training cannot go on: the loss is not a number, or workers were lost more often than `max_failures` allows."""
