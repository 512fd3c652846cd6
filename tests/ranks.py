"""Training ranks without Ray: real processes joined by gloo, real contexts and checkpoints, samples from memory.

`run(case)` trains a Case on as many ranks and returns what each saw. `one_process(case)` is the same training as one
writes it by hand: no ranks, no windows, no weights, the mean over the samples of each update.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from keeping import asked, keeper_of

from raytrain.config.job import Job
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.device.batch import DeviceBatch
from raytrain.device.meter import RankMeter
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.checkpoints.writer import Writer
from raytrain.train.context import TrainContext
from raytrain.train.contract import Restored, StopTraining
from raytrain.train.loop import train_loop
from raytrain.train.tasks import Task

MOST_RANKS = 3
EXAMPLES = float(os.environ.get("RAYTRAIN_TEST_EXAMPLES", "1"))  # times as many examples of what hypothesis draws
CLASSES = 3
SHAPE = (2, 3, 3)  # of an image


def mlp(dropout: float = 0.0) -> torch.nn.Module:
    layers = [torch.nn.Flatten(), torch.nn.Linear(18, 8), torch.nn.Tanh(), torch.nn.Dropout(dropout)]
    return torch.nn.Sequential(*layers, torch.nn.Linear(8, CLASSES))


def linear() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(18, CLASSES))


def with_batch_norm() -> torch.nn.Module:
    """Its second BatchNorm has one value a channel and sample."""
    layers = [torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU()]
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.BatchNorm2d(4), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(4, CLASSES))


def normed() -> torch.nn.Module:
    """With BatchNorm that every forward changes."""
    layers = [torch.nn.Flatten(), torch.nn.Linear(18, 8), torch.nn.BatchNorm1d(8), torch.nn.Tanh()]
    return torch.nn.Sequential(*layers, torch.nn.Dropout(0.5), torch.nn.Linear(8, CLASSES))


def not_a_number_above(limit: float) -> torch.nn.Module:
    """An MLP whose output is NaN for a sample with a value above `limit`."""

    class Breaking(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = mlp()

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            too_large = image.flatten(1).max(dim=1).values > limit
            return self.inner(image.clamp(max=limit)) * torch.where(too_large, torch.nan, 1.0)[:, None]

    return Breaking()


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        more: of the job's section `model`.
        training: the job's section, without its length.
        holes: training ids that could not be prepared.
        loud: factor of each id's image, by id.
        loop: called with the context; the job's own by default.
        stop_after: batches after which the run is asked to stop.
        folder: where checkpoints are; a run goes on from the furthest there.
        from_steps: go on from the checkpoint of so many steps instead.
    """

    num_train: int = 30
    batch_size: int = 4
    world_size: int = 1
    epochs: int | None = 2
    steps: int | None = None
    num_validation: int = 0
    tail: str = "share"
    is_global: bool = False
    seed: int = 0
    model: str = "mlp"
    options: dict[str, Any] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    holes: frozenset[int] = frozenset()
    loud: dict[int, float] = field(default_factory=dict)
    loop: Callable[[TrainContext], None] = train_loop
    stop_after: int | None = None
    folder: str | None = None
    from_steps: int | None = None
    device: str = "cpu"

    @property
    def job(self) -> Job:
        training = {"epochs": self.epochs, "steps": self.steps, "checkpoint": {"keep": 999}, **self.training}
        model = {"name": f"ranks:{self.model}", "options": self.options, **self.more}
        return Job.from_dict({"name": "case", "seed": self.seed, "model": model, "training": training})

    @property
    def spec(self) -> StreamSpec:
        length = {"epochs": self.epochs, "steps": self.steps}
        sizes = self.num_train, self.num_validation, self.batch_size
        return StreamSpec(*sizes, self.seed, tail=self.tail, is_global=self.is_global, **length)

    def samples(self, split: str = "train") -> tuple[torch.Tensor, torch.Tensor]:
        """All images, (num, *SHAPE) float32, and labels, in the order of the ids."""
        number = self.num_train if split == "train" else self.num_validation
        generator = torch.Generator().manual_seed(self.seed + (split != "train"))
        images = torch.randn(number, *SHAPE, generator=generator)
        for index, factor in self.loud.items() if split == "train" else ():
            images[index] *= factor
        return images, torch.randint(CLASSES, (number,), generator=generator)


@dataclass
class Outcome:
    """What one rank saw.

    Attributes:
        model: its parameters and buffers at the end.
        epochs: ids of every batch, by epoch, with whether they were a stand-in or carried.
        read: which objects of the checkpoint it has read.
    """

    model: dict[str, torch.Tensor]
    history: list[dict[str, Any]]
    counts: dict[str, int]
    steps: int
    updates: int
    batches: list[tuple[int, list[int], bool, list[bool]]]
    learning_rates: list[float]
    read: list[int]
    error: str | None
    warned: list[str]
    stopped: bool


