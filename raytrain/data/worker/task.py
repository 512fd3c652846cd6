"""The task of preprocessing: places in the plan in, ready batches out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from raytrain.data.process import prepare_process, undisturbed
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.worker.careful import Careful, Trial
from raytrain.data.worker.crumb import HERE
from raytrain.data.worker.watchdog import Watchdog
from raytrain.errors import DataError
from raytrain.ray_internals.tries import earlier_tries

MOST_TRIES = 30

_PRODUCERS: dict[str, tuple[StreamWork, Producer]] = {}
_WATCHDOGS: list[Watchdog] = []


def producer_of(work_ref: Any) -> tuple[StreamWork, Producer]:
    """A StreamWork and its producer, by a reference to it, of which this process keeps the last."""
    prepare_process()
    key = work_ref.hex()
    if key not in _PRODUCERS:
        import ray

        _PRODUCERS.clear()
        work = ray.get(work_ref)
        _PRODUCERS[key] = work, undisturbed(lambda: Producer(work))
        while _WATCHDOGS:
            _WATCHDOGS.pop().stop()
        if work.stage_timeout_s is not None:
            _WATCHDOGS.append(Watchdog(HERE, work.stage_timeout_s))
    return _PRODUCERS[key]


def produce(places: pa.Table, *, work_ref: list) -> Iterator[pa.Table]:
    """The Ray Data task: places (`segment`, first `batch`, `count`) in, the ready batches of each as a block out.

    One that is tried again, since its worker or its host has died, has other workers prepare its blocks, which may die
    too: that shows whether a sample was to blame, and which.

    `work_ref` is a list of one reference to a StreamWork, so that Ray passes it on without fetching it.

    Raises:
        DataError: it has been tried too often.
    """
    work, producer = producer_of(work_ref[0])
    try:
        with earlier_tries(work.name, work.public_ray) as earlier:
            if earlier >= MOST_TRIES:
                raise DataError(
                    f"a preprocessing task has been begun {earlier + 1} times, and its worker or host died each time; "
                    "is there memory for as many workers as CPUs? cluster.reserved_cpus leaves some idle"
                )
            careful = Careful(producer, _elsewhere(work_ref), work.stage_timeout_s) if earlier else None
            for place in places.to_pylist():
                yield producer.block(**place) if careful is None else careful.block(**place)
    finally:
        HERE.rests()


def _elsewhere(work_ref: list) -> Callable[[Trial], pa.Table | None]:
    """What has another worker of this host run a trial; this task's CPU is free while it waits."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote = ray.remote(tried).options(num_cpus=0, max_retries=0, scheduling_strategy=here)
    return lambda trial: ray.get(remote.remote(trial, work_ref))  # type: ignore[no-any-return]


def tried(trial: Trial, work_ref: list) -> pa.Table | None:
    """In a worker that may die."""
    _, producer = producer_of(work_ref[0])
    try:
        return trial.run(producer)
    finally:
        HERE.rests()
