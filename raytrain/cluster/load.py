"""How busy a host is, once a second: what its sampler, a light actor, reads and keeps.

The whole host is measured, whoever keeps it busy: all its cores, whatever a container may use of them, and all its
NVIDIA GPUs, whichever of them a process may see. Imports psutil and nothing else that costs memory.
"""

from __future__ import annotations

import threading
import time

import psutil

from raytrain.ray_internals.devices import find_gpus
from raytrain.record.rows import Answer, Row, Timeline

EVERY_S = 1.0
LOOPBACK = ("lo", "lo0")
NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")  # Linux counts guests as user time already


class Sampler:
    """The actor. Its thread reads from the start on; nothing but `rows` is asked of it.

    Args:
        most: rows to keep at most.
        public_ray: GPUs are read without Ray's own parts.
    """

    def __init__(self, most: int, every_s: float = EVERY_S, public_ray: bool = False):
        self._public_ray = public_ray
        self._timeline, self._lock, self._every_s = Timeline(most), threading.Lock(), every_s
        threading.Thread(target=self._sample, name="raytrain-sampler", daemon=True).start()

    def rows(self, readings_a_row: int, known: int) -> Answer:
        """What is new for somebody who has `known` rows of so many readings."""
        with self._lock:
            return self._timeline.news(readings_a_row, known)

    def _sample(self) -> None:
        host = HostMeter(self._public_ray)
        due = time.monotonic()
        while True:
            due = max(due + self._every_s, time.monotonic())
            time.sleep(max(due - time.monotonic(), 0.01))
            row = host.read()
            with self._lock:
                self._timeline.add(row)


class HostMeter:
    """Reads this host's counters; what goes by time is since the reading before."""

    def __init__(self, public_ray: bool = False) -> None:
        self._at, self._busy_s, self._moved = time.monotonic(), _busy_s(), _bytes_moved()
        self._gpus = find_gpus(public_ray)

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


def _busy_s() -> float:
    """Core seconds that all cores together have worked; finer than psutil.cpu_percent, which rounds to a thousandth of
    all cores."""
    times = psutil.cpu_times()._asdict()
    return sum(seconds for name, seconds in times.items() if name not in NOT_BUSY)


def _bytes_moved() -> dict[str, tuple[int, int]]:
    """Of each interface but loopback, received and sent. Traffic between emulated nodes is loopback, and left out."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    return {name: (c.bytes_recv, c.bytes_sent) for name, c in counters.items() if name not in LOOPBACK}
