"""What a preprocessing worker does: it turns places in the plan into ready batches (data.worker.task calls it).

Imported by every worker of every CPU host: NumPy, OpenCV and pyarrow only.
"""

from __future__ import annotations

import pickle
import sys
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import numpy as np
import pyarrow as pa

from raytrain.data.made import Made, copied, overlaps
from raytrain.data.order import SampleRng, Segment, Split, StreamPlan
from raytrain.data.samples.block import UNCUT, Header, Prepared, to_table
from raytrain.data.samples.collate import Collation, Column, Encoded, check_fields, columns_of, without_samples
from raytrain.data.samples.fields import Sample, encoded_bytes
from raytrain.data.sources.manifest import Manifest
from raytrain.data.stage_clock import StageClock
from raytrain.data.stages.stage import WHERE, Stage, StageFailed
from raytrain.data.stages.torchvision import apply_named, apply_transform
from raytrain.data.worker.crumb import HERE
from raytrain.data.worker.odd import OddOnes
from raytrain.errors import ConfigError, DataError, RaytrainError, named
from raytrain.record.status import READ, Failure

CACHED_SEGMENTS = 3
TEMPLATE_TRIES = 64


@dataclass(frozen=True)
class SplitWork:
    """One split as the workers need it.

    Attributes:
        stages: that they run.
        stages_at: instead, by cut, where more or fewer of them run on the device.
        allow_nan: stages may make numbers that are none.
    """

    manifest: Manifest
    stages: tuple[Stage, ...]
    collations: Mapping[str, Collation | Encoded] = field(default_factory=dict)
    stages_at: Mapping[int, tuple[Stage, ...]] = field(default_factory=dict)
    allow_nan: bool = False

    @property
    def is_decoded_later(self) -> bool:
        """Whether the ranks decode a field, so that they need to know what to call a sample that is no image."""
        return any(isinstance(each, Encoded) for each in self.collations.values())


@dataclass(frozen=True)
class StreamWork:
    """Everything a task needs beside its places in the plan; put into the object store once a stream.

    Attributes:
        splits_pickle: of OwnCode, dict[Split, SplitWork]: only workers unpickle what users' stages bring along.
        stage_timeout_s: that a stage, or reading, may be at one sample; None for as long as it likes.
        left_out: samples that are not tried, since workers have died of them.
        public_ray: through Ray's public API alone.
        name: no other has it.
    """

    plan: StreamPlan
    splits_pickle: bytes
    stage_timeout_s: float | None = None
    left_out: Mapping[Split, Mapping[int, Failure]] = field(default_factory=dict)
    public_ray: bool = False
    name: str = field(default_factory=lambda: uuid.uuid4().hex)

    def splits(self) -> dict[Split, SplitWork]:
        _, splits = pickle.loads(self.splits_pickle)
        return splits


@dataclass(frozen=True)
class Staged:
    """Samples behind the stages.

    Attributes:
        ids: of all that were read.
        kept: fields of each as they were read; none of one that could not be.
    """

    split: SplitWork
    ids: np.ndarray
    made: Made
    clock: StageClock
    read_bytes: int
    kept: list[Sample]

    def describe(self, place: int) -> str:
        """One of the samples that were made, by its place among them."""
        return self.split.manifest.describe(self.ids[self.made.places[place]])

    def settle(self) -> None:
        """The account of the stages is finished."""
        self.clock.settle([stage.name for stage in self.split.stages])


class _LeftOut(Exception):
    """In place of a sample that is not tried; the argument is its Failure."""


