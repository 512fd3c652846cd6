"""How busy a host is, once a second: what its sampler, a light actor, reads and keeps.

The whole host is measured, whoever keeps it busy: all its cores, whatever a container may use of them, and all its
NVIDIA GPUs, whichever of them a process may see. Imports psutil and nothing else that costs memory.
"""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Sequence
from typing import Any

import psutil

EVERY_S = 1.0
LOOPBACK = ("lo", "lo0")
NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")  # Linux counts guests as user time already

COLUMNS = (
    "cpu_percent",
    "memory_percent",
    "received_mbit_per_s",
    "sent_mbit_per_s",
    "gpu_percent",
    "gpu_memory_percent",
)
Row = tuple[float | None, ...]
"""time.time() and then COLUMNS, of the second before; CPU and GPU percentages are of one core or GPU."""

Answer = tuple[int, int, list[Row]]
"""Readings to a row, the number of the first row that is told, and the rows from there on."""


class Sampler:
    """The actor. Its thread reads from the start on; nothing but `rows` is asked of it.

    Args:
        most: rows to keep at most.
    """

    def __init__(self, most: int, every_s: float = EVERY_S):
        self._timeline, self._lock, self._every_s = Timeline(most), threading.Lock(), every_s
        threading.Thread(target=self._sample, name="raytrain-sampler", daemon=True).start()

    def rows(self, readings_a_row: int, known: int) -> Answer:
        """What is new for somebody who has `known` rows of so many readings."""
        with self._lock:
            return self._timeline.news(readings_a_row, known)

    def _sample(self) -> None:
        host = HostMeter()
        due = time.monotonic()
        while True:
            due = max(due + self._every_s, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0.01))
            row = host.read()
            with self._lock:
                self._timeline.add(row)


class Timeline:
    """Rows of equal weight, at most `most`: a long one has means of 2, 4, 8 … readings in place of each."""

    def __init__(self, most: int):
        assert most > 1 and most % 2 == 0, "rows are halved in pairs"
        self.rows: list[Row] = []
        self.readings_a_row = 1
        self._most, self._unfinished = most, []

    def add(self, row: Row) -> None:
        self._unfinished.append(row)
        if len(self._unfinished) < self.readings_a_row:
            return
        self.rows.append(mean_row(self._unfinished))
        self._unfinished = []
        if len(self.rows) > self._most - 1:
            self.rows, self.readings_a_row = halved(self.rows), 2 * self.readings_a_row

    def news(self, readings_a_row: int, known: int) -> Answer:
        """For a copy that has `known` rows of so many readings; all rows when these have become other ones."""
        first = known if readings_a_row == self.readings_a_row else 0
        return self.readings_a_row, first, self.rows[first:]

    def take(self, answer: Answer) -> None:
        """Bring a copy up to date with what `news` of the original said."""
        self.readings_a_row, first, rows = answer
        self.rows[first:] = rows


def mean_row(rows: Sequence[Row]) -> Row:
    """Of rows that follow each other, at the time of the last; None where one of them has no figure."""
    columns = list(zip(*rows, strict=True))[1:]
    return rows[-1][0], *(None if None in column else sum(column) / len(column) for column in columns)


def halved(rows: Sequence[Row]) -> list[Row]:
    """The means of pairs; an odd last row stays as it is."""
    return [mean_row(rows[first : first + 2]) for first in range(0, len(rows), 2)]


class HostMeter:
    """Reads this host's counters; what goes by time is since the reading before."""

    def __init__(self) -> None:
        self._at, self._busy_s, self._moved = time.monotonic(), _busy_s(), _bytes_moved()
        self._gpus = find_gpus()

    def read(self) -> Row:
        now, busy_s, moved = time.monotonic(), _busy_s(), _bytes_moved()
        elapsed = max(now - self._at, 1e-6)
        cpu = max(100 * (busy_s - self._busy_s) / elapsed, 0.0)
        # an interface that came or went in between has nothing to be compared with
        received, sent = (
            sum(max(moved[name][way] - self._moved[name][way], 0) for name in moved.keys() & self._moved.keys())
            * 8e-6
            / elapsed
            for way in (0, 1)
        )
        self._at, self._busy_s, self._moved = now, busy_s, moved
        gpu = self._gpus.read() if self._gpus else (None, None)
        return time.time(), cpu, psutil.virtual_memory().percent, received, sent, *gpu


class Gpus:
    """All NVIDIA GPUs of this host, by NVML (https://docs.nvidia.com/deploy/nvml-api), ready for use."""

    def __init__(self, nvml: Any):
        self._nvml = nvml
        self._handles = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]

    def read(self) -> tuple[float | None, float | None]:
        """Percent busy and percent of memory in use, summed over the GPUs: 100 is one; None where NVML does not tell,
        as of a GPU that is shared out as MIG instances."""
        return self._sum(self._busy), self._sum(self._memory)

    def _sum(self, figure: Any) -> float | None:
        if not self._handles:
            return None
        try:
            return float(sum(figure(handle) for handle in self._handles))
        except self._nvml.NVMLError:
            return None

    def _busy(self, handle: Any) -> float:
        return self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu

    def _memory(self, handle: Any) -> float:
        memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
        return 100 * memory.used / memory.total


def find_gpus() -> Gpus | None:
    """None where there is no driver, or it does not answer.

    Through the copy of nvidia-ml-py that is part of Ray: what is staged for SageMaker leaves packages of that name to
    the image, which need not have this one.
    """
    try:
        ctypes.CDLL("libnvidia-ml.so.1")  # the driver's; looked for first, since the package is large
    except OSError:
        return None
    from ray._private.thirdparty import pynvml

    try:
        pynvml.nvmlInit()
        return Gpus(pynvml)
    except pynvml.NVMLError:
        return None


def _busy_s() -> float:
    """Core seconds that all cores together have worked; finer than psutil.cpu_percent, which rounds to a thousandth of
    all cores."""
    times = psutil.cpu_times()._asdict()
    return sum(seconds for name, seconds in times.items() if name not in NOT_BUSY)


def _bytes_moved() -> dict[str, tuple[int, int]]:
    """Of each interface but loopback, received and sent. Traffic between emulated nodes is loopback, and left out."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    return {name: (c.bytes_recv, c.bytes_sent) for name, c in counters.items() if name not in LOOPBACK}
