"""Scoring while the policy trains: the driver runs the pool in a thread."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raydpo.errors import RaydpoError
from raydpo.reference.pool import ScoringReport

_log = logging.getLogger(__name__)


class BackgroundScoring:
    """Context manager that scores in a thread while its `with` block runs, and stops at the end of the block."""

    def __init__(self, score: Callable[[Callable[[], bool]], ScoringReport], on_failure: Callable[[str], None]) -> None:
        """Run `score(stopped)` in the thread; if it raises, call `on_failure(message)` every second until the end."""
        self.report = ScoringReport()
        """Report of the scoring, valid after the `with` block."""
        self._score = score
        self._on_failure = on_failure
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(2)

    def __enter__(self) -> "BackgroundScoring":
        self._scoring = self._threads.submit(self._scored)
        self._threads.submit(self._report_failure)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._stop.set()
        self._threads.shutdown()
        failure = self._scoring.exception()
        if failure is not None and error is not None:  # the block's error is a consequence: the scores did not come
            raise failure from None
        if failure is not None:
            _log.warning("Scoring failed after training had the scores that it needed: %s", failure)

    def _scored(self) -> None:
        self.report = self._score(self._stop.is_set)

    def _report_failure(self) -> None:
        failure = self._scoring.exception()
        message = str(failure) if isinstance(failure, RaydpoError) else f"the scoring failed: {failure!r}"
        while failure is not None and not self._stop.is_set():  # repeated, for a feed that was restarted in between
            self._on_failure(message)
            self._stop.wait(1.0)
