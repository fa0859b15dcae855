"""Scoring beside training: the pool in a thread of the driver."""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from raydpo.errors import RaydpoError
from raydpo.reference.pool import ScoringReport

_log = logging.getLogger(__name__)


class BackgroundScoring:
    """A scoring under way in a thread while the `with` block runs, whose end ends it: nobody needs the rest then."""

    def __init__(self, score: Callable[[Callable[[], bool]], ScoringReport], on_failure: Callable[[str], None]) -> None:
        """`score(stopped)` is run in the thread; should it fail, `on_failure` is told why, again and again."""
        self.report = ScoringReport()
        """What was done, once the `with` block is over."""
        self._score = score
        self._on_failure = on_failure
        self._stop = threading.Event()
        self._threads = ThreadPoolExecutor(2)

    def __enter__(self) -> "BackgroundScoring":
        self._scoring = self._threads.submit(self._scored)
        self._threads.submit(self._tell_failure)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        self._stop.set()
        self._threads.shutdown()
        failure = self._scoring.exception()
        if failure is not None and error is not None:  # it only says that the scores did not come
            raise failure from None
        if failure is not None:
            _log.warning("The run did without the scores of some blocks: %s", failure)

    def _scored(self) -> None:
        self.report = self._score(self._stop.is_set)

    def _tell_failure(self) -> None:
        failure = self._scoring.exception()
        message = str(failure) if isinstance(failure, RaydpoError) else f"the scoring failed: {failure!r}"
        while failure is not None and not self._stop.is_set():  # a feed that was restarted has to hear it again
            self._on_failure(message)
            self._stop.wait(1.0)
