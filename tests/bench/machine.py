"""The machine and the versions that a benchmark ran on."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "trl", "ray", "deepspeed", "tokenizers")


def describe(threads: int, gpu: bool) -> dict[str, str]:
    """Processor, cores, memory, GPU and versions, as text."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    kilobytes = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    display_name = {
        "processor": names[0] if names else platform.machine(),
        "cores": f"{os.cpu_count()}, of which {threads} are used",
        "memory": f"{kilobytes / 2**20:.0f} GiB",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    if gpu:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        display_name["gpu"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return display_name


def title(display_name: dict[str, str]) -> str:
    """The machine in a few words."""
    device = display_name.get("gpu") or f"{display_name['processor']}, {display_name['cores'].split(',')[0]} cores"
    return f"{device}, {display_name['memory']}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
