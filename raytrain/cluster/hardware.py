"""What this machine is and which versions run on it, for the record."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("raytrain", "ray", "torch", "torchvision", "timm", "numpy", "pyarrow", "opencv-python-headless")
OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Python and the packages that matter, and `more`, those that are installed."""
    found = {"python": platform.python_version()}
    for name in (*PACKAGES, *more):
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


def usable_cpus(process: Path = OWN_CGROUPS, mounted: Path = CGROUPS) -> int:
    """Whole CPUs that this process may keep busy: its cores, or the quota of its cgroups (version 1 or 2) if lower."""
    cores = len(psutil.Process().cpu_affinity())
    return max(int(min([cores, *_limits("cpu", _cpu_quota, process, mounted)])), 1)


def memory_bytes(process: Path = OWN_CGROUPS, mounted: Path = CGROUPS) -> int:
    """Memory that this process may fill: the machine's, or the limit of its cgroups (version 1 or 2) if lower."""
    return int(min([psutil.virtual_memory().total, *_limits("memory", _memory_limit, process, mounted)]))


def _limits(controller: str, read: Callable[[Path], float | None], process: Path, mounted: Path) -> list[float]:
    """Of a process's own cgroup and of all above it; containers see their own as the root."""
    found = []
    lines = process.read_text(encoding="utf-8").splitlines() if process.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        roots = [mounted / controllers, mounted / controller] if controllers else [mounted, mounted / "unified"]
        parts = [part for part in path.split("/") if part]
        for folder in {root.joinpath(*parts[:n]) for root in roots for n in range(len(parts) + 1)}:
            found += filter(None, [read(folder)])
    return found


def _cpu_quota(folder: Path) -> float | None:
    """CPUs that one cgroup may use; None for no limit."""
    try:
        if (folder / "cpu.max").is_file():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        return None if quota in ("max", "-1") else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _memory_limit(folder: Path) -> float | None:
    """Bytes that one cgroup may fill; None for no limit, for which version 1 says a number beyond any machine's."""
    name = "memory.max" if (folder / "memory.max").is_file() else "memory.limit_in_bytes"
    try:
        limit = (folder / name).read_text().strip()
        return None if limit == "max" else int(limit)
    except (OSError, ValueError):
        return None


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
