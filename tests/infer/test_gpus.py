"""What follows from tasks that share GPUs."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.infer.streams.gpus import GpuTasks, even_blocks, share_gpus


@pytest.mark.parametrize(
    ("tasks_per_gpu", "gpus", "cpus", "expected"),
    [
        (1, 1, 8, GpuTasks(1, 1.0, 8)),
        (2, 4, 48, GpuTasks(8, 0.5, 6)),  # g5.12xlarge
        (3, 1, 8, GpuTasks(3, 0.3333, 2)),
        (8, 1, 4, GpuTasks(8, 0.125, 0.5)),
        (7, 1, 1, GpuTasks(7, 0.1428, 0.1428)),
    ],
)
def test_shares(tasks_per_gpu, gpus, cpus, expected):
    assert share_gpus(tasks_per_gpu, gpus, cpus) == expected


@given(st.integers(1, 64), st.integers(1, 16), st.integers(1, 256))
def test_so_many_as_asked_for_fit(tasks_per_gpu, gpus, cpus):
    """In the steps of 1/10,000 in which Ray counts; one more does not fit on a GPU."""
    found = share_gpus(tasks_per_gpu, gpus, cpus)
    steps = round(found.gpus * 10_000)
    assert found.gpus == steps / 10_000
    assert tasks_per_gpu * steps <= 10_000 < (tasks_per_gpu + 1) * steps
    assert found.count * round(found.cpus * 10_000) <= cpus * 10_000


@pytest.mark.parametrize(
    ("samples", "most", "tasks", "batch_size", "rows"),
    [
        (1000, 256, 8, 32, 128),  # a block each: 7 x 128 and 104
        (10_000, 256, 8, 32, 256),  # 5 rounds of 8: 250, and the next whole batches
        (10, 256, 4, 32, 32),
        (100, 16, 2, 32, 13),  # 4 rounds; no block holds a batch
        (0, 256, 2, 32, 32),
    ],
)
def test_blocks(samples, most, tasks, batch_size, rows):
    assert even_blocks(samples, most, tasks, batch_size) == rows


@given(st.integers(1, 100_000), st.integers(1, 1000), st.integers(1, 32), st.integers(1, 64))
def test_all_tasks_have_as_many_blocks(samples, most, tasks, batch_size):
    """But for what whole batches take away, no task has a block more than the least that `most` allows."""
    rows = even_blocks(samples, most, tasks, batch_size)
    assert 1 <= rows <= most
    step = batch_size if batch_size <= most else 1
    assert rows % step == 0
    rounds = math.ceil(samples / (most // step * step * tasks))
    assert math.ceil(samples / rows) <= rounds * tasks
