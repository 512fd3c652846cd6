"""What a CPU task of a prediction does: ids in, ready batches out, and what could not be prepared.

Imported by every worker of every CPU host: NumPy, OpenCV and pyarrow only.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.producer import Producer, Staged, node_id
from raytrain.data.samples.block import Header, Prepared, to_table
from raytrain.data.samples.collate import columns_of
from raytrain.data.samples.fields import BFLOAT16, TEXT, Sample
from raytrain.data.worker.crumb import HERE
from raytrain.data.worker.task import producer_of
from raytrain.errors import DataError
from raytrain.infer.sizes import Sizes
from raytrain.record.status import Failure

Keep = Mapping[str, str]
"""Fields that are written beside the predictions, as they were read, and their dtypes; empty where nobody knows."""

WHERE = "where"  # in place of a dtype: the sample's file, or place in one, where it has no field of that name


@dataclass(frozen=True)
class PreparedBlock:
    """What a task tells of its block; the samples stay in the object store.

    Attributes:
        counts: of samples that are ready, by size class.
        failures: the other samples.
        kept: `id` and the fields to be written, of every sample that could be read.
        wall_s, cpu_s: seconds by stage, `read` first (see data.stage_clock).
        nbytes: of the samples that are ready.
        node: Ray node id, hexadecimal.
    """

    counts: tuple[int, ...]
    failures: list[Failure]
    kept: pa.Table
    wall_s: dict[str, float]
    cpu_s: dict[str, float]
    num_samples: int = 0
    nbytes: int = 0
    node: str = ""
    torch_imported: bool = False


@dataclass
class _Sorted:
    """Places of samples by size class, and those that have none."""

    groups: list[list[int]]
    failures: list[Failure] = field(default_factory=list)


def prepare(
    ids: np.ndarray, *, work_ref: list[Any], sizes: Sizes, keep: Keep, rest: Mapping[str, Sequence[int]]
) -> tuple[Any, ...]:
    """The Ray task: what is to be told, and then the samples of each size class as a block (see data.samples.block),
    None where there are none.

    Args:
        work_ref: of one reference to a StreamWork, so that Ray passes it on without fetching it.
        rest: by Ray node id, the CPUs that no stream has, to which it keeps.
    """
    _, producer = producer_of(work_ref[0])
    own = rest.get(node_id())
    before = os.sched_getaffinity(0)
    try:
        if own:
            os.sched_setaffinity(0, own)
        told, tables = prepared(producer, ids, sizes, keep)
    finally:
        HERE.rests()
        os.sched_setaffinity(0, before)
    return (told, *tables)


def prepared(
    producer: Producer, ids: np.ndarray, sizes: Sizes, keep: Keep
) -> tuple[PreparedBlock, list[pa.Table | None]]:
    """Likewise.

    Raises:
        DataError: a file cannot be read, or samples do not go together.
    """
    staged = producer.staged("train", np.zeros_like(ids), ids, keep=_read(keep))
    found = _sort(staged, sizes)
    made = [_batches(staged, group, number, sizes) for number, group in enumerate(found.groups)]
    staged.settle()
    told = PreparedBlock(
        counts=tuple(map(len, found.groups)),
        failures=found.failures,
        kept=_kept(staged, keep),
        wall_s=staged.clock.wall_s,
        cpu_s=staged.clock.cpu_s,
        num_samples=len(ids),
        nbytes=sum(batch.nbytes for batches in made for batch in batches),
        node=node_id(),
        torch_imported="torch" in sys.modules,
    )
    return told, [to_table(batches) if batches else None for batches in made]


def _sort(staged: Staged, sizes: Sizes) -> _Sorted:
    """One row for each id: what a stage has made several of, or did not want, is told as a failure."""
    made, describe = staged.made, staged.split.manifest.describe
    found = _Sorted([[] for _ in range(len(sizes))], [*made.failures])

    def fail(place: int, reason: str, stage: str) -> None:
        index = int(staged.ids[place])
        found.failures.append(Failure(index, describe(index), reason, stage))

    for place in made.unwanted:
        fail(place, "a stage does not want it", "filter")
    several = Counter(made.places)
    for place, count in several.items():
        if count > 1:
            fail(place, f"the stages have made {count} samples of it; a prediction is of one", "stages")
    for at, (sample, place) in enumerate(zip(made.samples, made.places, strict=True)):
        if several[place] > 1:
            continue
        number = sizes.of(sample)
        if number is None:
            fail(place, f"`{sizes.by}` has length {sizes.length(sample)}; the last class is {sizes.longest}", "size")
        else:
            found.groups[number].append(at)
    return found


def _batches(staged: Staged, group: Sequence[int], number: int, sizes: Sizes) -> list[Prepared]:
    """Of one size class, each as the model takes it."""
    made, size = staged.made, sizes.batch_sizes[number]
    collations = sizes.collations(number, staged.split.collations)
    found = []
    for first in range(0, len(group), size):
        places = group[first : first + size]
        samples = [made.samples[place] for place in places]
        columns = columns_of(
            samples,
            collations,
            lambda at, places=places: staged.describe(places[at]),
            together=len(group) > size,
        )
        ids = staged.ids[[made.places[place] for place in places]]
        found.append(Prepared(columns, ids, Header(0, len(found), {}, {})))
    return found


def _read(keep: Keep) -> tuple[str, ...]:
    return tuple(name for name, dtype in keep.items() if dtype != WHERE)


def _kept(staged: Staged, keep: Keep) -> pa.Table:
    read, describe = _read(keep), staged.split.manifest.describe
    there = [place for place, sample in enumerate(staged.kept) if not read or sample]
    columns = {"id": pa.array(staged.ids[there], pa.int64())}
    for name, dtype in keep.items():
        if dtype == WHERE:
            values = [describe(int(staged.ids[place])) for place in there]
        else:
            values = [_plain(name, staged.kept[place], staged, place) for place in there]
        columns[name] = pa.array(values, arrow_type(dtype))
    return pa.table(columns)


def _plain(name: str, sample: Sample, staged: Staged, place: int) -> Any:
    value = sample.get(name)
    if isinstance(value, bytes) or np.ndim(value):
        where = staged.split.manifest.describe(int(staged.ids[place]))
        raise DataError(f"output.fields: field `{name}` of {where} is no text and no number; leave it out")
    return value.item() if isinstance(value, np.ndarray | np.generic) else value


def arrow_type(dtype: str) -> pa.DataType | None:
    """Of a field's dtype; None where Arrow is to see for itself."""
    if dtype in ("", TEXT, WHERE):
        return pa.string() if dtype else None
    return pa.float32() if dtype == BFLOAT16 else pa.from_numpy_dtype(np.dtype(dtype))
