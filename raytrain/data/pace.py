"""How the batches of a plan are cut into blocks and dealt out to tasks. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK_S, BLOCK_BYTES = 0.1, 16 << 20  # of several small batches in one block
AHEAD_S, AHEAD_BYTES = 0.35, 256 << 20
TASK_S, SHORT_TASK_S = 30.0, 5.0  # hides the 0.2 s between two tasks on a CPU
MAX_BATCHES_A_BLOCK = 64
MAX_BLOCKS_A_TASK = 256


@dataclass(frozen=True)
class Pace:
    """How the batches are cut into blocks and tasks, from what a batch costs.

    Attributes:
        batches_per_block: ready batches of one block; more than one where they cost less than handing a block over.
        blocks_per_task: at most; fewer towards the end, so that all CPUs end together.
        least_blocks: of a task, but for what does not fill one.
        blocks_ahead: that a task may be ahead of Ray Data, which collects ten times a second.
    """

    batches_per_block: int = 1
    blocks_per_task: int = MAX_BLOCKS_A_TASK
    least_blocks: int = 1
    blocks_ahead: int = 2

    @classmethod
    def of(cls, batch_s: float, batch_bytes: float) -> Pace:
        """For batches that take `batch_s` seconds of a CPU and `batch_bytes` in the object store."""
        group = min(BLOCK_S / max(batch_s, 1e-6), BLOCK_BYTES / max(batch_bytes, 1))
        group = int(np.clip(group, 1, MAX_BATCHES_A_BLOCK))
        block_s, block_bytes = max(batch_s * group, 1e-6), max(batch_bytes * group, 1)
        ahead = min(AHEAD_S / block_s, AHEAD_BYTES / block_bytes)
        longest = int(np.clip(TASK_S / block_s, 1, MAX_BLOCKS_A_TASK))
        least = int(np.clip(SHORT_TASK_S / block_s, 1, longest))
        return cls(group, longest, least, int(np.clip(ahead, 2, 16)))


def cut_blocks(places: np.ndarray, batches_per_block: int) -> np.ndarray:
    """Runs of batches as blocks, int64 (num_blocks, 3) of (segment, first batch, count); none crosses a segment.

    The blocks of a run are as nearly equal as they can be, so that the tasks that share them are too. `places` is int64
    (num_batches, 2) of (segment, batch), in order.
    """
    if not len(places):
        return np.zeros((0, 3), dtype=np.int64)
    follows = (np.diff(places[:, 0]) == 0) & (np.diff(places[:, 1]) == 1)
    starts = np.concatenate([[0], np.flatnonzero(~follows) + 1])
    sizes = np.diff(np.append(starts, len(places)))
    numbers = -(-sizes // batches_per_block)  # blocks of each run
    runs = zip(starts, sizes, numbers, strict=True)
    firsts = np.concatenate([start + np.arange(number) * size // number for start, size, number in runs])
    counts = np.diff(np.append(firsts, len(places)))
    return np.column_stack([places[firsts], counts])


def deal_tasks(blocks: np.ndarray, slots: int, blocks_per_task: int, least: int = 1) -> list[np.ndarray]:
    """Which blocks each task prepares: rows of `blocks`.

    Tasks that run side by side take every `slots`-th block of a window, so that batches come out nearly in plan order
    whatever the number of hosts. A window is at most half of what is left: the last tasks are short, and no CPU waits
    long for another at the end.
    """
    tasks, first = [], 0
    while first < len(blocks):
        size = int(np.clip(-(-(len(blocks) - first) // (2 * slots)), least, blocks_per_task))
        window = blocks[first : first + slots * size]
        tasks += [window[number::slots] for number in range(slots) if len(window[number::slots])]
        first += slots * size
    return tasks


def batches_of_tasks(tasks: list[np.ndarray]) -> np.ndarray:
    """Every batch of some tasks in order, int64 (num_batches, 2) of (segment, batch)."""
    blocks = np.concatenate([np.zeros((0, 3), dtype=np.int64), *(task[:, :3] for task in tasks)])
    segments, firsts, counts = blocks.T
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    batches = np.column_stack([np.repeat(segments, counts), np.repeat(firsts, counts) + within])
    return batches[np.lexsort((batches[:, 1], batches[:, 0]))]


def num_batches(tasks: list[np.ndarray]) -> int:
    return sum(int(task[:, 2].sum()) for task in tasks)
