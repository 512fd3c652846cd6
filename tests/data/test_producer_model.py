"""What makes a batch of samples, against a plain stack of those that can be prepared, whichever fail and where."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plan_model import TAILS, num_ranks, planned, plans, positions, samples_of, specs

from raytrain.data.producer import Producer, SplitWork, StreamWork
from raytrain.data.samples.block import batches_of
from raytrain.data.samples.fields import Field, Schema
from raytrain.data.sources.manifest import Manifest
from raytrain.data.stages.stage import Stage
from raytrain.errors import DataError

few = settings(deadline=None, max_examples=100)
SHAPE = (2, 3, 1)
SHARED = np.zeros(SHAPE, np.int64)


@dataclass(frozen=True)
class Numbered:
    """A reader: a sample's bytes are its id, and as many zeros."""

    remote: bool = False

    def read(self, rows, index):
        return {"image": bytes([index] + [0] * (index % 3))}

    def describe(self, rows, index):
        return f"sample {index}"


def unpack(encoded, broken=frozenset(), odd=frozenset()):
    index = int(encoded[0])
    if index in broken:
        raise ValueError(f"{index}\nis broken")
    return np.full((*SHAPE[:2], 2) if index in odd else SHAPE, index, np.int64)


def shake(sample, rng, broken=frozenset()):
    noise = rng.integers(1, 2**30, sample.shape)
    if int(sample.flat[0]) in broken:
        raise KeyError("shake")
    return sample * 2**32 + noise


def into_shared(sample, broken=frozenset()):
    SHARED[:] = sample
    return {"no field"} if int(sample.flat[0] >> 32) in broken else SHARED


def whole(sample, broken=frozenset()):
    return None if int(sample.flat[0] >> 32) in broken else sample


def split(num: int, broken, reuse=False, odd=frozenset()) -> SplitWork:
    """Ids whose sample breaks in each of the three stages."""
    first, second, third = broken
    stages = (
        Stage("unpack", unpack, False, {"broken": first, "odd": odd}, on=("image",)),
        Stage("shake", shake, True, {"broken": second}, on=("image",)),
        Stage("last", into_shared if reuse else whole, False, {"broken": third}, on=("image",)),
    )
    schema = Schema({"image": Field("bytes", (), "image"), "label": Field("int64", ())})
    return SplitWork(Manifest(pa.table({"label": np.arange(num) * 7 % 5}), Numbered(), schema, ("label",)), stages)


def prepared(seed: int, epoch: int, index: int) -> np.ndarray:
    key = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)
    rng = np.random.Generator(np.random.Philox(key=key, counter=[0, index, 0, 0]))
    return np.full(SHAPE, index, np.int64) * 2**32 + rng.integers(1, 2**30, SHAPE)


def producer(plan, splits) -> Producer:
    return Producer(StreamWork(plan, pickle.dumps((None, splits))))


ids = st.frozensets(st.integers(0, 60), max_size=12)
holes = st.tuples(ids, ids, ids) | st.just((frozenset(range(61)), frozenset(), frozenset()))


