"""The one place that reads and writes the process environment."""

from __future__ import annotations

import os
from collections.abc import Mapping

# glibc's malloc maps and unmaps every temporary above 128 kB, page fault by page fault, which halves image
# preprocessing; these keep the pages. (glibc caps the second at 32 MiB.)
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

RAY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # how often the controller looks for reports and the end; Ray: 2
    "RAY_health_check_period_ms": "1000",  # a lost node is noticed after 5 s; Ray: 5 x 3 s
    "RAY_health_check_failure_threshold": "5",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}


def prepare_environment() -> dict[str, str]:
    """Set what every process of a run should start with, and return it.

    What the user has set stays. Must run before Ray is imported.
    """
    wanted = {**ALLOCATOR, **RAY}
    for name, value in wanted.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in wanted}


def prepare_own_cluster() -> None:
    """For clusters that raytrain itself starts on this machine: no host of theirs can be preempted."""
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")


def ray_address(environment: Mapping[str, str] | None = None) -> str | None:
    """The Ray cluster that this process was started on, if any."""
    return (os.environ if environment is None else environment).get("RAY_ADDRESS") or None
