"""Describes the machine and the package versions that a benchmark ran on."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "transformers", "trl", "ray", "deepspeed", "tokenizers")


def describe(threads: int, gpu: bool) -> dict[str, str]:
    """Return processor, cores, memory, GPU and versions as text, by name."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    kilobytes = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    description = {
        "processor": names[0] if names else platform.machine(),
        "cores": f"{os.cpu_count()}, of which {threads} are used",
        "memory": f"{kilobytes / 2**20:.0f} GiB",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    if gpu:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        description["gpu"] = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    return description


def title(description: dict[str, str]) -> str:
    """Return a short description of the machine."""
    device = description.get("gpu") or f"{description['processor']}, {description['cores'].split(',')[0]} cores"
    return f"{device}, {description['memory']}"


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
