"""Cut a stream of bytes into JSON objects that follow each other: on one line, or printed over several lines each."""

import re
from collections.abc import Iterator

from raydpo.data.files.json_rows import BOM, KEPT_BYTES, Cutter, RawRow
from raydpo.data.files.streams import Damaged

_BRACKET = re.compile(rb'["\[\]{}]')
_STRING_RUN = re.compile(rb'(?:[^"\\\r\n]++|\\.)*+', re.DOTALL)
_SEPARATORS = b" \t\r\n\f\v,\x1e"
"""Bytes that may stand between two objects; 0x1e begins each object of a JSON text sequence (RFC 7464)."""
_LOOK_BACK = 64

_BETWEEN = "broken JSON: there is text between the objects"
_UNCLOSED = "broken JSON: the next object begins before this one is closed"
_CUT_OFF = "broken JSON: the file ends inside an object, so it was cut off or the object's brackets do not match"


class _ObjectCutter(Cutter):
    """An incremental splitter of objects in sequence, which looks only at brackets, strings and line ends.

    One broken object does not hide the next: a string ends at the end of its line at the latest, and an object ends
    where another begins without a comma before it or, in an indented file, at the start of a line.
    """

    def __init__(self, indented: bool) -> None:
        super().__init__()
        self.indented = indented

    def feed(self, chunk: bytes) -> Iterator[RawRow]:
        """Yield the objects that end in this chunk, and the text between objects as rows that are bad."""
        self.append(chunk)
        while True:
            if self.depth == 0:
                opening = self.buffer.find(b"{", self.at)
                if opening < 0:
                    self.at = len(self.buffer)
                    return
                yield from self._between(opening)
                self.start, self.at, self.depth = opening, opening + 1, 1
            if self.in_string and not self._end_string():
                return
            found = _BRACKET.search(self.buffer, self.at)
            if found is None:
                self.at = len(self.buffer)
                return
            self.at = found.end()
            match found[0]:
                case b'"':
                    self.in_string = True
                case b"{" if self._is_next_object(found.start()):
                    yield self.cut(found.start(), _UNCLOSED)
                    self.depth = 1
                case b"{" | b"[":
                    self.depth += 1
                case _:
                    self.depth -= 1
                    if self.depth == 0:
                        yield self.cut(self.at)

    def _end_string(self) -> bool:
        """Advance to the end of the string. Return False if the buffer ends before."""
        run = _STRING_RUN.match(self.buffer, self.at)
        self.at = run.end() if run else self.at
        if self.at == len(self.buffer) or self.buffer[self.at : self.at + 1] == b"\\":
            return False
        self.at += 1
        self.in_string = False
        return True

    def _is_next_object(self, opening: int) -> bool:
        """Return whether a bracket inside an object can only be the beginning of the next one."""
        before = self.buffer[max(self.start, opening - _LOOK_BACK) : opening]
        return before.rstrip().endswith(b"}") or (self.indented and before.endswith(b"\n"))

    def _between(self, end: int) -> Iterator[RawRow]:
        if self.buffer[self.start : end].replace(BOM, b"").strip(_SEPARATORS):
            yield self.cut(end, _BETWEEN)

    def finish(self, damage: Damaged | None) -> Iterator[RawRow]:
        """Yield the last row, after the last chunk was fed, if anything is left."""
        rest = self.buffer[self.start :].strip()[:KEPT_BYTES]
        if damage is not None:
            yield RawRow(self.number + 1, rest, str(damage))
        elif self.depth:
            yield RawRow(self.number + 1, rest, _CUT_OFF)
        else:
            yield from self._between(len(self.buffer))


def objects(chunks: Iterator[bytes], indented: bool = False) -> Iterator[RawRow]:
    """Return the objects. If the stream is damaged or cut off, the last row carries the reason.

    `indented` is whether lines inside an object begin with a space, so that a bracket at the start of a line begins an
    object.
    """
    return _ObjectCutter(indented).rows(chunks)
