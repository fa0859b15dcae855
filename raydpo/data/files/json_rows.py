"""Cut a stream of bytes into JSON rows without parsing them: into lines, or into the elements of one array."""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from raydpo.data.files.streams import Damaged

MAX_ROW_BYTES = 8 << 20
"""Maximum size of a row in bytes. Longer rows are bad: tokenizing a single one would take gigabytes."""

BOM = b"\xef\xbb\xbf"
"""The byte order mark of UTF-8, which some programs write at the beginning of a file."""

_TOO_LONG = f"the row is longer than {MAX_ROW_BYTES >> 20} MiB"
KEPT_BYTES = 1 << 13
"""Size of what is kept of a row that is too long, for the quarantine."""

_BRACKET = re.compile(rb'["\[\]{},]')
_STRING_RUN = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


@dataclass(frozen=True, slots=True)
class RawRow:
    """The unparsed content of one row of a file."""

    number: int
    """Line number, or position in the array or in the sequence of objects, from 1."""
    content: bytes
    reason: str | None = None
    """Reason why the row is bad; None if it is still to be parsed."""


def lines(chunks: Iterator[bytes]) -> Iterator[RawRow]:
    """Yield the lines that are not blank. If the stream is damaged, the last row carries the reason."""
    number = 0
    parts: list[bytes] = []  # of the current, incomplete line
    size = 0
    try:
        for chunk in chunks:
            first, *rest = chunk.split(b"\n")
            if size <= MAX_ROW_BYTES:  # the rest of an overlong line is not kept
                parts.append(first)
            size += len(first)
            for following in rest:
                number += 1
                yield from _line(number, parts)
                parts, size = [following], len(following)
    except Damaged as damage:
        yield RawRow(number + 1, b"".join(parts)[:KEPT_BYTES], str(damage))
        return
    yield from _line(number + 1, parts)


def _line(number: int, parts: list[bytes]) -> Iterator[RawRow]:
    content = b"".join(parts).rstrip(b"\r").removeprefix(BOM)  # `cat` leaves the one of each file
    if len(content) > MAX_ROW_BYTES:
        yield RawRow(number, content[:KEPT_BYTES], _TOO_LONG)
    elif content and not content.isspace():
        yield RawRow(number, content)


class Cutter(ABC):
    """A buffer in which a subclass looks for the ends of rows, and which drops the middle of rows that are too long."""

    def __init__(self) -> None:
        self.buffer = b""
        self.at = 0  # position up to which the buffer is scanned
        self.start = 0  # of the current, incomplete row
        self.depth = 0
        self.in_string = False
        self.number = 0
        self.overlong = False

    @abstractmethod
    def feed(self, chunk: bytes) -> Iterator[RawRow]:
        """Add a chunk, and yield the rows that end in it."""

    @abstractmethod
    def finish(self, damage: Damaged | None) -> Iterator[RawRow]:
        """Yield what is left at the end of the stream, or where it is damaged."""

    def rows(self, chunks: Iterator[bytes]) -> Iterator[RawRow]:
        """Yield the rows of a stream. If it is damaged or cut off, the last row carries the reason."""
        damage = None
        try:
            for chunk in chunks:
                yield from self.feed(chunk)
        except Damaged as error:
            damage = error
        yield from self.finish(damage)

    def append(self, chunk: bytes) -> None:
        """Add a chunk, and forget the rows before the current one."""
        kept = self.buffer[self.start :]
        self.at -= self.start
        self.start = 0
        if len(kept) > MAX_ROW_BYTES:
            self.overlong = True
            head = kept[: min(KEPT_BYTES, self.at)]
            kept, self.at = head + kept[self.at :], len(head)
        self.buffer = kept + chunk

    def cut(self, end: int, reason: str | None = None) -> RawRow:
        """Return the current row, which ends at `end`, where the next begins."""
        content = self.buffer[self.start : end].strip()
        self.start = end
        self.number += 1
        overlong, self.overlong = self.overlong or len(content) > MAX_ROW_BYTES, False
        if overlong:
            return RawRow(self.number, content[:KEPT_BYTES], _TOO_LONG)
        return RawRow(self.number, content, reason)


