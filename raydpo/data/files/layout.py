"""Detect how the rows of a text file are laid out, from its beginning, and cut the file into them."""

import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from raydpo.data.files import json_rows
from raydpo.data.files.json_objects import objects
from raydpo.data.files.json_rows import BOM, RawRow, elements, lines
from raydpo.data.files.streams import Damaged, ShardStream, text_chunks

HEAD_BYTES = 1 << 16
"""Minimum size of the beginning that is looked at, unless the file is shorter. It also has a line end, if the first
line is a row that may be read at all."""

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_UTF16 = "bad UTF-8: the file is UTF-16 or UTF-32; convert it, for example with `iconv -f UTF-16 -t UTF-8 OLD > NEW`"
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_WRAPPER = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*\{\s*(?:" + _TEXT + rb"\s*:\s*(?:" + _TEXT + rb"|[-+.\w]+)\s*,\s*)*"
    rb'"(?:data|train|test|validation|rows|examples|instances|records|items)"\s*:\s*(?=\[\s*\{)',
    re.DOTALL,
)
"""Matches the beginning of an object whose first list is under a name that exports give to their rows, up to that list.
No dialect has a column of such a name, so that a row is never taken for a wrapper."""


@dataclass(frozen=True)
class Layout:
    """How rows stand in a text file."""

    name: str
    """One of lines, array, wrapped array (the value of a key of one object), objects, utf-16."""
    skipped: int = 0
    """Number of bytes before a wrapped array."""
    indented: bool = False
    """Whether the second line begins with a space or tab; see `objects`."""


def text_rows(stream: ShardStream) -> Iterator[RawRow]:
    """Yield the rows of a text file in the layout that its beginning has; the file's name does not matter."""
    head, complete = _head(stream)
    layout = layout_of(head, complete)
    stream.seek(0)
    match layout.name:
        case "array":
            yield from elements(text_chunks(stream))
        case "wrapped array":
            yield from elements(_without_start(text_chunks(stream), layout.skipped), wrapped=True)
        case "objects":
            yield from objects(text_chunks(stream), layout.indented)
        case "utf-16":
            yield RawRow(1, head[:64], _UTF16)
        case _:
            yield from lines(text_chunks(stream))


def _head(stream: ShardStream) -> tuple[bytes, bool]:
    """Return the beginning of the content, and whether it is the whole content, or all of it that can be read."""
    parts: list[bytes] = []
    size, line_ends = 0, 0
    try:
        for chunk in text_chunks(stream):
            parts.append(chunk)
            size += len(chunk)
            line_ends += chunk.count(b"\n")
            if size >= HEAD_BYTES and (line_ends > 1 or size > json_rows.MAX_ROW_BYTES):
                return b"".join(parts), False
    except Damaged:
        pass  # the reader meets the damage again, and reports it as a bad row
    return b"".join(parts), True


def _without_start(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk[size:]
        size = max(size - len(chunk), 0)


def layout_of(head: bytes, complete: bool) -> Layout:
    """Return the layout of a file that begins with `head`; `complete` is whether that is the whole file.

    Lines are the rule: a file is read as something else only if its first line is no object, and more objects span
    lines or share them than have a line of their own.
    """
    if head.startswith(_UTF16_MARKS) or re.match(rb"[\[{\s]\0[^\0]\0|\0[\[{\s]\0[^\0]", head):
        return Layout("utf-16")
    body = head.removeprefix(BOM).lstrip()
    found = body.split(b"\n")
    whole = [line.strip() for line in (found if complete else found[:-1]) if line.strip()]
    first = whole[0] if whole else b""
    if body.startswith(b"["):
        return Layout("lines" if _lists_on_lines(whole) else "array")
    if _parses(first, dict) and (len(whole) > 1 or not complete):
        return Layout("lines")
    if wrapper := _WRAPPER.match(head):
        return Layout("wrapped array", skipped=wrapper.end())
    if _parses(first, object):
        return Layout("lines")
    indented = len(found) > 1 and found[1].startswith((b" ", b"\t"))
    own_lines = set(whole)
    counts = {True: 0, False: 0}
    for row in objects(iter([body]), indented):
        if row.reason is None and _parses(row.content, dict):
            counts[row.content in own_lines] += 1
    if counts[False] > counts[True] or (first == b"{" and not counts[True]):
        return Layout("objects", indented=indented)
    return Layout("lines")


def _lists_on_lines(whole: list[bytes]) -> bool:
    """Return whether the lines of a file that begins with a list are rows each, instead of parts of one array."""
    if len(whole) > 1 and _parses(whole[0], list) and whole[1].startswith((b"[", b"{")):
        return True
    # In an array, a comma stands between objects. So the first line is a broken row if two lines are whole objects.
    first_objects = [_parses(line, dict) for line in whole[1:64]]
    return any(one and other for one, other in itertools.pairwise(first_objects))


def _parses(content: bytes, kind: type) -> bool:
    """Return whether content is JSON of this type, apart from bytes that are not UTF-8."""
    try:
        return isinstance(json.loads(content.decode("utf-8", errors="replace")), kind)
    except (ValueError, RecursionError):
        return False
