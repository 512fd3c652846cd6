"""What one training rank runs: the data room and the training room meet here, under the user's loop."""

from __future__ import annotations

import contextlib
import logging
import random
import time
import traceback
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from raytrain.cluster.logs import frames_of, leave_error_to_the_driver
from raytrain.config.data import Arrival, Normalize
from raytrain.config.job import Job
from raytrain.config.own_code import OwnCode, is_own
from raytrain.data.order import Position, Split, StreamPlan
from raytrain.data.samples.fields import Schema
from raytrain.data.stages.settling import DevicePart
from raytrain.errors import RaytrainError, TrainingError, named
from raytrain.record.status import RankResult
from raytrain.run.hanging import listen


@dataclass(frozen=True)
class RankWork:
    """What every rank is sent.

    Attributes:
        code: first, since the loop may need it to be unpickled.
        loop: called with a TrainContext; None for the job's own.
        feed: handle of the Feed actor.
        schema: of what arrives.
        stages: of each split, those that may run on the device.
        fields, normalize: what becomes of it on the device (see device.arrival).
        task: see train.tasks.Task.
        keeper: handle of the Keeper actor, on the host where the checkpoints lie.
        resume_from: folder of the checkpoint that `--resume` found.
        threads: torch threads of a CPU rank.
        use_gpu: this rank has a GPU; otherwise it computes on the CPU, whatever the host has.
        public_ray: how busy its GPU is, is asked without Ray's own parts.
    """

    code: OwnCode
    job: Job
    loop: Callable[[Any], None] | None
    feed: Any
    keeper: Any
    schema: Schema
    stages: Mapping[Split, DevicePart]
    fields: Mapping[str, Arrival]
    normalize: Normalize | None
    fingerprint: str
    num_train: int
    task: Any
    resume_from: str | None
    threads: int
    use_gpu: bool
    public_ray: bool = False


def run_rank(config: dict[str, Any]) -> None:
    """The function that Ray Train runs on every rank."""
    import numpy as np
    import ray.train
    import torch
    from ray.train.torch import get_device

    work: RankWork = config["work"]
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    device = get_device() if work.use_gpu else torch.device("cpu")
    for name in [n for n in logging.root.manager.loggerDict if n.startswith("ray.train") or "/ray/train/" in n]:
        logging.getLogger(name).setLevel(logging.WARNING)  # they tell of every report and checkpoint
    if device.type == "cpu":
        torch.set_num_threads(work.threads)
    else:
        torch.cuda.set_device(device)
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(work.job.seed + rank)

    attempt = None
    try:
        restored = _restored(work)
        attempt, plan = _begin(work, restored, rank, world_size)
        if not isinstance(plan, Exception):  # else an earlier attempt ended the run, and the driver knows why
            _train(work, rank, world_size, device, restored, attempt, plan)
    except Exception as error:
        _explain(work, error, world_size, attempt)
        raise


def _train(
    work: RankWork, rank: int, world_size: int, device: Any, restored: Any, attempt: str, plan: StreamPlan
) -> None:
    """One attempt of one rank, from its first batch to its result."""
    import ray

    from raytrain.device.arrival import arrivals
    from raytrain.device.busy import find_source
    from raytrain.device.loader import RankIngest
    from raytrain.train.checkpoints.writer import Writer
    from raytrain.train.context import TrainContext
    from raytrain.train.contract import Leaving, StopTraining
    from raytrain.train.loop import loop_of

    arrived = arrivals(work.schema, work.fields, work.normalize)
    busy = find_source(device, work.public_ray)
    stream = RankIngest(work.feed, attempt, rank, plan, device, arrived, work.stages, busy)
    writer = Writer(asked(work.keeper), work.feed.warn.remote)
    ctx = TrainContext(
        work.job,
        stream,
        device=device,
        rank=rank,
        world_size=world_size,
        fingerprint=work.fingerprint,
        num_train=work.num_train,
        task=work.task,
        restored=restored,
        keep=writer,
        warn=work.feed.warn.remote,
    )
    work.feed.at_work.remote(attempt, rank, listen())
    try:
        (loop_of(work.job) if work.loop is None else work.loop)(ctx)
    except StopTraining:
        pass
    except BaseException:
        with contextlib.suppress(Exception):  # what ended the loop is told
            writer.close(hurry=True)
        raise
    finally:
        stream.close()
    meter = stream.meter
    began = time.perf_counter()
    unsaved = writer.close()
    if stream.stopped and world_size > 1:
        ctx.sum_over_ranks(0)  # the first that leaves ends all others, and the checkpoint is to be on disk by then
    meter.checkpoint_s += time.perf_counter() - began
    meter.checkpoint_write_s, meter.late_checkpoints = writer.write_s, writer.num_late
    result = RankResult(
        figures=meter.figures(rank, str(device)),
        stages=meter.stage_figures(),
        times=meter.so_far(),
        nodes=meter.nodes,
        torch_in_workers=meter.torch_in_workers,
        first_batch_at=meter.first_batch_at,
        first_step_at=meter.first_step_at,
        history=ctx.history,
        epochs=stream.plan.num_epochs,
        steps=ctx.steps,
        counts=ctx.counts,
        measured=ctx.measured,
    )
    leaving = ray.get(work.feed.finish.remote(attempt, rank, result))
    if leaving and stream.stopped:
        raise Leaving("a host of the ranks is about to go")
    if unsaved is not None:
        raise unsaved