class MemoryStream:
    """What `RankIngest` gives a rank, without a feed: round after round of the plan, in order."""

    def __init__(self, case: Case, plan: StreamPlan, rank: int, seen: Callable[..., None]):
        self.plan, self.meter, self.progress, self.stopped = plan, RankMeter(), None, False
        self._case, self._rank, self._seen, self._given = case, rank, seen, 0

    def segment_of(self, epoch: int, split: str) -> int | None:
        return next((s.number for s in self.plan.segments if (s.epoch, s.split) == (epoch, split)), None)

    def num_batches(self, number: int) -> int:
        return self.plan.segments[number].num_batches // self.plan.world_size

    def segment(self, number: int) -> Iterator[DeviceBatch]:
        part, keys = self.plan.segments[number], self.plan.segment_keys(number)
        images, labels = self._case.samples(part.split)
        for index in range(self.num_batches(number)):
            self.stopped = self.stopped or self._given == self._case.stop_after
            if self.stopped:
                return
            start, stop = self.plan.bounds(number, index * self.plan.world_size + self._rank)
            whole = [
                k for k in range(start, stop) if part.split != "train" or self._id(keys[k]) not in self._case.holes
            ]
            ids = np.array([self._id(keys[k]) if part.split == "train" else keys[k] for k in whole], dtype=np.int64)
            image = images[ids] if whole else torch.zeros(1, *SHAPE)
            label = labels[ids] if whole else torch.zeros(1, dtype=torch.int64)
            batch = DeviceBatch(
                {"image": image.to(self._case.device), "label": label.to(self._case.device)},
                max(len(ids), 1),
                ids,
                index,
                weight=1.0 if whole else 0.0,
                stand_in=not whole,
                carried=np.array([keys[k] >= self._case.num_train for k in whole], dtype=bool),
                repeated=sum(k >= part.num_ids - part.repeated for k in whole),
                left_out=self._left_out(part, keys, start, stop),
            )
            if part.split == "train":
                self._given += 1
                self._seen(part.epoch, ids.tolist(), batch.stand_in, batch.carried.tolist())
            yield batch

    def _left_out(self, part: Any, keys: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Keys of holes, but for those that an earlier batch of the epoch has had."""
        fresh = range(start, min(stop, part.num_ids - part.repeated))
        holes = [keys[k] for k in fresh if part.split == "train" and self._id(keys[k]) in self._case.holes]
        return np.array(holes, dtype=np.int64)

    def _id(self, key: int) -> int:
        return int(key) % self._case.num_train


def train_rank(case: Case, rank: int) -> Outcome:
    """In a process of a group of `case.world_size`, or alone."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(case.seed + rank)
    read: list[int] = []
    restored = _restored(case, read)
    position, steps = Position(), 0
    if restored is not None:
        position, steps = Position(restored.facts.epoch, *restored.ledger), restored.facts.steps
    plan = StreamPlan(case.spec, position, case.world_size, steps)
    batches: list[Any] = []
    stream = MemoryStream(case, plan, rank, lambda *seen: batches.append(seen))
    writer = Every(case, steps) if case.folder else Nowhere()
    ctx = TrainContext(
        case.job,
        stream,
        device=torch.device(case.device),
        rank=rank,
        world_size=case.world_size,
        fingerprint="f",
        num_train=case.num_train,
        task=Task(num_classes=CLASSES),
        restored=restored,
        keep=writer,
    )
    rates: list[float] = []
    error, stopped = None, False
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            _watching_rates(ctx, rates)
            case.loop(ctx)
        except StopTraining:
            stopped = True
        except Exception as raised:  # noqa: BLE001 - the test looks at it
            error = f"{type(raised).__name__}: {raised}\n{traceback.format_exc()}"
        unsaved = writer.close()
    assert unsaved is None, unsaved
    model = ctx._modules[0].state_dict() if ctx._modules else {}
    return Outcome(
        {name: value.cpu().clone() for name, value in model.items()},
        ctx.history,
        ctx.counts,
        ctx.steps,
        ctx.updates,
        batches,
        rates,
        read,
        error,
        [str(each.message) for each in warned],
        stopped,
    )


def _watching_rates(ctx: TrainContext, rates: list[float]) -> None:
    """The learning rate of every step of an optimizer."""
    prepare = ctx.prepare

    def watched(*objects: Any) -> Any:
        for each in objects:
            if isinstance(each, torch.optim.Optimizer):
                each.register_step_pre_hook(lambda o, *_: rates.append(o.param_groups[0]["lr"]))
        return prepare(*objects)

    ctx.prepare = watched


class Every(Writer):
    """Puts none off: the one that is due waits until the one before is on disk."""

    busy = False

    def __init__(self, case: Case, steps: int):
        keeper = keeper_of(Path(case.folder), f"attempt{steps}", case.job.training.checkpoint.keep)
        super().__init__(asked(keeper), warnings.warn, waits_s=())


class Nowhere:
    busy = False

    def check(self) -> None:
        pass

    def __call__(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        pass


def _restored(case: Case, read: list[int]) -> Restored | None:
    folder = shelf.latest(Path(case.folder)) if case.folder else None
    if case.from_steps is not None:
        folder = next(p for p, facts in shelf.whole(Path(case.folder)) if facts.steps == case.from_steps)
    if folder is None:
        return None
    facts, state = checkpoint.load(folder)

    def reader(number: int) -> Any:
        read.append(number)
        return checkpoint.load_object(folder, number)

    return Restored(facts, state, [partial(reader, number) for number in range(len(facts.sha256) - 1)])


# --- processes ---


class Ranks:
    """A few processes that are ready to be ranks."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = [], []
        for rank in range(MOST_RANKS):
            ours, theirs = context.Pipe()
            self._pipes.append(ours)
            self._processes.append(context.Process(target=_serve, args=(rank, theirs), daemon=True))
            self._processes[-1].start()

    def run(self, case: Case) -> list[Outcome]:
        """Each rank's outcome. An error in one must not leave the others waiting: all of them have to meet it."""
        with tempfile.TemporaryDirectory() as meeting:
            for pipe in self._pipes[: case.world_size]:
                pipe.send((case, f"{meeting}/ranks"))
            answers = [pipe.recv() for pipe in self._pipes[: case.world_size]]
        for answer in answers:
            assert isinstance(answer, Outcome), answer
        return answers

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _serve(rank: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    while True:
        case, meeting = pipe.recv()
        try:
            if case.world_size > 1:
                dist.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=case.world_size)
            outcome: Any = train_rank(case, rank)
        except Exception:  # noqa: BLE001 - shown by the test
            outcome = traceback.format_exc()
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        pipe.send(outcome)


@pytest.fixture(scope="session")
def ranks():
    started = Ranks()
    yield started
    started.close()


# --- the same by hand ---


def one_process(case: Case) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Parameters at the end, and the mean loss over the samples of each epoch."""
    torch.manual_seed(case.seed)
    training = case.job.training
    model = globals()[case.model](**case.options)
    settings = training.optimizer
    named = [
        list(filter(lambda p: p.ndim > 1, model.parameters())),
        list(filter(lambda p: p.ndim == 1, model.parameters())),
    ]
    groups = [{"params": named[0], "weight_decay": settings.weight_decay}, {"params": named[1], "weight_decay": 0.0}]
    if settings.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    else:
        optimizer = torch.optim.AdamW(groups, lr=settings.lr)
    updates = [each for epoch in _updates(case) for each in epoch if any(each)]
    schedule = _rates(case, sum(len(list(epoch)) for epoch in _updates(case)))
    images, labels = case.samples()
    losses, done = [], 0
    for epoch in _updates(case):
        total = count = 0.0
        for batches in epoch:
            ids = [i for ids in batches for i in ids]
            if not ids:
                continue
            for group in optimizer.param_groups:
                group["lr"] = schedule[done]
            each = F.cross_entropy(
                model(images[ids]), labels[ids], label_smoothing=training.label_smoothing, reduction="none"
            )
            optimizer.zero_grad()
            each.mean().backward()
            if training.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
            optimizer.step()
            done += 1
            total, count = total + each.sum().item(), count + len(ids)
        losses.append(total / count if count else math.nan)
    assert done == len(updates)
    return {name: value.detach() for name, value in model.state_dict().items()}, losses


def _updates(case: Case) -> list[list[list[list[int]]]]:
    """By epoch and update: the ids of every batch of the window, of all ranks."""
    plan, accumulate = StreamPlan(case.spec, Position(), case.world_size), case.job.training.accumulate
    epochs = []
    for part in plan.segments:
        if part.split != "train":
            continue
        keys = plan.segment_keys(part.number) % case.num_train
        batches = [keys[slice(*plan.bounds(part.number, b))].tolist() for b in range(part.num_batches)]
        batches = [[i for i in ids if i not in case.holes] for ids in batches]
        size = accumulate * case.world_size
        epochs.append([batches[first : first + size] for first in range(0, len(batches), size)])
    return epochs


def _rates(case: Case, updates: int) -> list[float]:
    """The learning rate of every update: a linear warm-up, then flat or half a cosine, written out."""
    lr, schedule = case.job.training.optimizer.lr, case.job.training.schedule
    warmup = round(schedule.warmup_share * updates)
    rates = []
    for step in range(updates):
        share = 1.0
        if step < warmup:
            share = (step + 1) / warmup
        elif schedule.name == "cosine":
            through = (step - warmup) / max(updates - warmup, 1)
            share = schedule.final_share + (1 - schedule.final_share) * (1 + math.cos(math.pi * through)) / 2
        rates.append(lr * share)
    return rates


def changed(case: Case, **training: Any) -> Case:
    """The case with other settings of its job."""
    return replace(case, training={**case.training, **training})
