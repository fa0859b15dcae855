"""Cut a stream of bytes into JSON rows without parsing them: into lines, or into the elements of one array."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from raydpo.data.files.streams import Damaged

MAX_ROW_BYTES = 8 << 20
"""Maximum size of a row in bytes. Longer rows are bad: tokenizing a single one would take gigabytes."""

_TOO_LONG = f"the row is longer than {MAX_ROW_BYTES >> 20} MiB"
_KEPT_BYTES = 1 << 13
_BRACKET = re.compile(rb'["\[\]{},]')
_STRING_RUN = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


@dataclass(frozen=True, slots=True)
class RawRow:
    """The unparsed content of one row of a file."""

    number: int
    """Line number, or position in the array, from 1."""
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
        yield RawRow(number + 1, b"".join(parts)[:_KEPT_BYTES], str(damage))
        return
    yield from _line(number + 1, parts)


def _line(number: int, parts: list[bytes]) -> Iterator[RawRow]:
    content = b"".join(parts).rstrip(b"\r")
    if number == 1:
        content = content.removeprefix(b"\xef\xbb\xbf")
    if len(content) > MAX_ROW_BYTES:
        yield RawRow(number, content[:_KEPT_BYTES], _TOO_LONG)
    elif content and not content.isspace():
        yield RawRow(number, content)


class _ArrayCutter:
    """An incremental splitter of one JSON array, which looks only at brackets, commas and strings.

    Everything between two commas of the outermost level is an element, valid JSON or not, so that one broken element
    does not hide the next.
    """

    def __init__(self) -> None:
        self.buffer = b""
        self.at = 0  # position up to which the buffer is scanned
        self.start = 0  # of the current, incomplete element
        self.depth = 0
        self.in_string = False
        self.number = 0
        self.overlong = False
        self.closed = False

    def feed(self, chunk: bytes) -> Iterator[RawRow]:
        """Yield the elements that end in this chunk."""
        if self.closed:
            self.buffer = (self.buffer[self.start :] + chunk).strip()[:_KEPT_BYTES]
            self.start = 0
            return
        kept = self.buffer[self.start :]
        self.at -= self.start
        self.start = 0
        if len(kept) > MAX_ROW_BYTES:
            self.overlong = True
            head = kept[: min(_KEPT_BYTES, self.at)]
            kept, self.at = head + kept[self.at :], len(head)
        self.buffer = kept + chunk
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
        content = self.buffer[self.start : self.at - 1].strip()
        self.start = self.at
        self.closed = self.depth == 0
        if not content and self.closed:
            return  # an empty array, or a comma before the closing bracket
        self.number += 1
        overlong, self.overlong = self.overlong or len(content) > MAX_ROW_BYTES, False
        if overlong:
            yield RawRow(self.number, content[:_KEPT_BYTES], _TOO_LONG)
        else:
            yield RawRow(self.number, content, None if content else "broken JSON: an element of the array is empty")

    def finish(self, damage: Damaged | None) -> Iterator[RawRow]:
        """Yield the last rows, after the last chunk was fed."""
        rest = self.buffer[self.start :].strip()
        if damage is not None:
            yield RawRow(self.number + 1, rest[:_KEPT_BYTES], str(damage))
        elif self.closed:
            if rest:
                yield RawRow(
                    self.number + 1, rest[:_KEPT_BYTES], "broken JSON: there is text after the end of the array"
                )
        elif self.depth == 1 and not self.in_string:
            if rest:
                yield RawRow(self.number + 1, rest)
                self.number += 1
            yield RawRow(self.number + 1, b"", "broken JSON: the array is not closed, so the file was cut off")
        else:
            reason = (
                "broken JSON: the array ends inside a row, so the file was cut off or the row's brackets do not match"
            )
            yield RawRow(self.number + 1, rest[:_KEPT_BYTES], reason)


def elements(chunks: Iterator[bytes]) -> Iterator[RawRow]:
    """Yield the elements of the array. If the stream is damaged or cut off, the last row carries the reason."""
    cutter = _ArrayCutter()
    damage = None
    try:
        for chunk in chunks:
            yield from cutter.feed(chunk)
    except Damaged as error:
        damage = error
    yield from cutter.finish(damage)
