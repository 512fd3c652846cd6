"""The model alone: streams on this host without Ray, preprocessing or output, timed while all of them run."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from raytrain.cluster.environment import child_environment
from raytrain.config.inference import Streams
from raytrain.errors import PredictionError, RaytrainError
from raytrain.infer.contract import BackendOptions, ModelFile, StreamShape, Timed
from raytrain.infer.streams.allocators import environment
from raytrain.infer.streams.life import Batch, Failed, Loader, Marks, Ready, Start, Work
from raytrain.infer.streams.nursery import Nursery, how_it_ended

T = TypeVar("T")
TO_START_S = 0.05  # from telling the first stream when to start to that moment


class Alone:
    """Measures one setting after the other. Processes with torch imported are kept from one to the next, one for each
    allocator.

    As a context manager: `with Alone() as alone: timed = alone.measure(...)`. Nothing is left running afterwards.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="raytrain-alone-")
        self._nurseries: dict[frozenset[tuple[str, str]], Nursery] = {}
        self._logs = itertools.count()

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        for nursery in self._nurseries.values():
            nursery.close()
        self._nurseries = {}
        self._folder.cleanup()

    def measure(
        self,
        load: Loader,
        file: ModelFile,
        options: BackendOptions,
        batches: Sequence[Batch],
        shapes: Sequence[StreamShape],
        streams: Streams | None = None,
        *,
        seconds: float = 3.0,
        num_batches: int | None = None,
        warm_up_batches: int = 3,
        timeout_s: float = 600.0,
    ) -> Timed:
        """Run one instance of a model on each shape, all at once.

        Args:
            load: a function of a module that other processes can import, or of the script itself.
            options: `threads` are those of each shape.
            batches: of tensors on the CPU; every stream takes them in turn.
            streams: allocator and huge pages.
            seconds: how long, from when all are ready; the batch that is on the way is finished.
            num_batches: of each stream, where they are fewer.
            timeout_s: for loading and warming up, and for running beyond `seconds`.

        Returns:
            of the time in which all streams ran. `extra`: `streams` samples a second of each, `cpu_s` of a
            sample, `load_s` and `first_s` the longest seconds to load and of a first batch, `said` what could not be
            bound.

        Raises:
            ConfigError: the allocator is not there.
            PredictionError: a stream failed, died or took too long; an error of raytrain's own is raised as it is.
        """
        began = time.monotonic()
        nursery = self._nursery(streams or Streams(), getattr(load, "__module__", ""))
        path = Path(self._folder.name) / "work"
        _write(path, Work(load, file, options, tuple(batches), warm_up_batches))
        born: list[Connection] = []
        try:
            for shape in shapes:
                born.append(nursery.bear())
                _send(born[-1], (shape, path))
            ready = _answers(born, Ready, time.monotonic() + timeout_s, "load and warm up")
            start = Start(time.monotonic() + TO_START_S, seconds, num_batches)
            for stream in born:
                _send(stream, start)
            marks = _answers(born, Marks, start.at + seconds + timeout_s, "run its batches")
        except EOFError as error:
            line, number = nursery.last_line(), error.args[0]
            told = how_it_ended(nursery.end(number), line)
            raise PredictionError(f"stream {number + 1} of {len(shapes)} {told}") from None
        finally:
            nursery.end()
            for stream in born:
                stream.close()
        sizes = [len(batch[0]) for batch in batches]
        rates, latencies = in_common([each.times for each in marks], sizes)
        samples = sum(sum(itertools.islice(itertools.cycle(sizes), len(each.times) - 1)) for each in marks)
        extra = {
            "streams": rates,
            "cpu_s": sum(each.cpu_s for each in marks) / samples,
            "load_s": max(each.load_s for each in ready),
            "first_s": max(each.first_s for each in ready),
            "said": sorted({each.said for each in ready if each.said}),
        }
        return Timed(sum(rates), latencies, time.monotonic() - began, extra)

    def _nursery(self, streams: Streams, module: str) -> Nursery:
        """Threads are set in each stream; the environment's one is for what starts some when it is imported."""
        before = child_environment({})
        changes = environment(streams, 1, before)
        key = frozenset(changes.items())
        if key in self._nurseries and not self._nurseries[key].lives:
            self._nurseries.pop(key).close()
        if key not in self._nurseries:
            ours = [module] if module.partition(".")[0] == __name__.partition(".")[0] else []
            log = Path(self._folder.name) / f"log-{next(self._logs)}"
            self._nurseries[key] = Nursery({**before, **changes}, ["torch", *ours], log)
        return self._nurseries[key]


def in_common(marks: Sequence[Sequence[float]], sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """Samples a second of each stream while all of them ran, and seconds of the batches that ended in that time.

    Of batches at its edges the part counts that lies within.

    Args:
        marks: when each stream began, and when each of its batches was done.
        sizes: samples of the batches, which come in turn.
    """
    begin, until = max(times[0] for times in marks), min(times[-1] for times in marks)
    if until <= begin:  # some were done before others began, with very few batches
        begin, until = min(times[0] for times in marks), max(times[-1] for times in marks)
    rates, latencies = [], []
    for times in marks:
        samples = 0.0
        for (start, end), size in zip(itertools.pairwise(times), itertools.cycle(sizes), strict=False):
            within = min(end, until) - max(start, begin)
            samples += size * max(within, 0.0) / (end - start) if end > start else 0.0
            if begin < end <= until:
                latencies.append(end - start)
        rates.append(samples / (until - begin))
    return rates, latencies


def _answers(streams: Sequence[Connection], kind: type[T], deadline: float, doing: str) -> list[T]:
    """What each says next.

    Raises:
        EOFError: one has died; its number.
        PredictionError: one has failed, or not answered in time.
    """
    found: dict[int, T] = {}
    numbers = {stream: number for number, stream in enumerate(streams)}
    while len(found) < len(streams):
        waiting = [stream for stream, number in numbers.items() if number not in found]
        heard: list[Any] = wait(waiting, max(deadline - time.monotonic(), 0))
        if not heard:
            raise PredictionError(
                f"stream {numbers[waiting[0]] + 1} of {len(streams)} did not {doing} in time: a batch, or loading the "
                "model, takes too long"
            )
        for stream in heard:
            try:
                answer = stream.recv()
            except (EOFError, ConnectionResetError):
                raise EOFError(numbers[stream]) from None
            if isinstance(answer, Failed):
                raise _named(answer.error, numbers[stream], len(streams))
            found[numbers[stream]] = answer
    return [found[number] for number in range(len(streams))]


def _named(error: RaytrainError, number: int, count: int) -> RaytrainError:
    if isinstance(error, PredictionError):
        return PredictionError(f"stream {number + 1} of {count} failed: {error}")
    return error


def _send(stream: Connection, message: object) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has died: reading says so
        stream.send(message)


def _write(path: Path, work: Work) -> None:
    import cloudpickle

    path.write_bytes(cloudpickle.dumps(work, protocol=pickle.HIGHEST_PROTOCOL))
