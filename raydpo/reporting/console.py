"""The driver's console output: one line per stage, with rate and remaining time."""

import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO

TITLE = 12
"""Width of the column of titles."""
REDRAW_S = 0.2
"""Minimum seconds between updates of the line on a terminal, where it is redrawn in place."""
REPEAT_S = 15.0
"""Minimum seconds between the lines of a running stage if the output is not a terminal, such as a job's log."""


class Stage:
    """The progress line of one stage."""

    def __init__(self, title: str, unit: str, stream: TextIO | None = None) -> None:
        """Start the stage's clock. `title` and `unit` (plural) are printed as given; the default stream is stdout."""
        self._title = title
        self._unit = unit
        self._stream = stream or sys.stdout
        self._terminal = self._stream.isatty()
        self._started = time.monotonic()
        self._drawn = self._started if not self._terminal else 0.0
        self._first: tuple[float, int] | None = None

    def update(self, done: int, total: int | None = None, note: str = "") -> None:
        """Report the progress of the stage; calls in quick succession print nothing."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, done)  # the rate excludes the start-up
        if now - self._drawn < (REDRAW_S if self._terminal else REPEAT_S):
            return
        self._drawn = now
        started, first = self._first
        rate = (done - first) / (now - started) if now > started else 0.0
        left = f", {duration((total - done) / rate)} left" if total and rate else ""
        amount = f"{done:,} of {total:,}" if total else f"{done:,}"
        speed = f", {rate:,.1f}/s" if rate else ""
        self._print(f"{amount} {self._unit}{speed}{left}{note and f', {note}'}", end=False)

    def done(self, text: str) -> float:
        """Print the stage's last line, and return the duration of the stage in seconds."""
        seconds = time.monotonic() - self._started
        self._print(f"{text} in {duration(seconds)}", end=True)
        return seconds

    def clear(self) -> None:
        """Remove the line of progress from a terminal, where other output follows."""
        if self._terminal:
            self._stream.write("\r\033[K")
            self._stream.flush()

    def _print(self, text: str, *, end: bool) -> None:
        line = f"{self._title:<{TITLE}} {text}"
        if self._terminal:
            line = f"\r\033[K{line}"
        self._stream.write(line + ("\n" if end or not self._terminal else ""))
        self._stream.flush()


def print_line(title: str, text: str) -> None:
    """Print text that belongs to no stage. Its title stands in the column of titles; further lines are indented."""
    first, *others = text.split("\n")
    print(f"{title:<{TITLE}} {first}", *(f"{'':<{TITLE}} {line}" for line in others), sep="\n", flush=True)


def duration(seconds: float) -> str:
    """Format a number of seconds, as in `7.5 s`, `42 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Poller:
    """A context manager that calls a function every second from a background thread."""

    def __init__(self, poll: Callable[[], None]) -> None:
        """Create the poller. `poll` must be quick and must not raise."""
        self._poll = poll
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Poller":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1.0):
            self._poll()
