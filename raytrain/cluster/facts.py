"""What this machine is and which versions run on it, for the record."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("raytrain", "ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "opencv-python-headless")


def versions() -> dict[str, str]:
    """Python and the packages that matter, those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def cpu_model() -> str:
    """As Linux names it, or the architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def memory_bytes() -> int:
    return psutil.virtual_memory().total


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(psutil.Process().cpu_affinity())


def platform_name() -> str:
    return platform.platform()


def gpu_names() -> list[str]:
    """NVIDIA GPUs of this machine, as their driver names them."""
    names = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                names.append(line.partition(":")[2].strip())
    return names
