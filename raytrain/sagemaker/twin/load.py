"""How busy simulated hosts are, as CloudWatch would say it: CPU percent, 100 a core, sampled once a second."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import psutil

from raytrain.errors import ClusterError
from raytrain.simulate.hosts import SimulatedHost

EVERY_S = 1.0


@dataclass
class LoadMeter:
    """A context manager around the time to be measured."""

    hosts: Mapping[str, SimulatedHost]
    _samples: dict[str, list[float]] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> LoadMeter:
        self._samples = {name: [] for name in self.hosts}
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def loads(self) -> list[dict[str, Any]]:
        """Mean and maximum of each host."""
        return [
            {"Host": name, "CPUUtilization": {"mean": sum(s) / len(s) if s else 0.0, "max": max(s, default=0.0)}}
            for name, s in self._samples.items()
        ]

    def _sample(self) -> None:
        before: dict[str, float] = {}
        at = time.monotonic()
        while not self._stop.wait(EVERY_S):
            now = time.monotonic()
            for name, host in self.hosts.items():
                used = _cpu_seconds(host)
                if used is not None and name in before and used >= before[name]:
                    self._samples[name].append(100 * (used - before[name]) / (now - at))
                if used is not None:
                    before[name] = used
            at = now


def _cpu_seconds(host: SimulatedHost) -> float | None:
    """Of all processes of the host, those that have ended included: each is counted by whoever waited for it."""
    if host.process is None or host.process.poll() is not None:
        return None
    with contextlib.suppress(psutil.Error, ClusterError):
        first = host.init()
        total = 0.0
        for process in (first, *first.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:4])  # own and of waited-for children, user and system
        return total
    return None
