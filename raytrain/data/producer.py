"""What a preprocessing worker does: a generator task that turns places in the plan into ready batches.

Imported by every worker of every CPU host: NumPy, OpenCV and pyarrow only.
"""

from __future__ import annotations

import ctypes
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import pyarrow as pa

from raytrain.data.block import NO_SAMPLE, Header, Prepared, to_table
from raytrain.data.order import SampleRng, Segment, Split, StreamPlan
from raytrain.data.sources.manifest import Manifest
from raytrain.data.stage_clock import StageClock
from raytrain.data.stages.images import decode_image
from raytrain.data.stages.stage import Stage
from raytrain.errors import ConfigError, DataError, named
from raytrain.record.status import Failure

CACHED_SEGMENTS = 3
TEMPLATE_TRIES = 64
# glibc's mallopt parameters (malloc.h): never give memory back, never map an allocation of its own.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_TOP_PAD = -1, -3, -2


@dataclass(frozen=True)
class SplitWork:
    """One split as the workers need it."""

    manifest: Manifest
    stages: tuple[Stage, ...]


@dataclass(frozen=True)
class StreamWork:
    """Everything a task needs beside its places in the plan; put into the object store once a stream."""

    plan: StreamPlan
    splits_pickle: bytes  # of OwnCode, dict[Split, SplitWork]: only workers unpickle what users' stages bring along

    def splits(self) -> dict[Split, SplitWork]:
        _, splits = pickle.loads(self.splits_pickle)
        return splits


class StageFailed(Exception):
    """On one sample: `error`, in `stage`, or in the decoding where that is None."""

    def __init__(self, error: Exception, stage: str | None):
        super().__init__(error)
        self.error, self.stage = error, stage