@pytest.mark.parametrize("tail", TAILS)
@settings(few, max_examples=40)
@given(broken=holes, held_out_broken=holes, reuse=st.booleans(), data=st.data())
def test_a_batch_is_the_stack_of_what_can_be_prepared(tail, broken, held_out_broken, reuse, data):
    plan = data.draw(plans(tails=(tail,), most=20))
    spec = plan.spec
    splits = {
        "train": split(spec.num_train, broken, reuse),
        "validation": split(spec.num_validation, held_out_broken, reuse),
    }
    made = producer(plan, splits)
    places = plan.places().tolist()
    assume(places)
    first = data.draw(st.integers(0, len(places) - 1))
    for segment, number in places[first : first + 6]:
        part = plan.segments[segment]
        start, stop = plan.bounds(segment, number)
        keys = plan.segment_keys(segment)[start:stop]
        samples = samples_of(plan, part, keys)
        bad = frozenset().union(*(broken if part.split == "train" else held_out_broken))
        kept = [place for place, (_, index) in enumerate(samples) if index not in bad]
        drawn = [(0 if part.split == "validation" else epoch, index) for epoch, index in samples]
        images = [prepared(spec.seed, *drawn[place]) for place in kept]
        [batch] = batches_of(made.block(segment, number, 1))
        some_work = any(i not in bad for i in range(spec.num_train if part.split == "train" else spec.num_validation))
        if not some_work:
            assert (batch.fields, kept) == ({}, [])
        else:
            assert batch.fields["image"].shape == (len(kept), *SHAPE)
            assert all(np.array_equal(one, other) for one, other in zip(batch.fields["image"], images, strict=True))
            assert batch.fields["label"].tolist() == [samples[place][1] * 7 % 5 for place in kept]
        assert batch.key.tolist() == keys[kept].tolist()
        header = batch.header
        assert [failure.id for failure in header.failures] == [i for _, i in samples if i in bad]
        assert all(f.where == f"sample {f.id}" and "\n" not in f.reason for f in header.failures)
        seen_before = [start + place >= part.num_ids - part.repeated for place in range(len(samples))]
        assert header.repeated == sum(seen_before[place] for place in kept)
        lost = [place for place in range(len(samples)) if place not in kept and not seen_before[place]]
        assert header.left_out == keys[lost].tolist()
        assert header.read_bytes == sum(1 + index % 3 for _, index in samples)
        assert list(header.stage_wall_s) == list(header.stage_cpu_s) == ["read", "unpack", "shake", "last"]
        assert (header.segment, header.batch) == (segment, number)


@pytest.mark.parametrize("tail", ["share", "carry"])
@settings(few, max_examples=40)
@given(world=num_ranks, other=num_ranks, broken=holes, data=st.data())
def test_a_sample_is_the_same_whatever_the_shape_of_the_cluster(tail, world, other, broken, data):
    """Its random numbers too: on other ranks, in batches of another size, carried over or not, alone or in a block."""
    spec = data.draw(specs(tails=(tail,), most=20))
    epoch, done = data.draw(positions(spec))
    work = {"train": split(spec.num_train, broken), "validation": split(spec.num_validation, broken)}
    one = planned(spec, world, epoch, done)
    a_rank = spec.batch_size // 4 if spec.is_global else spec.batch_size
    two = planned(replace(spec, batch_size=max(a_rank - 1, 1), is_global=False), other, epoch)
    found: list[dict] = []
    for plan, count in ((one, 1), (two, 2)):
        made, images = producer(plan, work), {}
        for part in [part for part in plan.segments if part.split == "train"][:2]:
            for number in range(0, part.num_batches - count + 1, count):
                for batch in batches_of(made.block(part.number, number, count)):
                    if len(batch.key):
                        images |= zip(samples_of(plan, part, batch.key), batch.fields["image"].copy(), strict=True)
        found.append(images)
    for sample in found[0].keys() & found[1].keys():
        assert np.array_equal(found[0][sample], found[1][sample])
        assert np.array_equal(found[0][sample], prepared(spec.seed, *sample))


@few
@given(plans(most=10), ids, st.data())
def test_samples_of_two_shapes_are_refused_and_named(plan, odd, data):
    """Wherever in the batch the odd ones are."""
    nothing = (frozenset(),) * 3
    made = producer(plan, {"train": split(plan.spec.num_train, nothing, odd=odd), "validation": split(99, nothing)})
    train = [place for place in plan.places().tolist() if plan.segments[place[0]].split == "train"]
    assume(train)
    segment, number = data.draw(st.sampled_from(train))
    start, stop = plan.bounds(segment, number)
    kinds = [i in odd for _, i in samples_of(plan, plan.segments[segment], plan.segment_keys(segment)[start:stop])]
    few = min(sum(kinds), len(kinds) - sum(kinds))
    if 0 < few <= max(1, len(kinds) / 10) and 2 * few < len(kinds):
        batch = made.batch(segment, number)
        assert len(batch.key) == stop - start - few and len(batch.header.failures) == few, "left out and named"
        assert {failure.stage for failure in batch.header.failures} == {"unpack"}
    elif len(set(kinds)) <= 1:
        assert len(made.batch(segment, number).key) == stop - start
    else:
        with pytest.raises(
            DataError,
            match=r"different shapes: .* of sample \d+ and .* of sample \d+; end its stages",
        ):
            made.batch(segment, number)