_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_WRAPPER_END = re.compile(rb"(?:\s*,\s*" + _TEXT + rb"\s*:\s*(?:" + _TEXT + rb"|[-+.\w]+))*\s*\}\s*", re.DOTALL)
"""Matches the rest of an object after its array, if that rest holds nothing but texts, numbers and the like."""
_KEY_OF_PARTS = re.compile(rb"(" + _TEXT + rb")\s*:\s*[\[{]", re.DOTALL)


class _ArrayCutter(Cutter):
    """An incremental splitter of one JSON array, which looks only at brackets, commas and strings.

    Everything between two commas of the outermost level is an element, valid JSON or not, so that one broken element
    does not hide the next.
    """

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.wrapped = wrapped
        self.closed = False

    def feed(self, chunk: bytes) -> Iterator[RawRow]:
        """Yield the elements that end in this chunk."""
        if self.closed:
            self.buffer = (self.buffer[self.start :] + chunk).strip()[:KEPT_BYTES]
            self.start = 0
            return
        self.append(chunk)
        while not self.closed and self._step():
            yield from self._element()

    def _step(self) -> bool:
        """Advance to just after the next possible end of an element. Return False at the end of the buffer."""
        while True:
            if self.in_string:
                run = _STRING_RUN.match(self.buffer, self.at)
                self.at = run.end() if run else self.at
                if self.buffer[self.at : self.at + 1] != b'"':
                    return False
                self.at += 1
                self.in_string = False
            found = _BRACKET.search(self.buffer, self.at)
            if found is None:
                self.at = len(self.buffer)
                return False
            self.at = found.end()
            match found[0]:
                case b'"':
                    self.in_string = True
                case b"[" | b"{":
                    self.depth += 1
                    if self.depth == 1:
                        self.start = self.at
                case b"]" | b"}":
                    self.depth -= 1
                    if self.depth == 0:
                        return True
                case _:
                    if self.depth == 1:
                        return True

    def _element(self) -> Iterator[RawRow]:
        self.closed = self.depth == 0
        content = self.buffer[self.start : self.at - 1].strip()
        if content or not self.closed:  # else an empty array, or a comma before the closing bracket
            yield self.cut(self.at - 1, None if content else "broken JSON: an element of the array is empty")
        self.start = self.at

    def finish(self, damage: Damaged | None) -> Iterator[RawRow]:
        """Yield the last rows, after the last chunk was fed."""
        rest = self.buffer[self.start :].strip()
        if damage is not None:
            yield RawRow(self.number + 1, rest[:KEPT_BYTES], str(damage))
        elif self.closed:
            if reason := self._fault_after_end(rest):
                yield RawRow(self.number + 1, rest[:KEPT_BYTES], reason)
        elif self.depth == 1 and not self.in_string:
            if rest:
                yield RawRow(self.number + 1, rest)
                self.number += 1
            yield RawRow(self.number + 1, b"", "broken JSON: the array is not closed, so the file was cut off")
        else:
            reason = (
                "broken JSON: the array ends inside a row, so the file was cut off or the row's brackets do not match"
            )
            yield RawRow(self.number + 1, rest[:KEPT_BYTES], reason)

    def _fault_after_end(self, rest: bytes) -> str:
        if not self.wrapped:
            return "broken JSON: there is text after the end of the array" if rest else ""
        if _WRAPPER_END.fullmatch(rest):
            return ""
        if following := _KEY_OF_PARTS.search(rest):
            key = following[1].decode(errors="replace")
            return f"not read: after its list of rows, the object has {key}; save each list as a file of its own"
        if rest.endswith(b"}"):
            return "broken JSON: there is text after the end of the object around the array"
        return "broken JSON: the object around the array is not closed, so the file was cut off"


def elements(chunks: Iterator[bytes], wrapped: bool = False) -> Iterator[RawRow]:
    """Return the elements of the array. If the stream is damaged or cut off, the last row carries the reason.

    `wrapped` is whether the array is the value of an object's key, so that the object goes on after its end.
    """
    return _ArrayCutter(wrapped).rows(chunks)
