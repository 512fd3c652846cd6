"""The life of a stream that runs a model alone: bind, load, warm up, and run when all others are ready too."""

from __future__ import annotations

import itertools
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import set_environment
from raytrain.errors import PredictionError, RaytrainError, named
from raytrain.infer.contract import BackendOptions, LoadedModel, ModelFile, StreamShape
from raytrain.infer.streams.binding import bind

Loader = Callable[[ModelFile, BackendOptions], LoadedModel]
Batch = tuple[Any, ...]  # tensors, (samples, ...) each, in the order of ModelFile.arguments


@dataclass(frozen=True)
class Work:
    """What every stream does.

    Attributes:
        batches: taken in turn, again and again.
    """

    load: Loader
    file: ModelFile
    options: BackendOptions
    batches: Sequence[Batch]
    warm_up_batches: int


@dataclass(frozen=True)
class Ready:
    """What a stream says before it is started.

    Attributes:
        said: what could not be bound, for people.
        first_s: seconds of its first batch, which compiles what is compiled.
    """

    load_s: float
    first_s: float
    said: str | None


@dataclass(frozen=True)
class Start:
    """When to run, and how long: until the first of both.

    Attributes:
        at: of the monotonic clock, which all processes share.
    """

    at: float
    seconds: float
    num_batches: int | None


@dataclass(frozen=True)
class Marks:
    """
    Attributes:
        times: when a stream began, and when each of its batches was done.
        cpu_s: of all threads of its process in that time.
    """

    times: Sequence[float]
    cpu_s: float


@dataclass(frozen=True)
class Failed:
    error: RaytrainError


def live(parent: Connection) -> None:
    """In the stream's process: all of it, whatever happens told to the parent."""
    try:
        shape, path = parent.recv()
        _run(parent, shape, path)
    except EOFError:  # nobody is interested any more
        pass
    except RaytrainError as error:
        parent.send(Failed(error))
    except BaseException as error:  # noqa: BLE001 - a model's own, with which this process ends
        parent.send(Failed(PredictionError(named(error))))


def _run(parent: Connection, shape: StreamShape, path: Path) -> None:
    set_environment({"OMP_NUM_THREADS": str(shape.threads)})  # for what reads it when it is loaded
    said = bind(shape)
    work: Work = pickle.loads(path.read_bytes())
    options = replace(work.options, threads=shape.threads)
    began = time.monotonic()
    model = work.load(work.file, options)
    loaded = time.monotonic()
    batches = [tuple(each.to(options.device) for each in batch) for batch in work.batches]
    firsts = _marks(model, batches, Start(time.monotonic(), float("inf"), max(work.warm_up_batches, 1))).times
    parent.send(Ready(loaded - began, firsts[1] - firsts[0], said))
    start: Start = parent.recv()
    parent.send(_marks(model, batches, start))
    parent.poll(None)  # its end tells the parent that it has died, so it stays until it is ended


def _marks(model: LoadedModel, batches: Sequence[Batch], start: Start) -> Marks:
    """At least one batch."""
    time.sleep(max(start.at - time.monotonic(), 0))
    marks, before = [time.monotonic()], time.process_time()
    for batch in itertools.islice(itertools.cycle(batches), start.num_batches):
        model(*batch)
        marks.append(time.monotonic())
        if marks[-1] - start.at >= start.seconds:
            break
    return Marks(marks, time.process_time() - before)