def asked(keeper: Any) -> Callable[..., Callable[[], str | None]]:
    """How a checkpoint's writer asks the keeper. One that is lost is a reason like others: Ray starts it anew, a few
    times."""
    import ray

    def refused(error: Exception) -> str:
        return f"cannot write a checkpoint, since the process that keeps them failed: {named(error)}"

    def ask(method: str, *args: Any) -> Callable[[], str | None]:
        def answer() -> str | None:
            try:
                return ray.get(reference)
            except ray.exceptions.RayError as error:
                return refused(error)

        try:
            reference = getattr(keeper, method).remote(*args)  # what is large is copied into the object store now
        except ray.exceptions.RayError as error:
            why = refused(error)
            return lambda: why
        return answer

    return ask


def _restored(work: RankWork) -> Any:
    """The checkpoint to go on from: of this run's earlier attempt, or the one that `--resume` found."""
    import ray

    from raytrain.train.checkpoints import checkpoint, shelf
    from raytrain.train.contract import Restored

    path = ray.get(work.keeper.latest.remote()) or work.resume_from
    if path is None:
        return None
    text, files = ray.get(work.keeper.read.remote(path))
    facts = shelf.parse_facts(text, path)

    def read(name: str) -> Any:
        return checkpoint.unpack(facts, name, ray.get(files[name]))

    objects = [partial(read, shelf.object_file(number)) for number in range(len(facts.sha256) - 1)]
    return Restored(facts, read(shelf.STATE), objects)


def _begin(work: RankWork, restored: Any, rank: int, world_size: int) -> tuple[str, StreamPlan | Exception]:
    """Rank 0 starts the stream where the checkpoint stands; everyone learns the plan."""
    import ray
    import torch.distributed as dist

    answer: list[Any] = [None, None]
    if rank == 0:
        attempt = uuid.uuid4().hex
        position, steps = position_of(restored)
        answer = [attempt, ray.get(work.feed.begin.remote(attempt, position, world_size, steps))]
    if world_size > 1:
        dist.broadcast_object_list(answer, src=0)
    return tuple(answer)


def position_of(restored: Any) -> tuple[Position, int]:
    """Where a checkpoint stands in the stream, and the batches a rank had by then."""
    if restored is None:
        return Position(), 0
    return Position(restored.facts.epoch, *restored.ledger), restored.facts.steps


def _explain(work: RankWork, error: Exception, world_size: int, attempt: str | None) -> None:
    """Tell the feed why the run cannot go on, so that it is not tried again in vain.

    A lost actor, object or host, and a failed collective, which is no more than a peer's death seen from here, are
    left to Ray Train to try again.
    """
    import ray

    import raytrain
    from raytrain.train.contract import Leaving

    if isinstance(error, Leaving):
        leave_error_to_the_driver()
    if isinstance(error, ray.exceptions.RayError | Leaving):
        return
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_own(frame.filename)]
    if isinstance(error, RaytrainError):
        told: RaytrainError = error
        if own:
            told.add_note(f"in {own[-1].filename}:{own[-1].lineno}")
    elif world_size == 1 or not _is_of_a_collective(error):
        frame = (own or frames)[-1]
        told = TrainingError(f"the training loop failed in {frame.filename}:{frame.lineno}: {named(error)}")
        hidden = [str(Path(package.__file__).parent) for package in (raytrain, ray)]
        told.add_note(f"on the rank:\n{frames_of(error, hidden)}")
    else:
        return
    ray.get(work.feed.fail.remote(attempt, told))
    leave_error_to_the_driver()


def _is_of_a_collective(error: Exception) -> bool:
    """Whether a torch.distributed backend raised it: gloo raises plain RuntimeErrors that name their source file."""
    import torch.distributed as dist

    words = ("gloo", "nccl", "connection closed by peer", "connection reset")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )
