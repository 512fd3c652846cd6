"""Pipelines whose stages run on the device, from the worker's producer to the batch, without Ray."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import numpy as np
import torch

from raytrain import Pipeline
from raytrain.data import from_torch, on_device
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import UNCUT, batches_of
from raytrain.data.stages.stage import DRAWN, Stage
from raytrain.device.clock import HostStageTimer
from raytrain.device.meter import RankMeter
from raytrain.device.stages import DeviceStages

SIDES = (12, 17)


class Pictures:
    """Sample i has an image and a mask of the same size, and its number."""

    def __init__(self, count: int = 10, dtype: str = "uint8", sides: tuple[int, int] = SIDES):
        self.count, self.dtype, self.sides = count, dtype, sides

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = np.random.default_rng(index)
        image = rng.integers(0, 256, (*self.sides, 3), np.uint8)
        image = image if self.dtype == "uint8" else (image / np.float32(255)).astype(self.dtype)
        return {"image": image, "mask": rng.integers(0, 5, self.sides, np.uint8), "number": index}


class Run:
    """All batches of a pipeline: prepared by a worker's producer, then by the stages on the device.

    Args:
        cuts: how many stages the worker runs, of one batch after the other, again and again.
    """

    def __init__(
        self,
        stages: list[Any],
        dataset: Any = None,
        batch_size: int = 4,
        world: int = 1,
        seed: int = 3,
        cuts: Sequence[int] = (UNCUT,),
    ):
        dataset = dataset or Pictures()
        source = from_torch(dataset, masks=[name for name in dataset[0] if name == "mask"])
        self.opened = Pipeline(source, stages, batch_size=batch_size, max_corrupt_share=1).open(seed)
        spec = StreamSpec(self.opened.train.num_samples, 0, batch_size, seed, epochs=1)
        self.plan = StreamPlan(spec, Position(), world)
        self.producer = Producer(StreamWork(self.plan, self.opened.pickled_splits()))
        self.meter = RankMeter()
        sent: Any = pickle.loads(pickle.dumps(self.opened.on_device))
        self.device = DeviceStages(sent, HostStageTimer(self.meter), torch.device("cpu"))
        self.wire_bytes = 0
        self.samples: dict[int, dict[str, np.ndarray]] = {}
        self.failures: list[str] = []
        for cut, (segment, number) in zip(cycle(cuts), self.plan.places().tolist(), strict=False):
            [batch] = batches_of(self.producer.block(segment, number, 1, cut))
            assert batch.header.cut == cut
            self.failures += [each.reason for each in batch.header.failures]
            drawn = {name: value for name, value in batch.fields.items() if name.startswith(DRAWN)}
            fields = {name: tensor(value) for name, value in batch.fields.items() if name not in drawn}
            self.wire_bytes += sum(value.nbytes for value in drawn.values())
            made = self.device.run("train", fields, drawn, "a batch", batch.header.cut) if len(batch.key) else {}
            for place, key in enumerate(batch.key.tolist()):
                self.samples[key] = {name: value[place].numpy() for name, value in made.items()}


def tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.copy())


def moved(stages: list[Stage], first: int) -> list[Stage]:
    """From the stage `first` on, on the device."""
    return [on_device(each) if number >= first else each for number, each in enumerate(stages)]


def assert_same(one: Run, other: Run, within: float) -> None:
    assert one.samples.keys() == other.samples.keys() != set()
    for key, sample in one.samples.items():
        for name, value in sample.items():
            mine = other.samples[key][name]
            assert (mine.shape, mine.dtype) == (value.shape, value.dtype), name
            apart = np.abs(mine.astype(np.float64) - value.astype(np.float64)).max()
            assert apart <= (within if name == "image" else 0), (key, name, apart)