class Producer:
    """One stream's work in one worker process, kept between tasks."""

    def __init__(self, work: StreamWork):
        self._plan = work.plan
        self._splits = work.splits()
        self._keys: OrderedDict[int, np.ndarray] = OrderedDict()
        self._templates: dict[Split, np.ndarray] = {}
        self._rng = SampleRng(work.plan.spec.seed)
        self._node = _node_id()
        self._copies = False  # whether a stage reuses the memory that it returns

    def block(self, segment: int, batch: int, count: int) -> pa.Table:
        """`count` batches from `batch` on as one block."""
        numbers = range(batch, batch + count)
        return to_table([self.batch(segment, number, together=count > 1) for number in numbers])

    def batch(self, segment: int, number: int, *, together: bool = False) -> Prepared:
        """Prepare one batch, its samples `together` in memory of their own if others of its block come after it.

        Raises:
            DataError: a file cannot be read, or the samples of a batch come out in different shapes.
        """
        part = self._plan.segments[segment]
        split = self._splits[part.split]
        start, stop = self._plan.bounds(segment, number)
        keys = self._segment_keys(segment)[start:stop]
        epochs, ids = self._of(part, keys)
        stages = [s.name for s in split.stages]

        clock = StageClock(["read", *stages])
        raw = split.manifest.read_many(ids)
        clock.lap("read")
        clock.settle(["read"])

        images: list[np.ndarray] = []
        failures: list[Failure] = []
        kept: list[int] = []  # places within the batch
        random = any(s.random for s in split.stages)
        for place, (epoch, index, sample) in enumerate(zip(epochs.tolist(), ids, raw, strict=True)):
            rng = self._rng.of(epoch, index) if random else None
            try:
                image = _run(split.stages, sample, rng, clock)
            except StageFailed as failed:  # it is counted and listed
                where, reason = split.manifest.describe(index), named(failed.error)[:300]
                failures.append(Failure(int(index), where, reason, failed.stage))
                continue
            if images and (image.shape != images[0].shape or image.dtype != images[0].dtype):
                raise DataError(
                    f"samples come out in different shapes or types: {images[0].shape} {images[0].dtype} and "
                    f"{image.shape} {image.dtype} ({split.manifest.describe(index)}); end the stages with a resize"
                )
            if not self._copies and images and _overlaps(image, images):
                self._copies = True  # what came before has been overwritten
                return self.batch(segment, number, together=together)
            images.append(image.copy() if self._copies else image)
            kept.append(place)
        if len(images) == 1 and kept[0] + 1 < len(keys) and not self._copies:
            self._copies = True  # a stage that reuses its memory may have put there what failed after it
            return self.batch(segment, number, together=together)
        clock.settle(stages)
        if images:
            self._templates[part.split] = np.empty_like(images[0])
        kept_at = np.asarray(kept, dtype=np.int64)
        fresh = int(np.clip(part.num_ids - part.repeated - start, 0, len(keys)))  # the rest is in an earlier batch too
        header = Header(
            segment,
            number,
            clock.wall_s,
            clock.cpu_s,
            failures,
            left_out=np.delete(keys[:fresh], kept_at[kept_at < fresh]).tolist(),
            repeated=int(np.count_nonzero(kept_at >= fresh)),
            read_bytes=sum(r.nbytes for r in raw if isinstance(r, np.ndarray) and r.ndim == 1),
            node=self._node,
            torch_imported="torch" in sys.modules,
        )
        like = self._templates.get(part.split)
        if like is None:
            like = self._templates[part.split] = self._template(part.split, int(epochs[0]) if len(epochs) else 0)
        labels = split.manifest.labels[ids[kept_at]]
        return Prepared.of(images, like, labels, keys[kept_at], header, together=together)

    def _template(self, name: Split, epoch: int) -> np.ndarray:
        """A sample of the shape and type that others have, for when a whole batch is undecodable.

        Those that are tried lie all over the data set, since what is broken often lies together. NO_SAMPLE where none
        of them can be prepared.
        """
        split = self._splits[name]
        last = split.manifest.num_samples - 1
        for index in np.unique(np.linspace(0, last, TEMPLATE_TRIES, dtype=np.int64)).tolist():
            try:
                sample = split.manifest.read_many([index])[0]
                clock = StageClock(s.name for s in split.stages)  # read by nobody: this is not the batch's own work
                return np.empty_like(_run(split.stages, sample, self._rng.of(epoch, index), clock))
            except StageFailed:  # undecodable too: counted when its own batch is made
                continue
        return NO_SAMPLE

    def _of(self, part: Segment, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The epoch whose random numbers each sample gets, and its id; validation draws the same in every epoch."""
        if part.split == "validation":
            return np.zeros_like(keys), keys
        carried, ids = np.divmod(keys, self._plan.spec.num_train)
        return part.epoch - carried, ids

    def _segment_keys(self, segment: int) -> np.ndarray:
        if segment not in self._keys:
            self._keys[segment] = self._plan.segment_keys(segment)
            while len(self._keys) > CACHED_SEGMENTS:
                self._keys.popitem(last=False)
        return self._keys[segment]


def _run(
    stages: tuple[Stage, ...], sample: np.ndarray | Exception, rng: np.random.Generator | None, clock: StageClock
) -> np.ndarray:
    """
    Raises:
        StageFailed: on this sample.
        ConfigError: a stage that no sample can pass.
    """
    if isinstance(sample, Exception):  # a source of the user's own could not read it
        raise StageFailed(sample, None)
    clock.begin()
    for each in stages:
        try:
            sample = each(sample, rng)
        except ConfigError:
            raise
        except Exception as error:  # noqa: BLE001 - a user's stage may raise anything
            raise StageFailed(error, None if each.function is decode_image else each.name) from None
        clock.lap(each.name)
    if not isinstance(sample, np.ndarray):
        last = stages[-1].name if stages else None
        raise StageFailed(TypeError(f"the last stage returned {type(sample).__name__}, expected a NumPy array"), last)
    return sample


def _overlaps(image: np.ndarray, images: list[np.ndarray]) -> bool:
    """Whether a stage has returned the same memory again."""
    return np.may_share_memory(image, images[0]) or np.may_share_memory(image, images[-1])


_PRODUCERS: dict[str, Producer] = {}


def produce(places: pa.Table, *, work_ref: list) -> Iterator[pa.Table]:
    """The Ray Data task: places (`segment`, first `batch`, `count`) in, the ready batches of each as a block out.

    `work_ref` is a list of one reference to a StreamWork, so that Ray passes it on without fetching it.
    """
    prepare_process()
    key = work_ref[0].hex()
    if key not in _PRODUCERS:
        import ray

        _PRODUCERS.clear()
        _PRODUCERS[key] = Producer(ray.get(work_ref[0]))
    producer = _PRODUCERS[key]
    for place in places.to_pylist():
        yield producer.block(**place)


@cache
def prepare_process() -> None:
    """Once a process: one thread per task, and an allocator that keeps its pages.

    glibc maps and unmaps every temporary above 128 kB, page fault by page fault, which halves image preprocessing.
    Clusters that raytrain starts have this in the environment; on any other cluster it is set here.
    """
    import cv2

    cv2.setNumThreads(0)
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # glibc refuses more than half of its 64 MiB heap
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TOP_PAD, 64 << 20)


def _node_id() -> str:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
