"""The command line of jobs/reference_store.py: list, verify and prune the store of reference scores."""

import argparse
import sys
import time
from collections.abc import Sequence

from raydpo.config import DataConfig
from raydpo.errors import RaydpoError
from raydpo.reference.maintenance import StoredReference, damaged, prunable, prune, stored_references
from raydpo.reference.store import SCORED
from raydpo.runtime import storage

GIGABYTE = 10**9


def main(argv: Sequence[str] | None = None) -> int:
    """List, verify or prune; return the exit status, 1 where blocks are damaged or the store cannot be read."""
    flags = _parser().parse_args(argv)
    cache_dir = storage.absolute(flags.cache_dir)
    try:
        found = stored_references(cache_dir)
        if flags.identity:
            found = [stored for stored in found if stored.identity.startswith(flags.identity)]
        return int({"list": _list, "verify": _verify, "prune": _prune}[flags.command](cache_dir, found, flags))
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
        "list", parents=[common], help="list the references with the number, size and age of their blocks"
    )
    commands.add_parser("verify", parents=[common], help="read every block; the next run scores a damaged one again")
    pruning = commands.add_parser(
        "prune",
        parents=[common],
        help="remove blocks, by age, by size or of one reference; not while a job reads them",
    )
    pruning.add_argument("--older_than_days", type=float, help="remove blocks that were scored longer ago than this")
    pruning.add_argument(
        "--max_gigabytes", type=float, help="remove the oldest blocks until the store is no larger than this"
    )
    pruning.add_argument("--dry_run", action="store_true", help="only print what would be removed")
    return parser


def _list(cache_dir: str, found: list[StoredReference], flags: argparse.Namespace) -> int:
    print(f"{'identity':<26}{'blocks':>9}{'GB':>9}  {'scored':<26}model")
    for stored in found:
        days = [time.strftime("%Y-%m-%d", time.localtime(block.modified)) for block in stored.blocks]
        span = f"{days[0]} to {days[-1]}" if days else "nothing"
        size = stored.bytes / GIGABYTE
        print(f"{stored.identity:<26}{len(stored.blocks):>9,}{size:>9.3f}  {span:<26}{stored.model}")
    print(f"{_blocks(found)} in {storage.join(cache_dir, SCORED)}")
    return 0


def _verify(cache_dir: str, found: list[StoredReference], flags: argparse.Namespace) -> int:
    faults = damaged([block for stored in found for block in stored.blocks])
    for _, fault in faults:
        print(fault)
    print(f"{_blocks(found)} read, {len(faults):,} damaged")
    return 1 if faults else 0


def _prune(cache_dir: str, found: list[StoredReference], flags: argparse.Namespace) -> int:
    limited = flags.older_than_days is not None or flags.max_gigabytes is not None
    if not limited and not flags.identity:
        print("error: prune needs a limit: give --older_than_days, --max_gigabytes or --identity", file=sys.stderr)
        return 2
    if limited:
        most = None if flags.max_gigabytes is None else int(flags.max_gigabytes * GIGABYTE)
        chosen = prunable(found, older_than_days=flags.older_than_days, max_bytes=most)
    else:
        chosen = [block for stored in found for block in stored.blocks]
    size = sum(block.bytes for block in chosen) / GIGABYTE
    if not flags.dry_run:
        prune(cache_dir, chosen)
    print(f"{len(chosen):,} blocks, {size:.3f} GB, {'would be' if flags.dry_run else 'were'} removed")
    return 0


def _blocks(found: Sequence[StoredReference]) -> str:
    blocks, size = sum(len(stored.blocks) for stored in found), sum(stored.bytes for stored in found)
    return f"{blocks:,} blocks, {size / GIGABYTE:.3f} GB"
