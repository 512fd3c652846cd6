"""On a rank: what stages take on its device that could as well run there, alone and beside the model."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from raytrain.data.samples.block import batches_of
from raytrain.data.stages.stage import DRAWN
from raytrain.device.arrival import Receiver, arrivals
from raytrain.device.batch import DeviceBatch
from raytrain.device.clock import DeviceStageTimer, HostStageTimer
from raytrain.device.landing import as_tensor
from raytrain.device.meter import RankMeter
from raytrain.device.stages import DeviceStages
from raytrain.study.alone import AtCuts

ARRIVAL = "arrival"  # casting and normalising: among the seconds by stage


class MovedBatch:
    """A batch on the device, which goes through the stages as often as it is asked for."""

    def __init__(self, moved: AtCuts, device: torch.device):
        [batch] = batches_of(moved.block)
        self._device, self._meter, self._samples = device, RankMeter(), 0
        self._timer = DeviceStageTimer(self._meter) if device.type == "cuda" else HostStageTimer(self._meter)
        self._stages, self._cut = DeviceStages({"train": moved.part}, self._timer, device), moved.part.cuts[0]
        self._receiver = Receiver(arrivals(moved.schema, moved.fields, moved.normalize), device)
        self._key = batch.key
        self._fields = {
            name: as_tensor(value).to(device) if isinstance(value, np.ndarray) else value
            for name, value in batch.fields.items()
            if not name.startswith(DRAWN)
        }
        self._drawn = {name: np.asarray(value) for name, value in batch.fields.items() if name.startswith(DRAWN)}

    def again(self, like: DeviceBatch) -> DeviceBatch:
        """Behind the stages, in all else like another one."""
        made = self._stages.run("train", self._fields, self._drawn, "the batch that is measured", self._cut)
        with self._timer.timing("train", ARRIVAL, len(self._key)):
            made = {n: self._receiver.ready(n, v) if isinstance(v, torch.Tensor) else v for n, v in made.items()}
        self._samples += len(self._key)
        return replace(like, fields=made, size=len(self._key), ids=self._key)

    def alone(self, like: DeviceBatch, seconds: float) -> dict[str, float]:
        """By stage, seconds of a sample, after as long a warm-up."""
        for _ in range(2):
            self.taken()
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                self.again(like)
        return self.taken()

    def taken(self) -> dict[str, float]:
        """By stage, seconds of a sample since the last time."""
        self._timer.close()
        found: dict[str, Any] = {name: s / self._samples for name, s in self._meter.device_stage_s.items()}
        self._meter.device_stage_s.clear()
        self._samples = 0
        return found
