"""The command line of jobs/reference_store.py: list, verify and prune stored scores and tokenized blocks."""

import argparse
import sys
import time
from collections.abc import Sequence

from raydpo.config import DataConfig
from raydpo.errors import RaydpoError
from raydpo.reference.maintenance import (
    StoredReference,
    StoredTokens,
    damaged,
    prunable,
    prune,
    stored_references,
    stored_tokens,
)
from raydpo.reference.store import SCORED
from raydpo.runtime import storage
from raydpo.runtime.storage import File

GIGABYTE = 10**9


def main(argv: Sequence[str] | None = None) -> int:
    """List, verify or prune; return the exit status, 1 where blocks are damaged or the store cannot be read.

    With `--identity`, only the scores of that reference are concerned, and no tokenized blocks.
    """
    flags = _parser().parse_args(argv)
    cache_dir = storage.absolute(flags.cache_dir)
    try:
        found, tokens = stored_references(cache_dir), stored_tokens(cache_dir)
        if flags.identity:
            found, tokens = [part for part in found if part.identity.startswith(flags.identity)], StoredTokens((), ())
        if flags.command == "list":
            return _list(cache_dir, found, tokens)
        return _verify(found, tokens) if flags.command == "verify" else _prune(cache_dir, found, tokens, flags)
    except RaydpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--cache_dir", default=DataConfig().cache_dir, help="cache_dir of the jobs (default: %(default)s)"
    )
    common.add_argument("--identity", help="only this reference: its digest, or the beginning of it")
    parser = argparse.ArgumentParser(prog="python jobs/reference_store.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "list", parents=[common], help="list the references and the tokenized blocks with their number, size and age"
    )
    commands.add_parser(
        "verify",
        parents=[common],
        help="read every block; the next run scores a damaged one again, and a tokenized one is to be deleted",
    )
    pruning = commands.add_parser(
        "prune",
        parents=[common],
        help="remove blocks, scored and tokenized, by age or size, or of one reference; not while a job reads them",
    )
    pruning.add_argument("--older_than_days", type=float, help="remove blocks that were written longer ago than this")
    pruning.add_argument(
        "--max_gigabytes", type=float, help="remove the oldest blocks until scores and tokens take no more than this"
    )
    pruning.add_argument("--dry_run", action="store_true", help="only print what would be removed")
    return parser


def _list(cache_dir: str, found: list[StoredReference], tokens: StoredTokens) -> int:
    print(f"{'identity':<26}{'blocks':>9}{'GB':>9}  {'written':<26}model")
    for stored in found:
        print(_line(stored.identity, stored.blocks, stored.bytes, stored.model))
    if tokens.files:
        images = f", {len(tokens.images):,} images" if tokens.images else ""
        print(_line("tokenized", tokens.blocks, tokens.bytes, f"{len(tokens.entries):,} shards in the index{images}"))
    print(f"{_blocks(found)} in {storage.join(cache_dir, SCORED)}")
    return 0


def _line(name: str, blocks: Sequence[File], size: int, note: str) -> str:
    days = [time.strftime("%Y-%m-%d", time.localtime(block.modified)) for block in blocks]
    span = f"{days[0]} to {days[-1]}" if days else "nothing"
    return f"{name:<26}{len(blocks):>9,}{size / GIGABYTE:>9.3f}  {span:<26}{note}"


def _verify(found: list[StoredReference], tokens: StoredTokens) -> int:
    faults = damaged([*(block for stored in found for block in stored.blocks), *tokens.blocks])
    for _, fault in faults:
        print(fault)
    tokenized = f" and {len(tokens.blocks):,} tokenized blocks" if tokens.blocks else ""
    print(f"{_blocks(found)}{tokenized} read, {len(faults):,} damaged")
    return 1 if faults else 0


def _prune(cache_dir: str, found: list[StoredReference], tokens: StoredTokens, flags: argparse.Namespace) -> int:
    limited = flags.older_than_days is not None or flags.max_gigabytes is not None
    if not limited and not flags.identity:
        print("error: prune needs a limit: give --older_than_days, --max_gigabytes or --identity", file=sys.stderr)
        return 2
    if limited:
        most = None if flags.max_gigabytes is None else int(flags.max_gigabytes * GIGABYTE)
        chosen = prunable([*found, tokens], older_than_days=flags.older_than_days, max_bytes=most)
    else:
        chosen = [block for stored in found for block in stored.blocks]
    of_tokens = set(tokens.files)
    if not flags.dry_run:
        prune(cache_dir, chosen)
    removed = "would be removed" if flags.dry_run else "were removed"
    for kind, tokenized in (("blocks", False), ("tokenized files", True)):
        files = [file for file in chosen if (file in of_tokens) == tokenized]
        if files or not tokenized:
            size = sum(file.bytes for file in files) / GIGABYTE
            print(f"{len(files):,} {kind}, {size:.3f} GB, {removed}")
    return 0


def _blocks(found: Sequence[StoredReference]) -> str:
    blocks, size = sum(len(stored.blocks) for stored in found), sum(stored.bytes for stored in found)
    return f"{blocks:,} blocks, {size / GIGABYTE:.3f} GB"
