"""The stall meter: who waited for whom. Always on; a few clock reads a step."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from raytrain.data.samples.block import Header
from raytrain.record.schema import RankFigures, StageFigures, is_of_training
from raytrain.record.status import Amount, RankTimes, Spent


@dataclass
class StageMeter:
    """What a stage took of the workers, batch by batch: wall time, and CPU time in all."""

    num_samples: int = 0
    cpu_s: float = 0.0
    batch_wall_s: list[float] = field(default_factory=list)

    def add(self, other: StageMeter) -> None:
        self.num_samples += other.num_samples
        self.cpu_s += other.cpu_s
        self.batch_wall_s += other.batch_wall_s

    def figures(self, name: str) -> StageFigures:
        walls = np.asarray(self.batch_wall_s or [0.0])
        return StageFigures(
            name=name,
            num_samples=self.num_samples,
            num_batches=len(self.batch_wall_s),
            cpu_s=self.cpu_s,
            wall_s=float(walls.sum()),
            batch_wall_p90_s=float(np.percentile(walls, 90)),
            batch_wall_p99_s=float(np.percentile(walls, 99)),
        )


@dataclass
class RankMeter:
    """Where a rank's time went.

    Attributes:
        wait_s: waiting for the next batch, but for the first of all, which is start-up.
        transfer_s: moving it to the device; on a CPU rank, casting and normalising it.
        transfer_overlaps: whether transfers run beside the computation (GPU) and so are no part of `train_s`.
        compute_s: everything else between batches: forward, backward, step.
        gap_s: of that, when the GPU ran no kernel: once it is known, `compute_s` is the rest. None on a CPU rank, and
            where the driver does not tell.
        evaluate_s: whole validation passes, waiting included.
        checkpoint_s: waiting for checkpoints: for the copy of the state, and at the end until it is on disk.
        checkpoint_write_s: while they were being written, most of it beside the training.
        late_checkpoints: that came later than they were due, since the one before was still being written.
        node_stages: by Ray node, what its workers spent on each stage.
        device_stage_s: the stages on the device, by name: of `transfer_s` on a CPU rank, of the steps on a GPU.
        device_stage_samples: that were in each of them.
        warm_stages: samples and seconds of each, but for its first batch.
        decode_s: of those that decoded for training, on a thread beside it.
        decoded_on_device, decoded_on_host: images and masks of `decode` there, by the device's decoder and the CPU's.
        began_at: time.time(); tells one attempt from another.
    """

    wait_s: float = 0.0
    transfer_s: float = 0.0
    compute_s: float = 0.0
    gap_s: float | None = None
    evaluate_s: float = 0.0
    checkpoint_s: float = 0.0
    checkpoint_write_s: float = 0.0
    late_checkpoints: int = 0
    transfer_overlaps: bool = False
    num_batches: int = 0
    num_samples: int = 0
    wire_bytes: int = 0
    read_bytes: int = 0
    first_batch_at: float | None = None
    first_step_at: float | None = None
    last_step_at: float | None = None
    torch_in_workers: bool = False
    stages: dict[str, StageMeter] = field(default_factory=dict)
    nodes: dict[str, int] = field(default_factory=dict)
    node_stages: dict[str, dict[str, Amount]] = field(default_factory=dict)
    device_stage_s: dict[str, float] = field(default_factory=dict)
    device_stage_samples: dict[str, int] = field(default_factory=dict)
    warm_stages: dict[str, Amount] = field(default_factory=dict)
    decode_s: float = 0.0
    decoded_on_device: int = 0
    decoded_on_host: int = 0
    began_at: float = field(default_factory=time.time)

    @property
    def in_steps_s(self) -> float:
        """Steps from their start to their end: gaps and compute."""
        return self.compute_s + (self.gap_s or 0.0)

    @property
    def train_s(self) -> float:
        """Time between the first batch asked for and the last one done, evaluation and checkpoints apart."""
        return self.wait_s + self.in_steps_s + (0.0 if self.transfer_overlaps else self.transfer_s)

    @property
    def wait_share(self) -> float:
        return self.wait_s / self.train_s if self.train_s else 0.0

    def received(self, split: str, header: Header, num_samples: int, wire_bytes: int) -> None:
        """Account for a batch when it reaches the rank."""
        self.first_batch_at = self.first_batch_at or time.time()
        self.wire_bytes += wire_bytes
        self.read_bytes += header.read_bytes
        self.torch_in_workers |= header.torch_imported
        self.nodes[header.node] = self.nodes.get(header.node, 0) + num_samples + len(header.failures)
        of_node = self.node_stages.setdefault(header.node, {})
        for name, wall_s in header.stage_wall_s.items():
            known = _named(name, split)
            meter = self.stages.setdefault(known, StageMeter())
            meter.num_samples += num_samples + len(header.failures)
            meter.cpu_s += header.stage_cpu_s[name]
            meter.batch_wall_s.append(wall_s)
            samples, seconds = of_node.get(known, (0, 0.0))
            of_node[known] = samples + num_samples + len(header.failures), seconds + wall_s

    def staged(self, split: str, stage: str, num_samples: int, seconds: float) -> None:
        """Account for a stage on the device, of one batch."""
        name = _named(stage, split)
        before = self.warm_stages.get(name)
        self.device_stage_s[name] = self.device_stage_s.get(name, 0.0) + seconds
        self.warm_stages[name] = (0, 0.0) if before is None else (before[0] + num_samples, before[1] + seconds)
        self.device_stage_samples[name] = self.device_stage_samples.get(name, 0) + num_samples

    def part_gaps(self, busy_share: float | None) -> None:
        """Take the gaps out of `compute_s`.

        Args:
            busy_share: of waiting and steps, how much the GPU ran a kernel; None where nobody can tell.
        """
        if busy_share is not None:
            step_s = self.in_steps_s
            self.gap_s = max(step_s - busy_share * (self.wait_s + step_s), 0.0)
            self.compute_s = step_s - self.gap_s

    def decoded(
        self, split: str, num_samples: int, stage_s: Mapping[str, float], *, on_device: int, on_host: int
    ) -> None:
        """Account for what a batch's decoding took, by stage, beside the training."""
        for stage, seconds in stage_s.items():
            self.staged(split, stage, num_samples, seconds)
            self.warm_stages.pop(_named(stage, split))  # it takes nothing of the steps
            self.decode_s += seconds if split == "train" else 0.0
        self.decoded_on_device += on_device
        self.decoded_on_host += on_host

    def stepped(self, num_samples: int) -> None:
        """Account for a trained batch."""
        self.last_step_at = time.time()
        self.first_step_at = self.first_step_at or self.last_step_at
        self.num_batches += 1
        self.num_samples += num_samples

    @property
    def step_s(self) -> float:
        """Of `train_s`, neither waiting nor in stages on the device, but for `decode`, which runs beside it."""
        staged = sum(seconds for name, seconds in self.device_stage_s.items() if is_of_training(name))
        return max(self.train_s - self.wait_s - staged + self.decode_s, 0.0)

    def spent(self) -> Spent:
        """What decides where the stages run."""
        nodes = {
            node: {name: amount for name, amount in stages.items() if is_of_training(name)}
            for node, stages in self.node_stages.items()
        }
        cpu: dict[str, Amount] = {}
        for name, amount in (each for stages in nodes.values() for each in stages.items()):
            samples, seconds = cpu.get(name, (0, 0.0))
            cpu[name] = samples + amount[0], seconds + amount[1]
        return Spent(
            self.began_at,
            self.wait_s,
            (self.num_samples, self.step_s),
            {name: amount for name, amount in self.warm_stages.items() if is_of_training(name)},
            cpu,
            nodes,
        )

    def so_far(self) -> RankTimes:
        """What changes with every step, for the timeline of the run."""
        return RankTimes(self.began_at, self.last_step_at, self.num_samples, self.wait_s, self.train_s)

    def figures(self, rank: int, device: str) -> RankFigures:
        """For the record."""
        own = {name: getattr(self, name) for name in RankFigures.model_fields if name not in ("rank", "device")}
        return RankFigures(rank=rank, device=device, **own)

    def stage_figures(self) -> list[StageFigures]:
        """Of each stage, for the record."""
        return [meter.figures(name) for name, meter in self.stages.items()]


def _named(stage: str, split: str) -> str:
    """Among the figures (see record.schema.is_of_training)."""
    return stage if split == "train" else f"{split}/{stage}"
