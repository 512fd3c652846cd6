"""How busy a GPU is while it trains, as its driver has it: NVML's samples, those of the training time alone.

NVML counts a moment in which any kernel ran. The driver keeps the samples of the last seconds, so that whoever comes
for them now and then misses none.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from raytrain.ray_internals.devices import find_nvml

EVERY_S = 2.0  # the driver keeps about a hundred samples, of a sixth of a second or more
GIVE_UP_S = 5.0  # on a driver that does not answer
LONGEST_S = 2.0  # between two samples; the driver takes one every sixth of a second to every second
COVERED_FROM = 0.5  # of the training time


class Reading(NamedTuple):
    """A sample: `at_s`, as time.time() has it, and the share of the time since the sample before in which a kernel ran;
    None where that is not to be used."""

    at_s: float
    busy: float | None


class BusySource(Protocol):
    """What tells how busy a GPU is."""

    def read(self) -> Sequence[Reading]:
        """What is new since the last call, the oldest first; nothing where it does not tell."""


class BusyShare:
    """From samples and the training time to the share of it in which a kernel ran.

    A sample counts when it lies within training time as a whole: of one that does not, nobody knows on which side the
    kernels ran. Those that are left out, or lost, are taken to be like those that count.
    """

    def __init__(self) -> None:
        self._last_s: float | None = None
        self._open: deque[tuple[float, float, float]] = deque()  # samples: start, end and busy share
        self._trained: deque[tuple[float, float]] = deque()  # start and end; none ends before an open sample does
        self._trained_s = self._covered_s = self._busy_s = 0.0

    def add(self, reading: Reading) -> None:
        """One that is not later than the one before was there already, or is of a clock that was put back."""
        began_s = self._last_s
        if began_s is not None and reading.at_s <= began_s:
            return
        self._last_s = reading.at_s
        if began_s is not None and reading.busy is not None and reading.at_s - began_s <= LONGEST_S:
            self._open.append((began_s, reading.at_s, reading.busy))

    def trained(self, start_s: float, end_s: float) -> None:
        """Training time, by time.time(), in its order; what goes on where the last one ended is one with it."""
        last = self._trained[-1] if self._trained else None
        start_s = max(start_s, last[1]) if last else start_s
        if end_s <= start_s:
            return
        self._trained_s += end_s - start_s
        if last and start_s == last[1]:
            self._trained[-1] = (last[0], end_s)
        else:
            self._trained.append((start_s, end_s))
        self._settle()

    def _settle(self) -> None:
        """Count the samples that no more training time can concern."""
        while self._trained and self._open and self._open[0][1] <= self._trained[-1][1]:
            start_s, end_s, busy = self._open.popleft()
            while self._trained[0][1] < end_s:
                self._trained.popleft()
            if self._trained[0][0] <= start_s:
                self._covered_s += end_s - start_s
                self._busy_s += busy * (end_s - start_s)

    def value(self) -> float | None:
        """None where there are samples of less than COVERED_FROM of the training time."""
        self._settle()
        if not self._covered_s or self._covered_s < COVERED_FROM * self._trained_s:
            return None
        return self._busy_s / self._covered_s


class BusyWatch:
    """Reads a source on a thread of its own, so that a driver that takes its time keeps no kernel waiting."""

    def __init__(self, source: BusySource, every_s: float = EVERY_S):
        self._source, self._every_s, self._share = source, every_s, BusyShare()
        self._readings: deque[Reading] = deque()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read, name="raytrain-busy", daemon=True)
        self._thread.start()

    def trained(self, start_s: float, end_s: float) -> None:
        """See BusyShare."""
        self._take()
        self._share.trained(start_s, end_s)

    def value(self) -> float | None:
        """The busy share so far."""
        self._take()
        return self._share.value()

    def close(self) -> float | None:
        """The busy share of all training time, once the last samples are read."""
        self._over.set()
        self._thread.join(GIVE_UP_S)
        self._take()
        return self._share.value()

    def _take(self) -> None:
        while self._readings:
            self._share.add(self._readings.popleft())

    def _read(self) -> None:
        over = False
        while not over:
            over = self._over.wait(self._every_s)
            self._readings.extend(self._source.read())


class NvmlSource:
    """A GPU's own samples, by NVML (https://docs.nvidia.com/deploy/nvml-api).

    While NVML lists more than one process that computes on the GPU, samples are not to be used: they are of all of
    them. One of those listed is this one, whatever it is called there: in a container NVML may know it by another id.

    Args:
        nvml: the module pynvml, ready for use.
        uuid: the GPU's, as NVML has it, `GPU-…`: CUDA_VISIBLE_DEVICES renumbers.
        alone: only samples of times in which no other process had the GPU are to be used.

    Raises:
        nvml.NVMLError: there is no such GPU.
    """

    def __init__(self, nvml: Any, uuid: str, alone: bool = True):
        self._nvml, self._handle = nvml, nvml.nvmlDeviceGetHandleByUUID(uuid)
        self._seen_us, self._alone = 0, alone

    @property
    def is_shared_out(self) -> bool:
        """As MIG instances, of which NVML has no samples."""
        try:
            return self._nvml.nvmlDeviceGetMigMode(self._handle)[0] == self._nvml.NVML_DEVICE_MIG_ENABLE
        except self._nvml.NVMLError:  # a GPU that knows no MIG
            return False

    def read(self) -> list[Reading]:
        nvml = self._nvml
        try:
            processes = {each.pid for each in nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)}
            _, samples = nvml.nvmlDeviceGetSamples(self._handle, nvml.NVML_GPU_UTILIZATION_SAMPLES, self._seen_us)
        except nvml.NVMLError:  # there is none that is new; or it tells this process nothing
            return []
        found = sorted((each.timeStamp, each.sampleValue.uiVal) for each in samples)
        self._seen_us = max([self._seen_us, *(at_us for at_us, _ in found)])
        usable = len(processes) <= 1 or not self._alone
        return [Reading(at_us / 1e6, percent / 100 if usable else None) for at_us, percent in found]


def find_source(device: Any, public: bool, *, alone: bool = True) -> NvmlSource | None:
    """Of a torch device; None of one that is no NVIDIA GPU, is shared out, or whose driver does not tell.

    Args:
        public: NVML is found without Ray's own parts.
        alone: see NvmlSource.
    """
    if device.type != "cuda" or (nvml := find_nvml(public)) is None:
        return None
    import torch

    uuid = str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))
    try:
        source = NvmlSource(nvml, uuid if uuid.startswith("GPU-") else f"GPU-{uuid}", alone)
    except nvml.NVMLError:
        return None
    return None if source.is_shared_out else source
