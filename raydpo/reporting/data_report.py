"""Print what jobs/inspect_data.py finds: counts, pairs as a model sees them, and bad rows with their reasons."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from raydpo.data.dialects.pair import kind_of
from raydpo.data.inspection import SIDES, ShardReport, ShownPair
from raydpo.data.quarantine import BadRow
from raydpo.reporting.console import TITLE, print_line

SHOWN_CHARACTERS = 800
"""Number of characters of a text that are printed; of a longer one, the middle is left out."""
SHOWN_IDS = 12
"""Number of token ids that are printed of a longer sequence."""


def heading(name: str) -> str:
    """Return the line above what is printed of a file."""
    return f"== {name} ".ljust(100, "=")


def print_shard(report: ShardReport, unit: str) -> None:
    """Print what is in a shard: its dialect, some pairs, the bad rows by kind, and the lengths."""
    print(f"\n{heading(report.shard.name)}")
    print_line("File", report.shard.url)
    if not report.rows:
        print("error: the file has no rows")
        return
    if report.pairs:
        print_counts([report])
    else:
        print_unusable(report)
    for pair in report.shown:
        print_pair(pair, unit)
    if report.pairs:
        print()
        print_lengths([report], unit)


def print_unusable(report: ShardReport) -> None:
    """Print in one line why a shard has no pairs, and below it the row, and other kinds of fault if there are any."""
    first, *others = report.bad
    rows = f"{report.rows:,} rows (dialect {report.dialect})"
    print(f"error: none of its {rows} can be trained on; row {first.row}: {visible(first.reason)}")
    print_content(first)
    for row in others:
        print_line("Quarantine", f"{report.reasons[kind_of(row.reason)]:,} {kind_of(row.reason)}")


def print_counts(reports: Sequence[ShardReport]) -> None:
    """Print the numbers of rows, and each kind of bad row with its first example in a shard that has pairs."""
    pairs, rows, cut = (sum(getattr(part, name) for part in reports) for name in ("pairs", "rows", "cut"))
    reasons = sum((part.reasons for part in reports), Counter[str]())
    dialects = ", ".join(dict.fromkeys(part.dialect for part in reports if part.dialect))
    print_line("Rows", f"{rows:,} read (dialect {dialects}) = {pairs:,} pairs + {reasons.total():,} to quarantine")
    if cut:
        print_line("Truncated", f"{cut:,} pairs")
    for kind, count in reasons.most_common():
        found = [row for part in reports if part.pairs for row in part.bad if kind_of(row.reason) == kind]
        if not found:  # the reason stands where the shard is
            print_line("Quarantine", f"{count:,} {kind}")
            continue
        place = f"first in row {found[0].row} of {found[0].shard}"
        print_line("Quarantine", f"{count:,} {kind}, {place}: {visible(found[0].reason)}")
        print_content(found[0])


def print_content(row: BadRow) -> None:
    """Print the content of a bad row, shortened."""
    print_line("", f"row: {visible(shortened(row.content, 200))}")


def print_pair(pair: ShownPair, unit: str) -> None:
    """Print the texts of a pair with their boundaries, their token ids, and what is missing."""
    print(f"\n-- row {pair.row} ".ljust(60, "-"))
    for place, (name, text) in enumerate(zip(SIDES, pair.texts, strict=True)):
        amount = len(pair.ids[place]) if pair.ids else len(text)
        print_line(name, f"[{amount:,} {unit}]\n{marked(text)}")
        if pair.ids:
            print_line("", f"ids {_some(pair.ids[place].tolist())}")
    for note in pair.notes:
        print_line("note", visible(shortened(note, 500)))


def _some(ids: Sequence[int]) -> str:
    if len(ids) <= SHOWN_IDS:
        return " ".join(map(str, ids))
    return f"{' '.join(map(str, ids[: SHOWN_IDS - 4]))} ... {' '.join(map(str, ids[-4:]))}"


def marked(text: str) -> str:
    """Return a text for the terminal, each line between bars, so that blanks and line ends are seen."""
    shown = shortened(text, SHOWN_CHARACTERS)
    return "\n".join(f"|{visible(line)}{'⏎' if more else '|'}" for line, more in _lines(shown))


def _lines(text: str) -> Iterable[tuple[str, bool]]:
    """Yield each line, and whether a line end follows."""
    lines = text.split("\n")
    return ((line, place < len(lines) - 1) for place, line in enumerate(lines))


def shortened(text: str, limit: int) -> str:
    """Return a text, without its middle if it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    return f"{text[: limit * 2 // 3]} [... {len(text) - limit:,} characters ...] {text[-(limit // 3) :]}"


def visible(text: str) -> str:
    """Return a text in one line, with control characters and what cannot be encoded as escapes."""
    safe = text.encode("utf-8", "backslashreplace").decode()
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", lambda sign: repr(sign[0])[1:-1], safe)


def print_lengths(reports: Sequence[ShardReport], unit: str) -> None:
    """Print median, 95 % quantile and maximum of the lengths before truncation."""
    print(f"{'Lengths':<{TITLE}} {'median':>8}{'95%':>8}{'longest':>9}  {unit}, before truncation")
    for name, values in lengths_by_name(reports).items():
        middle, high = np.quantile(values, (0.5, 0.95))
        print(f"{'':<{TITLE}} {int(middle):>8,}{int(high):>8,}{max(values):>9,}  {name}")


def lengths_by_name(reports: Sequence[ShardReport]) -> dict[str, list[int]]:
    """Return the lengths of all pairs by part; the whole is prompt + the longer completion, as in max_length."""
    found = [lengths for report in reports for lengths in report.lengths]
    return {
        "prompt": [prompt for prompt, _, _ in found],
        "chosen": [chosen for _, chosen, _ in found],
        "rejected": [rejected for _, _, rejected in found],
        "prompt + longer completion": [prompt + max(chosen, rejected) for prompt, chosen, rejected in found],
    }


def print_total(reports: Sequence[ShardReport]) -> None:
    """Print the counts over all files."""
    with_rows = [report for report in reports if report.rows]
    print(f"\n{heading('all files')}")
    if with_rows:
        print_counts(with_rows)
