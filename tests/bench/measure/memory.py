"""Runs a command and measures its time, the memory of each of its processes, and that of all of them together."""

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
"""Seconds between searches of /proc for new processes."""
GROWTH = 1.02
"""Factor by which the sum of resident sizes (RSS) must grow before the sum of proportional sizes (PSS) is taken again.

The kernel walks the memory of each process to compute PSS, which would slow down the measured command if done at every
tick."""


@dataclass
class Peaks:
    """The memory peaks of a command's processes."""

    names: dict[int, set[str]] = field(default_factory=dict)
    """All command lines that each process had, by process id."""
    own: dict[int, int] = field(default_factory=dict)
    """Peak resident memory of each process in bytes (VmHWM), by process id."""
    together: int = 0
    """Peak memory of all processes together in bytes, with shared pages counted once (PSS)."""
    gpu: int = 0
    """Peak memory in use on the first GPU in bytes, by any process; 0 without a GPU."""

    def of(self, *parts: str) -> int:
        """Return the highest own peak of the processes with all these parts in a command line; 0 if there is none."""
        return max((self.own[pid] for pid, names in self.names.items() if _any_has(names, parts)), default=0)


def _any_has(names: set[str], parts: Sequence[str]) -> bool:
    return any(all(part in name for part in parts) for name in names)


@dataclass(frozen=True)
class Watched:
    """A command that has ended successfully."""

    started: float
    """Start time, in seconds since the epoch."""
    seconds: float
    root: int
    """Process id of the command."""
    peaks: Peaks


class CommandFailed(Exception):
    """A command ended with a status other than 0."""


def watch(
    command: Sequence[str],
    log: Path,
    *,
    env: Mapping[str, str],
    gpu: bool = False,
    on_tick: Callable[[], None] = lambda: None,
) -> Watched:
    """Run a command to its end, with its output in `log`; `on_tick` is called at every tick.

    Raises CommandFailed, with the last lines of the log, if the command fails.
    """
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
    peaks.together = max(peaks.together, *peaks.own.values())  # only VmHWM contains a peak between two ticks
    return peaks


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Stop the command as Ctrl-C would, so that it stops its own child processes; kill the group if it does not end."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """Return the ids of a process and of all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The name, in parentheses, may contain any character; the parent is the second field after it.
                parent = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, ()))
    return found


def _status(pid: int) -> dict[str, int]:
    """Return the sizes in /proc/PID/status in bytes, by name; empty if the process has ended."""
    with contextlib.suppress(OSError):
        return _sizes(Path(f"/proc/{pid}/status").read_text())
    return {}


def _proportional(pid: int) -> int:
    """Return the proportional set size (PSS) of a process in bytes; 0 if it has ended."""
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
