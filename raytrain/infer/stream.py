"""A stream: a model instance in a process of its own, bound to its cores or with its share of a GPU.

An actor. What a call brings is viewed, and copied to the device, on the call's own thread; one thread computes, so that
the next piece is on its way meanwhile. torch is imported when the actor has begun.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.cluster.environment import public_ray
from raytrain.config.data import Arrival, Normalize
from raytrain.config.own_code import OwnCode
from raytrain.data.order import Split
from raytrain.data.samples.block import batches_of
from raytrain.data.samples.fields import Schema
from raytrain.data.stages.settling import DevicePart
from raytrain.errors import PredictionError, RaytrainError, named
from raytrain.infer.contract import BackendOptions, ModelFile, StreamShape, Wanted
from raytrain.record.status import Failure

if TYPE_CHECKING:
    from raytrain.device.copier import Arriving

NO_NUMBER = "the model's output has no probabilities: it is not finite"
ALONE_S = 0.5  # for which the model is timed by itself, at least one batch


@dataclass(frozen=True)
class StreamWork:
    """What every stream is sent.

    Attributes:
        code: first, since the model may need it to be unpickled.
        schema: of what arrives.
        on_device: the stages that run there.
        fields, normalize: what becomes of it there (see device.arrival).
        inputs: fields that the model is given, in the order of its arguments.
        examples: by size class, a small block like those that are to come.
        batch_sizes: by size class.
    """

    code: OwnCode
    file: ModelFile
    options: BackendOptions
    schema: Schema
    on_device: Mapping[Split, DevicePart]
    fields: Mapping[str, Arrival]
    normalize: Normalize | None
    inputs: tuple[str, ...]
    wanted: Wanted
    examples: Mapping[int, pa.Table]
    batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class Begun:
    """A stream that is ready.

    Attributes:
        samples_per_s: of the model alone, with a batch that lay there; None where there was no example.
        pid: its process.
        said: what could not be bound, for people.
    """

    device: str
    load_s: float
    samples_per_s: float | None
    pid: int
    said: str | None = None


@dataclass(frozen=True)
class Answered:
    """What a stream tells of a piece.

    Attributes:
        failures: samples that could not be decoded there, or of which the model said nothing; those do not say where
            they lie.
        busy_s: that it has computed since it began; `alive_s` in so long.
        batches_s: seconds of each batch of the piece.
        gpu_busy: share of its time in which the GPU ran a kernel, as its driver has it.
    """

    num_samples: int
    failures: list[Failure]
    busy_s: float
    alive_s: float
    batches_s: list[float]
    stage_s: dict[str, float] = field(default_factory=dict)
    gpu_busy: float | None = None


class Stream:
    """
    Args:
        takes: size classes.
        device: `cpu`, or `cuda` for the GPU that it is given.
    """

    def __init__(self, work: StreamWork, shape: StreamShape, takes: tuple[int, ...], device: str):
        self._work, self._shape, self._takes, self._where = work, shape, takes, device
        self._landed = threading.Lock()  # the copier keeps its buffers
        self._busy_s = 0.0
        self._compute = ThreadPoolExecutor(1, "raytrain-stream")

    def begin(self, *, timed: bool = True) -> Begun:
        """The first call: load the model, and time it alone. (What fails while an actor is made, Ray tells as text.)

        Args:
            timed: not where its process has died of it.

        Raises:
            RaytrainError: it cannot be loaded, or fails.
        """
        began = time.perf_counter()
        self._compute.submit(self._load).result()
        load_s = time.perf_counter() - began
        rate = self._compute.submit(self._alone).result() if timed else None
        self._began_at, self._busy_s, self._watched_at = time.perf_counter(), 0.0, time.time()
        return Begun(str(self._device), load_s, rate, os.getpid(), self._said)

    def predict(self, piece: pa.Table) -> tuple[Answered, pa.Table | None]:
        """The rows of a piece, by batches.

        Raises:
            PredictionError: the model failed.
            DataError: a stage on the device did.
        """
        answers, failures, samples = [], [], 0
        for batch in batches_of(piece):
            with self._landed:
                arriving = self._landing.arriving("train", batch)
            failures += arriving.header.failures
            samples += len(batch.key)
            if len(arriving.key):
                answers.append(self._compute.submit(self._answer, arriving))
        done = [each.result() for each in answers]
        failures += [Failure(int(key), "", NO_NUMBER, "model") for _, keys, _ in done for key in keys]
        alive_s = time.perf_counter() - self._began_at
        with self._landed:
            gpu_busy = self._gpu_busy()
        stage_s, batches_s = dict(self._meter.device_stage_s), [seconds for _, _, seconds in done]
        told = Answered(samples, failures, self._busy_s, alive_s, batches_s, stage_s, gpu_busy)
        return told, pa.concat_tables([rows for rows, _, _ in done]) if done else None

    # --- on the thread that computes ---

    def _load(self) -> None:
        from raytrain.infer.streams.binding import bind

        shape = self._shape
        self._said = bind(shape) if shape.cpus else None
        import torch

        from raytrain.device.arrival import arrivals
        from raytrain.device.busy import BusyWatch, find_source
        from raytrain.device.clock import DeviceStageTimer, HostStageTimer
        from raytrain.device.landing import Landing
        from raytrain.device.meter import RankMeter
        from raytrain.infer.backends.load import load

        torch.set_num_threads(shape.threads)
        work, self._device = self._work, torch.device(self._where)
        options = replace(work.options, threads=shape.threads, device=self._where)
        self._meter = RankMeter()
        timer = HostStageTimer(self._meter) if self._device.type == "cpu" else DeviceStageTimer(self._meter)
        arrived = arrivals(work.schema, work.fields, work.normalize)
        self._landing = Landing(self._device, arrived, work.on_device, timer)
        self._model = load(work.file, options)
        source = find_source(self._device, public_ray(), alone=False)
        self._watch = None if source is None else BusyWatch(source)

    def _inputs(self, arriving: Arriving) -> list[Any]:
        self._landing.await_copy(arriving)
        about = f"a batch, first of id {arriving.key[0]}"
        fields = self._landing.ready("train", arriving, arriving.fields, arriving.drawn, about)
        return [fields[name] for name in self._work.inputs]

    def _answer(self, arriving: Arriving) -> tuple[pa.Table, np.ndarray, float]:
        """Rows, ids of samples that have none, and the seconds that it took."""
        import torch

        from raytrain.infer.output.answers import answers

        began = time.perf_counter()
        try:
            with torch.inference_mode():
                rows, without = answers(arriving.key, self._model(*self._inputs(arriving)), self._work.wanted)
        except torch.OutOfMemoryError as error:
            raise PredictionError(
                f"the GPU has not the memory for a batch of {len(arriving.key)}: {named(error)[:200]}; make "
                "inference.batch_size or inference.tasks_per_gpu smaller"
            ) from None
        except RaytrainError:
            raise
        except Exception as error:  # noqa: BLE001 - a user's model may raise anything
            raise PredictionError(
                f"the model failed on a batch of {len(arriving.key)} samples, the first of id {arriving.key[0]}: "
                f"{named(error)[:300]}"
            ) from None
        taken = time.perf_counter() - began
        self._busy_s += taken
        return rows, without, taken

    def _alone(self) -> float | None:
        """Samples a second of the model by itself, on a batch that lies on the device."""
        import torch

        size = next((size for size in reversed(self._takes) if size in self._work.examples), None)
        if size is None:
            return None
        batch = batches_of(self._work.examples[size])[0]
        with torch.inference_mode():
            arriving = self._landing.arriving("train", batch)
            if not len(arriving.key):
                return None
            count = self._work.batch_sizes[size]
            inputs = [_filled(each, count) for each in self._inputs(arriving)]
            try:
                _timed(self._model, inputs)  # it warms up, and with torch.compile compiles
            except (RaytrainError, torch.OutOfMemoryError):
                raise
            except Exception as error:  # noqa: BLE001 - a user's model may raise anything
                shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
                raise PredictionError(f"the model failed on inputs of shape {shapes}: {named(error)[:300]}") from None
            until = time.perf_counter() + ALONE_S
            taken = [_timed(self._model, inputs)]
            while time.perf_counter() < until:
                taken.append(_timed(self._model, inputs))
        return count * len(taken) / sum(taken)

    def _gpu_busy(self) -> float | None:
        if self._watch is None:
            return None
        now = time.time()
        self._watch.trained(self._watched_at, now)
        self._watched_at = now
        return self._watch.value()


def _timed(model: Any, inputs: list[Any]) -> float:
    began = time.perf_counter()
    model(*inputs)
    return time.perf_counter() - began


def _filled(value: Any, count: int) -> Any:
    """As many samples as a batch has, by repeating those that there are."""
    import torch

    return value[torch.arange(count, device=value.device) % len(value)].contiguous()


def example_inputs(work: StreamWork) -> list[np.ndarray]:
    """What the model will be given, of a few samples: (samples, ...) each, in the order of its arguments."""
    import torch

    from raytrain.device.arrival import arrivals
    from raytrain.device.clock import HostStageTimer
    from raytrain.device.landing import Landing
    from raytrain.device.meter import RankMeter

    cpu = torch.device("cpu")
    arrived = arrivals(work.schema, work.fields, work.normalize)
    landing = Landing(cpu, arrived, work.on_device, HostStageTimer(RankMeter()))
    batch = batches_of(work.examples[max(work.examples)])[0]
    arriving = landing.arriving("train", batch)
    fields = landing.ready("train", arriving, arriving.fields, arriving.drawn, "the first samples")
    return [fields[name].numpy() for name in work.inputs]
