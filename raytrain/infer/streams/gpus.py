"""How tasks share the GPUs of a host, and what follows for cores and blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

STEPS = 10_000  # of a resource: what Ray tells apart of one


@dataclass(frozen=True)
class GpuTasks:
    """The tasks of a host.

    Attributes:
        count: of all its GPUs together.
        gpus: of one task, as Ray counts; so many as asked for fit on a GPU, and no more.
        cpus: of one task, as Ray counts; less than one where there are more tasks than cores.
    """

    count: int
    gpus: float
    cpus: float


def share_gpus(tasks_per_gpu: int, gpus: int, cpus: int) -> GpuTasks:
    """
    Args:
        gpus: of the host, at least one.
        cpus: that its tasks may have together.
    """
    count = tasks_per_gpu * gpus
    each = cpus // count if cpus >= count else math.floor(STEPS * cpus / count) / STEPS
    return GpuTasks(count, math.floor(STEPS / tasks_per_gpu) / STEPS, each)


def even_blocks(samples: int, most_rows: int, tasks: int, batch_size: int = 1) -> int:
    """Rows of a block, so that all tasks have as many blocks and end together: the counterpart of Spark's partitions
    in multiples of the GPUs. Whole batches, where a block may hold one.

    Args:
        most_rows: that a block may have.
        tasks: of all hosts together.
    """
    step = batch_size if batch_size <= most_rows else 1
    most = most_rows // step * step
    rounds = max(math.ceil(samples / (most * tasks)), 1)
    rows = max(math.ceil(samples / (rounds * tasks)), 1)
    return math.ceil(rows / step) * step