class Producer:
    """One stream's work in one worker process, kept between tasks.

    Attributes:
        crumb: says what it is at.
        left_out: samples that are not tried.
    """

    def __init__(self, work: StreamWork):
        self.plan = work.plan
        self.splits = work.splits()
        self._keys: OrderedDict[int, np.ndarray] = OrderedDict()
        self._templates: dict[tuple[Split, int], dict[str, Column]] = {}
        self._rng = SampleRng(work.plan.spec.seed)
        self._node = node_id()
        every = (stages for split in self.splits.values() for stages in (split.stages, *split.stages_at.values()))
        if any(stage.function in (apply_named, apply_transform) for stages in every for stage in stages):
            import torchvision.transforms.v2  # noqa: F401 - now, where nothing disturbs it
        self._odd = OddOnes(self._rng)
        self._copies = False  # whether a stage reuses the memory that it returns
        self.crumb = HERE
        self.left_out = {split: dict(work.left_out.get(split, {})) for split in self.splits}

    def block(self, segment: int, batch: int, count: int, cut: int = UNCUT) -> pa.Table:
        """`count` batches from `batch` on as one block."""
        numbers = range(batch, batch + count)
        return to_table([self.batch(segment, number, cut, together=count > 1) for number in numbers])

    def batch(self, segment: int, number: int, cut: int = UNCUT, *, together: bool = False) -> Prepared:
        """Prepare one batch, its samples `together` in memory of their own if others of its block come after it.

        Args:
            cut: how many of the stages run here; UNCUT as usual.

        Raises:
            DataError: a file cannot be read, or the samples of a batch do not go together.
        """
        part = self.plan.segments[segment]
        start, _ = self.plan.bounds(segment, number)
        keys, epochs, ids = self.samples(segment, number)
        self.crumb.batch(number, cut)
        staged = self.staged(part.split, epochs, ids, cut)
        split, made, clock = staged.split, staged.made, staged.clock
        columns = {}
        if made.samples:
            columns = columns_of(made.samples, split.collations, staged.describe, together=together)
            self._templates[part.split, cut] = {name: without_samples(each) for name, each in columns.items()}
        staged.settle()
        at = np.asarray(made.places, dtype=np.int64)
        fresh = int(np.clip(part.num_ids - part.repeated - start, 0, len(keys)))  # the rest is in an earlier batch too
        header = Header(
            segment,
            number,
            clock.wall_s,
            clock.cpu_s,
            made.failures,
            left_out=np.delete(keys[:fresh], np.unique(at[at < fresh])).tolist(),
            filtered=sum(place < fresh for place in made.unwanted),
            repeated=int(np.count_nonzero(at >= fresh)),
            read_bytes=staged.read_bytes,
            node=self._node,
            torch_imported="torch" in sys.modules,
            cut=cut,
        )
        if not columns:
            if (part.split, cut) not in self._templates:
                epoch = int(epochs[0]) if len(epochs) else 0
                self._templates[part.split, cut] = self._template(part.split, split, epoch)
            columns = self._templates[part.split, cut]
        parts = np.asarray(made.parts, dtype=np.int64) if any(made.parts) else None
        self.crumb.rests()
        return Prepared(columns, keys[at], header, parts)

    def samples(self, segment: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a batch: keys, the epochs whose random numbers they get, and ids, each int64 (samples,)."""
        start, stop = self.plan.bounds(segment, number)
        keys = self._segment_keys(segment)[start:stop]
        return (keys, *self._of(self.plan.segments[segment], keys))

    def work_at(self, name: Split, cut: int) -> SplitWork:
        """With the stages that run here."""
        split = self.splits[name]
        return split if cut == UNCUT else replace(split, stages=split.stages_at[cut])

    def staged(
        self, name: Split, epochs: np.ndarray, ids: np.ndarray, cut: int = UNCUT, *, keep: Sequence[str] = ()
    ) -> Staged:
        """Samples of a split, behind the stages.

        Args:
            epochs: whose random numbers each gets.
            keep: fields that are wanted as they were read, too.

        Raises:
            DataError: a file cannot be read, or a stage on a whole batch failed.
        """
        split = self.work_at(name, cut)
        clock = StageClock([READ, *(stage.name for stage in split.stages)])
        raw = self._read(name, split.manifest, epochs, ids)
        clock.lap(READ)
        clock.settle([READ])
        read_bytes = encoded_bytes(raw)
        kept = [{} if isinstance(each, Exception) else {n: each[n] for n in keep if n in each} for each in raw]
        made = self._stages_of(split, raw, epochs.tolist(), ids.tolist(), clock)
        if made is None:  # what came before has been overwritten
            self._copies = True
            return self.staged(name, epochs, ids, cut, keep=keep)
        if split.is_decoded_later:
            for sample, place in zip(made.samples, made.places, strict=True):
                sample[WHERE] = split.manifest.describe(ids[place])
        return Staged(split, ids, made, clock, read_bytes, kept)

    def _read(self, name: Split, manifest: Manifest, epochs: np.ndarray, ids: np.ndarray) -> list[Sample | Exception]:
        def rng_of(place: int) -> np.random.Generator:
            return self._rng.of(int(epochs[place]), int(ids[place]), reading=True)

        if not (known := self.left_out[name]):
            return manifest.read_many(ids, rng_of, self.crumb.reads)
        tried = np.asarray([place for place, index in enumerate(ids.tolist()) if index not in known], dtype=np.int64)
        read = iter(manifest.read_many(ids[tried], lambda place: rng_of(int(tried[place])), self.crumb.reads))
        return [_LeftOut(known[index]) if index in known else next(read) for index in ids.tolist()]

    def _stages_of(
        self, split: SplitWork, raw: list[Sample | Exception], epochs: list[int], ids: list[int], clock: StageClock
    ) -> Made | None:
        """All stages on all samples; None where memory that had been returned was used again.

        Raises:
            ConfigError: a stage that no sample can pass.
        """
        each = [stage for stage in split.stages if stage.scope != "batch"]
        random = any(stage.random for stage in each)
        made = Made()
        for place, (epoch, index, sample) in enumerate(zip(epochs, ids, raw, strict=True)):
            rng = self._rng.of(epoch, index) if random else None
            of_parts = map(partial(self._rng.of, epoch, index), count(1))
            self.crumb.sample(index)
            if isinstance(sample, _LeftOut):
                made.failures.append(sample.args[0])
                continue
            try:
                results = self._run(each, sample, rng, of_parts, clock)
            except StageFailed as failed:  # it is counted and listed
                where, reason = split.manifest.describe(index), named(failed.error)[:300]
                made.failures.append(Failure(int(index), where, reason, failed.stage))
                continue
            if not results:
                made.unwanted.append(place)
            for part, result in enumerate(results):
                if not self._copies and overlaps(result, made):
                    return None
                made.samples.append(result)
                made.places.append(place)
                made.parts.append(part)
        if len(made.samples) == 1 and made.places[0] + 1 < len(ids) and not self._copies:
            return None  # a stage that reuses its memory may have put there what failed after it
        self.crumb.rests()
        rules = split.collations if len(each) == len(split.stages) else None
        self._odd.leave_out(split.manifest, each, made, epochs, ids, rules=rules, allow_nan=split.allow_nan)
        if made.samples and len(each) < len(split.stages):
            self._on_batch(split.stages[len(each) :], split, made, epochs, ids, clock)
        return made

    def _on_batch(
        self,
        stages: Sequence[Stage],
        split: SplitWork,
        made: Made,
        epochs: list[int],
        ids: list[int],
        clock: StageClock,
    ) -> None:
        """
        Raises:
            DataError: one failed, which no single sample is to blame for.
        """
        check_fields(made.samples, lambda place: split.manifest.describe(ids[made.places[place]]))
        first = made.places[0]
        rng = self._rng.of(epochs[first], ids[first], made.parts[0], batch=True)
        clock.begin()
        for number, stage in enumerate(stages):
            self.crumb.stage_of_batch(number)
            try:
                made.samples = stage.on_batch(made.samples, rng if stage.random else None)
            except RaytrainError:
                raise
            except Exception as error:  # noqa: BLE001 - a user's stage may raise anything
                ends = (split.manifest.describe(ids[made.places[n]]) for n in (0, -1))
                raise DataError(
                    f"the stage `{stage.name}` failed on the batch from {' to '.join(ends)}: {named(error)[:300]}"
                ) from None
            clock.lap(stage.name)
        self.crumb.rests()

    def _run(
        self,
        stages: Sequence[Stage],
        sample: Sample | Exception,
        rng: np.random.Generator | None,
        of_parts: Iterator[np.random.Generator],
        clock: StageClock,
    ) -> list[Sample]:
        """What the stages make of a sample: one, none where it is not wanted, or several.

        Args:
            of_parts: the random numbers of those that a stage makes of one, each valid until the next is asked for.

        Raises:
            StageFailed: on this sample.
            ConfigError: a stage that no sample can pass.
        """
        if isinstance(sample, Exception):  # its source could not read it
            raise StageFailed(sample, None)
        clock.begin()
        for number, stage in enumerate(stages):
            self.crumb.stage(len(stages) - number)
            try:
                result = stage(sample, rng)
            except (ConfigError, StageFailed):
                raise
            except Exception as error:  # noqa: BLE001 - a user's stage may raise anything
                raise StageFailed(error, None if stage.decodes else stage.name) from None
            clock.lap(stage.name)
            if result is None:
                return []
            if isinstance(result, list):
                rest = stages[number + 1 :]
                parts = [self._run(rest, each, next(of_parts) if rng else None, of_parts, clock) for each in result]
                return [each for part in parts for each in part]
            sample = result
        return [copied(sample) if self._copies else sample]

    def _template(self, name: Split, split: SplitWork, epoch: int) -> dict[str, Column]:
        """Columns without samples like those that others have, for when a whole batch cannot be prepared.

        Those that are tried lie all over the data set, since what is broken often lies together. Empty where none of
        them can be prepared.
        """
        found: dict[str, Column] = {}
        last = split.manifest.num_samples - 1
        for index in np.unique(np.linspace(0, last, TEMPLATE_TRIES, dtype=np.int64)).tolist():
            if index in self.left_out[name]:
                continue
            try:
                found = self._columns_of_one(split, epoch, index)
            except DataError:  # which its own batch will meet, if it is one of that too
                continue
            if found:
                break
        return found

    def _columns_of_one(self, split: SplitWork, epoch: int, index: int) -> dict[str, Column]:
        clock = StageClock(stage.name for stage in split.stages)  # read by nobody: this is not the batch's own work
        made = None
        while made is None:
            raw = split.manifest.read_many([index], None, self.crumb.reads)
            made = self._stages_of(split, raw, [epoch], [index], clock)
            self._copies |= made is None
        if not made.samples:
            return {}
        columns = columns_of(made.samples[:1], split.collations, lambda _: split.manifest.describe(index))
        return {name: without_samples(each) for name, each in columns.items()}

    def _of(self, part: Segment, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The epoch whose random numbers each sample gets, and its id; validation draws the same in every epoch."""
        if part.split == "validation":
            return np.zeros_like(keys), keys
        carried, ids = np.divmod(keys, self.plan.spec.num_train)
        return part.epoch - carried, ids

    def _segment_keys(self, segment: int) -> np.ndarray:
        if segment not in self._keys:
            self._keys[segment] = self.plan.segment_keys(segment)
            while len(self._keys) > CACHED_SEGMENTS:
                self._keys.popitem(last=False)
        return self._keys[segment]


def node_id() -> str:
    import ray

    return ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
