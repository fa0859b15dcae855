"""A command watched while it runs: its time, and the memory of each of its processes and of all together."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TICK_S = 0.1
TREE_S = 1.0
"""How often /proc is searched for new processes."""
GROWTH = 1.02
"""What all processes together hold is added up anew each time their plain sizes have grown by this: adding up walks
through the memory of each process, and done all the time it would slow down what is measured."""


@dataclass
class Peaks:
    """What was seen of a command's processes."""

    names: dict[int, set[str]] = field(default_factory=dict)
    """By process: all titles it had."""
    own: dict[int, int] = field(default_factory=dict)
    """By process: most bytes of memory that it ever had in use (VmHWM)."""
    together: int = 0
    """Most bytes of all processes at one time, pages that several of them use counted once (PSS)."""
    gpu: int = 0
    """Most bytes in use on the first GPU, by anyone; 0 without one."""

    def of(self, *parts: str) -> int:
        """The highest own peak among processes that had all these parts in a title; 0 where there was none."""
        return max((self.own[pid] for pid, names in self.names.items() if _any_has(names, parts)), default=0)


def _any_has(names: set[str], parts: Sequence[str]) -> bool:
    return any(all(part in name for part in parts) for name in names)


@dataclass(frozen=True)
class Watched:
    """A command that has ended well."""

    started: float
    """Time of the clock, in seconds since the epoch."""
    seconds: float
    root: int
    """Process id of the command itself."""
    peaks: Peaks


class CommandFailed(Exception):
    """A command ended with another status than 0."""


def watch(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str],
    gpu: bool = False,
    on_tick: Callable[[], None] = lambda: None,
) -> Watched:
    """Run a command to its end, output to `log`. `CommandFailed`, with the last lines of it, where it fails."""
    started = time.time()
    with log.open("w") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **env}, start_new_session=True
        )
        try:
            peaks = _watch(process, gpu, on_tick)
        except BaseException:
            _stop(process)
            raise
    if process.returncode:
        last = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise CommandFailed(f"{' '.join(command)} ended with status {process.returncode}:\n{last}")
    return Watched(started, time.time() - started, process.pid, peaks)


def _watch(process: "subprocess.Popen[bytes]", gpu: bool, on_tick: Callable[[], None]) -> Peaks:
    peaks, tree, searched, highest = Peaks(), [process.pid], 0.0, 0.0
    while process.poll() is None:
        if time.monotonic() - searched > TREE_S:
            tree, searched = descendants(process.pid), time.monotonic()
            if gpu:
                peaks.gpu = max(peaks.gpu, _gpu_bytes())
        sizes = 0
        for pid in tree:
            status = _status(pid)
            peaks.names.setdefault(pid, set()).add(_title(pid))
            peaks.own[pid] = max(peaks.own.get(pid, 0), status.get("VmHWM", 0))
            sizes += status.get("VmRSS", 0)
        if sizes > GROWTH * highest:
            highest = sizes
            peaks.together = max(peaks.together, sum(map(_proportional, tree)))
        on_tick()
        time.sleep(TICK_S)
    on_tick()
    peaks.together = max(peaks.together, *peaks.own.values())  # a peak between two ticks is in VmHWM alone
    return peaks


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """End the command as Ctrl-C would, so that it ends what it started."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """A process and all that it started, and these, and so on."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # the name, in parentheses, may hold anything; the parent is the second field after it
                parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _status(pid: int) -> dict[str, int]:
    """Sizes in bytes that the kernel keeps of a process; empty for one that has ended."""
    with contextlib.suppress(OSError):
        return _sizes(Path(f"/proc/{pid}/status").read_text())
    return {}


def _proportional(pid: int) -> int:
    """Bytes of a process, of shared pages its share."""
    with contextlib.suppress(OSError):
        return _sizes(Path(f"/proc/{pid}/smaps_rollup").read_text()).get("Pss", 0)
    return 0


def _sizes(text: str) -> dict[str, int]:
    lines = (line.split() for line in text.splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}


def _title(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def _gpu_bytes() -> int:
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    used = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return int(used) << 20
