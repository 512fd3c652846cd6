"""How much of this machine's CPUs a simulated host may use."""

from __future__ import annotations

from pathlib import Path

from raytrain.errors import ClusterError

CPU_PERIOD_US = 100_000
CGROUPS = Path("/sys/fs/cgroup")


def cgroup(name: str, cpus: float) -> Path:
    """A cgroup that may use so many CPUs, of version 1 or 2.

    Raises:
        ClusterError: this machine does not allow one.
    """
    version_1 = (CGROUPS / "cpu" / "cpu.cfs_quota_us").exists() or (CGROUPS / "cpu" / "cgroup.procs").exists()
    folder = (CGROUPS / "cpu" if version_1 else CGROUPS) / name
    quota = str(int(cpus * CPU_PERIOD_US))
    try:
        if not version_1:
            (CGROUPS / "cgroup.subtree_control").write_text("+cpu")
        folder.mkdir()
        if version_1:
            (folder / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
            (folder / "cpu.cfs_quota_us").write_text(quota)
        else:
            (folder / "cpu.max").write_text(f"{quota} {CPU_PERIOD_US}")
    except OSError as error:
        raise ClusterError(f"this machine does not allow a CPU quota: {error}") from None
    return folder
