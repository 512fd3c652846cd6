"""Which shapes a plan looks at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Bounds:
    """What shapes to look at.

    Attributes:
        families: of instance types, such as `g5`; None for all.
        max_usd_per_hour, max_hours: of a shape and of the whole job; None for no limit.
        max_gpu_hosts, max_cpu_hosts: hosts of one type.
        reserved_cpus: of a training host; None for one a GPU, at most half.
        cpu_groups_only: the job's placement: training hosts prepare nothing.
        startup_s: of a job on SageMaker; None for the profile's, if it was measured there, or none.
    """

    region: str
    families: tuple[str, ...] | None = None
    max_usd_per_hour: float | None = None
    max_hours: float | None = None
    max_gpu_hosts: int = 4
    max_cpu_hosts: int = 16
    reserved_cpus: int | None = None
    cpu_groups_only: bool = False
    startup_s: float | None = None
