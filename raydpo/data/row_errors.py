"""Exceptions that the content of a row may raise, which become the row's reason instead of ending the run."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from jinja2 import TemplateError

from raydpo.data.dialects.pair import RowError
from raydpo.errors import RaydpoError

ROW_ERRORS = (
    TemplateError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    LookupError,
    RuntimeError,  # RecursionError and NotImplementedError too
    TypeError,
    ValueError,  # UnicodeError and pyarrow's ArrowInvalid too
)
"""Exceptions that a dialect, a chat template or a tokenizer may raise on a value that it does not expect. OSError and
MemoryError are not among them: those are faults of the machine, and a row would be blamed for nothing."""

_REASON_CHARACTERS = 1000

Item = TypeVar("Item")
Result = TypeVar("Result")


def row_error(kind: str, error: Exception) -> RowError:
    """Return the reason of a row whose content has raised `error`; a RowError is its own reason."""
    return error if isinstance(error, RowError) else RowError(kind, f"{type(error).__name__}: {error}")


def reason_text(error: RowError) -> str:
    """Return a reason as one line that any console and file can show: lone surrogates are escaped, long ones cut."""
    text = " ".join(str(error).encode("utf-8", errors="backslashreplace").decode().splitlines())
    return text if len(text) <= _REASON_CHARACTERS else f"{text[:_REASON_CHARACTERS]}..."


def attempt(work: Callable[[], Result], kind: str) -> Result | RowError:
    """Return the result of work on one row or, if the row's content makes it fail, the reason."""
    try:
        return work()
    except RowError as error:
        return error
    except RaydpoError:
        raise
    except ROW_ERRORS as error:
        return row_error(kind, error)


def attempt_each(
    items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]], kind: str
) -> list[Result | RowError]:
    """Return for each item its result or the reason why it has none, in order.

    `work` takes several items at once and fails as a whole; a batch that fails is halved until the items at fault are
    alone.
    """
    if not items:
        return []
    whole = attempt(lambda: work(items), kind)
    if not isinstance(whole, RowError):
        return list(whole)
    if len(items) == 1:
        return [whole]
    middle = len(items) // 2
    return [*attempt_each(items[:middle], work, kind), *attempt_each(items[middle:], work, kind)]
