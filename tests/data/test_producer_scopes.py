"""Stages that leave samples out, make several of one, change several fields or a whole batch; what a data set draws.

A sample comes out the same whatever the batch and the cluster that it is prepared in.
"""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain import Pipeline
from raytrain.data import from_torch, keep_if, padded, ragged, random_crop, stage
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import batches_of
from raytrain.errors import ConfigError, DataError

SHAPES = [(4, 1), (3, 2), (1, 3), (12, 1)]  # batch size, ranks


class Numbers:
    """Sample i has `x`, three times i, and its number."""

    def __init__(self, count: int = 12):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):
        return {"x": np.full(3, index, np.float64), "number": index}


class Made:
    """All that a producer makes of a data set."""

    def __init__(self, dataset, stages, batch_size=4, world=1, epochs=1, count=1, seed=0, **options):
        pipeline = Pipeline(dataset, stages, batch_size=batch_size, **options).open(seed)
        count_of = (pipeline.train.num_samples, pipeline.num_validation)
        spec = StreamSpec(*count_of, batch_size, seed, epochs=epochs, tail=pipeline.pipeline.tail)
        self.plan = StreamPlan(spec, Position(), world)
        self.producer = Producer(StreamWork(self.plan, pipeline.pickled_splits()))
        self.count = count

    def batches(self, segment=0):
        number = self.plan.segments[segment].num_batches
        blocks = [(first, min(self.count, number - first)) for first in range(0, number, self.count)]
        return [batch for place in blocks for batch in batches_of(self.producer.block(segment, *place))]

    def samples(self, segment=0) -> dict:
        """By id and part, the fields."""
        found = {}
        for batch in self.batches(segment):
            parts = np.zeros_like(batch.key) if batch.part is None else batch.part
            for place, sample in enumerate(zip(batch.key.tolist(), parts.tolist(), strict=True)):
                assert sample not in found
                found[sample] = {name: np.array(value[place]) for name, value in batch.fields.items()}
        return found


def test_memory_of_which_a_stage_has_two_is_seen_to_come_again():
    """The first sample is memory of its own, the others take turns."""
    two, count = [np.empty(3), np.empty(3)], iter(range(1000))

    def in_turns(x):
        number = next(count)
        if number == 0:
            return x.copy()
        two[number % 2][:] = x
        return two[number % 2]

    made = Made(Numbers(12), [stage(in_turns, on="x")], batch_size=12).samples()
    assert {key[0]: fields["x"].tolist() for key, fields in made.items()} == {i: [i] * 3 for i in range(12)}


def test_a_stage_that_works_in_place_changes_no_data_set():
    class Kept:
        def __init__(self):
            self.rows = np.zeros((4, 2))

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, index):
            return {"x": self.rows[index]}

    def more(x):
        x += 1
        return x

    made = Made(Kept(), [stage(more, on="x")], epochs=3)
    for epoch in range(3):
        assert all(fields["x"].tolist() == [1, 1] for fields in made.samples(epoch).values())


def same(one: dict, other: dict) -> bool:
    assert one.keys() == other.keys()
    return all(np.array_equal(one[sample][name], other[sample][name]) for sample in one for name in one[sample])


def noisy(x, rng):
    return x + rng.random(3)


def twice(sample):
    return [{**sample, "x": sample["x"] * factor} for factor in (1, 100)]


# --- samples that are not wanted ----------------------------------------------------------------------------------


def is_odd(sample):
    return sample["number"] % 2 == 1


UNWANTED = {
    "of all fields": stage(lambda sample: sample if is_odd(sample) else None, on="*", name="odd"),
    "of some": stage(lambda fields: {} if is_odd(fields) else None, on=["number"], name="odd"),
    "a condition": keep_if(is_odd),
    "a condition on a field": keep_if(lambda number: number % 2, on="number"),
    "none of several": stage(lambda sample: [sample] if is_odd(sample) else [], on="*", name="odd"),
}


@pytest.mark.parametrize("how", UNWANTED)
def test_a_sample_that_is_not_wanted_is_left_out_and_counted(how):
    made = Made(Numbers(), [UNWANTED[how], stage(noisy, on="x")])
    for batch in made.batches():
        start, stop = made.plan.bounds(0, batch.header.batch)
        keys = made.plan.segment_keys(0)[start:stop]
        assert batch.key.tolist() == keys[keys % 2 == 1].tolist()
        assert batch.header.left_out == keys[keys % 2 == 0].tolist()
        assert (batch.header.filtered, batch.header.failures) == (int(np.sum(keys % 2 == 0)), [])
        assert batch.part is None
        assert batch.fields["number"].tolist() == batch.key.tolist()


def test_samples_that_are_kept_at_random_are_the_same_in_every_batch_and_cluster():
    kept = [
        {key for key, _ in Made(Numbers(100), [keep_if(lambda x, rng: rng.random() < 0.5, on="x")], *shape).samples()}
        for shape in SHAPES
    ]
    assert all(each == kept[0] for each in kept) and 20 < len(kept[0]) < 80


def test_a_batch_of_which_nothing_is_wanted_is_empty_and_has_the_others_fields():
    made = Made(Numbers(), [keep_if(lambda number: number == 3, on="number")], 1)
    empty = [batch for batch in made.batches() if not len(batch.key)]
    assert len(empty) == 11 and all(batch.fields["x"].shape == (0, 3) for batch in empty)
    assert all((batch.header.filtered, batch.header.failures) == (1, []) for batch in empty)


def test_what_is_not_wanted_counts_once_though_it_is_repeated():
    """Five samples in batches of four: the last is filled up with three that the epoch has had."""
    made = Made(Numbers(5), [keep_if(lambda number: number == 3, on="number")], tail="pad")
    headers = [batch.header for batch in made.batches()]
    assert sum(header.filtered for header in headers) == sum(len(header.left_out) for header in headers) == 4


# --- several of one -----------------------------------------------------------------------------------------------


def test_several_of_one_have_its_id_and_a_number_each():
    [batch] = Made(Numbers(4), [stage(twice, on="*")]).batches()
    keys = batch.key[::2].tolist()
    assert batch.key.tolist() == [key for key in keys for _ in range(2)] and sorted(keys) == [0, 1, 2, 3]
    assert batch.part.tolist() == [0, 1] * 4
    assert batch.fields["x"][:, 0].tolist() == [key * factor for key in keys for factor in (1, 100)]
    assert batch.header.left_out == [] and batch.header.filtered == 0


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=20),
    st.sampled_from(SHAPES[:3]),
    st.sampled_from(["share", "pad", "carry"]),
    st.frozensets(st.integers(0, 19), max_size=4),
)
def test_what_comes_of_samples_is_the_models(several, shape, tail, broken):
    """Sample i becomes `several[i]`; those in `broken` fail."""

    def multiply(sample):
        if int(sample["number"]) in broken:
            raise ValueError("broken")
        return [{**sample, "n": n} for n in range(several[int(sample["number"])])]

    def with_all(sample):
        return {"n": np.int64(0), **sample}

    batch_size, world = min(shape[0], len(several) // shape[1]), shape[1]
    made = Made(Numbers(len(several)), [stage(multiply, on="*"), stage(with_all, on="*")], batch_size, world, tail=tail)
    spec = StreamSpec(len(several), 0, batch_size, 0, epochs=2, tail=tail)
    made.plan = StreamPlan(spec, Position(), world)
    made.producer.plan = made.plan
    for part in made.plan.segments:
        keys, done = made.plan.segment_keys(part.number), set()
        for batch in made.batches(part.number):
            start, stop = made.plan.bounds(part.number, batch.header.batch)
            ids = [(int(key), int(key) % len(several)) for key in keys[start:stop]]
            expected = [(key, n) for key, i in ids if i not in broken for n in range(several[i])]
            parts = [0] * len(batch.key) if batch.part is None else batch.part.tolist()
            assert list(zip(batch.key.tolist(), parts, strict=True)) == expected
            assert batch.fields.get("n", np.arange(0)).tolist() == [n for _, n in expected]
            assert [failure.id for failure in batch.header.failures] == [i for _, i in ids if i in broken]
            unwanted = [key for key, i in ids if several[i] == 0 and i not in broken and key not in done]
            assert batch.header.filtered == len(unwanted)
            gone = [key for key, i in ids if (i in broken or not several[i]) and key not in done]
            assert batch.header.left_out == gone
            fresh = max(min(part.num_ids - part.repeated - start, stop - start), 0)
            again = ids[fresh:]
            assert batch.header.repeated == sum(several[i] for _, i in again if i not in broken)
            done |= {key for key, _ in ids}


def test_several_of_one_draw_numbers_of_their_own_that_depend_on_the_sample_alone():
    stages = [
        stage(noisy, on="x"),
        stage(twice, on="*"),
        stage(noisy, on="x"),
        stage(twice, on="*"),
        stage(noisy, on="x"),
    ]
    found = [Made(Numbers(), stages, *shape, count=count).samples() for shape in SHAPES for count in (1, 2)]
    assert all(same(each, found[0]) for each in found)
    assert sorted(found[0]) == [(i, part) for i in range(12) for part in range(4)]


def test_no_two_of_one_draw_the_same_and_none_what_was_drawn_before():
    """Nor do those of a stage behind another that makes several."""

    def drawn(x, rng):
        return np.append(x, rng.random())

    stages = [
        stage(drawn, on="x"),
        stage(twice, on="*"),
        stage(drawn, on="x"),
        stage(twice, on="*"),
        stage(drawn, on="x"),
    ]
    for value in Made(Numbers(3), stages).samples().values():
        own = value["x"][3:].tolist()
        assert len({*own}) == 3
    numbers = Counter(round(float(value["x"][-1]), 12) for value in Made(Numbers(3), stages).samples().values())
    assert set(numbers.values()) == {1} and len(numbers) == 12


def test_if_one_of_several_fails_the_sample_is_left_out_once():
    def picky(x):
        if x[0] == 300:
            raise ValueError("too much")
        return x

    made = Made(Numbers(4), [stage(twice, on="*"), stage(picky, on="x")])
    [batch] = made.batches()
    assert 3 not in batch.key.tolist() and len(batch.key) == 6
    [failure] = batch.header.failures
    assert (failure.id, failure.stage, failure.reason) == (3, "picky", "ValueError: too much")
    assert batch.header.left_out == [3]


@pytest.mark.parametrize("count", [1, 2])
def test_a_stage_that_reuses_its_memory_may_come_behind_one_that_makes_several(count):
    memory = np.empty(3)

    def into_memory(x):
        memory[:] = x + 0.5
        return memory

    found = Made(Numbers(6), [stage(twice, on="*"), stage(into_memory, on="x")], 2, count=count).samples()
    assert {key: value["x"].tolist() for key, value in found.items()} == {
        (i, part): [i * factor + 0.5] * 3 for i in range(6) for part, factor in enumerate((1, 100))
    }


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("how", ["arrays", "tensors", "one dict", "views"])
def test_a_stage_that_makes_several_may_fill_the_same_memory_for_each(how, count):
    memory, one = np.empty((2, 3)), {}

    def each(sample):
        for factor in (1, 10, 100):
            memory[:] = sample["x"] * factor
            x = torch.from_numpy(memory)[0] if how == "tensors" else memory[0]
            found = one if how == "one dict" else {}
            found.update(sample, x=x)
            if how == "views":
                found["more"] = memory[1:]
            yield found

    found = Made(Numbers(6), [stage(each, on="*"), stage(noisy, on="number")], 2, count=count).samples()
    assert {key: value["x"].tolist() for key, value in found.items()} == {
        (i, part): [i * factor] * 3 for i in range(6) for part, factor in enumerate((1, 10, 100))
    }
    if how == "views":
        assert all(np.array_equal(value["more"][0], value["x"]) for value in found.values())


def test_a_generator_may_fill_the_memory_of_the_sample_itself():
    def in_place(sample):
        for _ in range(3):
            sample["x"] += 1
            yield sample

    found = Made(Numbers(4), [stage(in_place, on="*")]).samples()
    assert {key: value["x"].tolist() for key, value in found.items()} == {
        (i, part): [i + part + 1] * 3 for i in range(4) for part in range(3)
    }


def test_what_a_later_stage_changes_in_one_of_several_is_not_changed_in_the_others():
    def in_place(x):
        x += 1
        return x

    for shared in (lambda sample: [sample] * 3, lambda sample: [{**sample, "x": sample["x"][:2]} for _ in range(3)]):
        found = Made(Numbers(4), [stage(shared, on="*", name="shared"), stage(in_place, on="x")]).samples()
        assert {key: set(value["x"].tolist()) for key, value in found.items()} == {
            (i, part): {i + 1} for i in range(4) for part in range(3)
        }


def test_a_batch_of_nothing_but_failures_has_the_others_fields_though_one_sample_becomes_several():
    def views(sample):
        if sample["number"] == 0:
            raise ValueError("broken")
        return [{"x": sample["x"]}, {"x": sample["x"]}]  # of the same memory

    made = Made(Numbers(4), [stage(views, on="*")], 1)
    assert [batch.fields["x"].shape for batch in made.batches()].count((0, 3)) == 1


# --- several fields -----------------------------------------------------------------------------------------------


class Pictures(Numbers):
    def __getitem__(self, index):
        image = np.random.default_rng(index).integers(0, 255, (9, 11, 3), np.uint8)
        return {"image": image, "mask": image[:, :, 0].copy()}


def test_fields_that_are_changed_alike_draw_the_same_numbers():
    source = from_torch(Pictures(), masks=["mask"])
    found = [Made(source, [random_crop(5), random_crop(4)], *shape).samples() for shape in SHAPES]
    assert all(same(each, found[0]) for each in found)
    for value in found[0].values():
        assert value["image"].shape == (4, 4, 3)
        assert np.array_equal(value["image"][:, :, 0], value["mask"])
    alone = Made(source, [random_crop(5, on="image"), random_crop(4, on="image")]).samples()
    assert all(np.array_equal(alone[key]["image"], value["image"]) for key, value in found[0].items())


def test_a_stage_of_some_fields_gets_them_and_gives_what_is_new():
    def both(fields, rng):
        assert list(fields) == ["x", "number"]
        return {"sum": fields["x"].sum() + fields["number"], "drawn": rng.random()}

    found = Made(Numbers(), [stage(both, on=["x", "number"])]).samples()
    assert {key: float(value["sum"]) for key, value in found.items()} == {(i, 0): 4.0 * i for i in range(12)}
    assert all(list(value) == ["x", "number", "sum", "drawn"] for value in found.values())
    assert len({float(value["drawn"]) for value in found.values()}) == 12


# --- a whole batch ------------------------------------------------------------------------------------------------


def test_a_stage_of_a_whole_batch_gets_it_as_arrays_and_gives_the_like():
    seen = []

    def mirrored(fields):
        seen.append({name: np.shape(value) for name, value in fields.items()})
        return {**fields, "x": fields["x"][::-1], "size": np.full(len(fields["x"]), len(fields["x"]))}

    made = Made(Numbers(10), [stage(mirrored, whole_batch=True)])
    for batch in made.batches():
        assert batch.fields["x"][:, 0].tolist() == batch.key[::-1].tolist()
        assert batch.fields["size"].tolist() == [len(batch.key)] * len(batch.key)
        assert "mirrored" in batch.header.stage_wall_s
    assert [batch.key.size for batch in made.batches()] == [4, 3, 3]


def test_what_differs_in_shape_or_type_comes_as_a_list():
    def lengths(fields):
        assert isinstance(fields["x"], list) and isinstance(fields["text"], list)
        assert isinstance(fields["number"], np.ndarray)
        return {"length": [len(x) for x in fields["x"]], "text": [text.upper() for text in fields["text"]]}

    def cut(sample):
        return {**sample, "x": sample["x"][: int(sample["number"]) % 3], "text": "abc"[: int(sample["number"]) % 3]}

    [batch] = Made(Numbers(4), [stage(cut, on="*"), stage(lengths, whole_batch=True)]).batches()
    assert batch.fields["length"].tolist() == (batch.key % 3).tolist()
    assert batch.fields["text"] == ["ABC"[: key % 3] for key in batch.key.tolist()]

    def mixed(x):
        return x.astype(np.float32) if x[0] == 2 else x

    made = Made(Numbers(4), [stage(mixed, on="x"), stage(lambda fields: fields, whole_batch=True, name="as it is")])
    with pytest.raises(DataError, match="samples come out in different types: field `x` is "):
        made.batches()


def test_a_batchs_random_numbers_are_those_of_its_first_sample_and_of_nobody_else():
    def mixed(fields, rng):
        return {**fields, "drawn": np.full(len(fields["x"]), rng.random())}

    def again(fields, rng):
        return {**fields, "more": np.full(len(fields["x"]), rng.random())}

    stages = [
        stage(lambda number, rng: rng.random(), on="number", name="first"),
        stage(mixed, whole_batch=True),
        stage(again, whole_batch=True),
    ]
    one, other = Made(Numbers(12), stages, 4, 1), Made(Numbers(12), stages, 4, 3)
    assert same(one.samples(), other.samples()), "the same batches on other ranks"
    for batch in one.batches():
        drawn = [batch.fields[name][0] for name in ("number", "drawn", "more")]
        assert len({*drawn}) == 3 and len({*batch.fields["drawn"].tolist()}) == 1


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (lambda fields: {"x": fields["x"][1:]}, "TypeError: it returned 3 values of field `x` for 4 samples"),
        (lambda fields: fields["x"], "TypeError: it returned ndarray, expected a dict of fields"),
        (lambda fields: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda fields: {"x": [None] * 4}, "TypeError: it returned nothing for field `x`"),
    ],
)
def test_a_stage_of_a_batch_that_fails_ends_the_run_and_tells_where(function, told):
    made = Made(Numbers(4), [stage(function, whole_batch=True, name="mix")])
    with pytest.raises(DataError) as error:
        made.batches()
    keys = made.plan.segment_keys(0).tolist()
    where = f"the batch from Numbers[{keys[0]}] to Numbers[{keys[-1]}]"
    assert str(error.value) == f"the stage `mix` failed on {where}: {told}"


def test_a_stage_of_a_batch_may_say_itself_what_is_wrong():
    def refuse(fields):
        raise ConfigError("set `alpha`")

    with pytest.raises(ConfigError, match="^set `alpha`$"):
        Made(Numbers(4), [stage(refuse, whole_batch=True)]).batches()


def test_a_stage_of_a_batch_is_not_asked_where_there_is_no_sample():
    """Nor does it end the run where it cannot do with the one that was tried to learn what samples are like."""

    def pairs(fields):
        assert len(fields["x"]) == 2
        return fields

    def broken(number):
        assert number not in (0, 1)
        return number

    made = Made(Numbers(6), [stage(broken, on="number"), stage(pairs, whole_batch=True)], 2)
    keys = np.array([0, 1, 2, 3, 4, 5])
    made.producer._keys[0] = keys
    assert [batch.key.tolist() for batch in made.batches()] == [[], [2, 3], [4, 5]]
    assert made.batches()[0].fields == {} or made.batches()[0].fields["x"].shape == (0, 3)


# --- collation ----------------------------------------------------------------------------------------------------


def test_lengths_that_vary_are_padded_or_left_as_the_pipeline_says():
    def cut(x, rng):
        return x[: rng.integers(1, 4)]

    for rule, form in ((padded(-1), "dense"), (ragged(), "ragged")):
        [batch] = Made(Numbers(4), [stage(cut, on="x")], collate={"x": rule}).batches()
        assert batch.forms["x"] == form
    with pytest.raises(
        DataError, match=r"different shapes: .* or give it a collation \(collate: {x: padded} or ragged\)"
    ):
        Made(Numbers(12), [stage(cut, on="x")], 12).batches()


def test_samples_whose_fields_differ_are_told_before_a_stage_of_the_batch():
    def some(sample):
        return {"x": sample["x"]} if sample["number"] > 1 else sample

    for more in ([], [stage(lambda fields: fields, whole_batch=True, name="whole")]):
        with pytest.raises(
            DataError, match=r"different fields: .*Numbers\[\d+\] and .*; have a stage give all of them"
        ):
            Made(Numbers(4), [stage(some, on="*"), *more]).batches()


def test_a_stage_that_leaves_no_field_is_told():
    with pytest.raises(DataError, match=r"no field is left of Numbers\[\d\]; have its last stage return a dict"):
        Made(Numbers(4), [stage(lambda sample: {}, on="*", name="nothing")]).batches()


# --- what a data set draws ----------------------------------------------------------------------------------------


class Drawing(Numbers):
    """Augments with whatever random numbers are to hand."""

    def __getitem__(self, index):
        return {"x": np.array([random.random(), np.random.rand(), torch.rand(()).item()]), "number": index}


def test_a_data_sets_own_random_numbers_depend_on_seed_epoch_and_sample_alone():
    found = [Made(Drawing(), [], *shape, epochs=2, count=count).samples() for shape in SHAPES for count in (1, 2)]
    assert all(same(each, found[0]) for each in found), "whatever the batch and the cluster"
    values = np.stack([value["x"] for value in found[0].values()])
    assert all(len({*values[:, column].tolist()}) == 12 for column in range(3)), "another for each sample"
    made = Made(Drawing(), [], epochs=2)
    assert not same(made.samples(0), made.samples(1)), "anew each epoch"
    assert not same(made.samples(0), Made(Drawing(), [], seed=1).samples(0))
    assert same(made.samples(0), found[0]), "however often"


def test_a_data_sets_random_numbers_are_the_same_in_every_validation():
    made = Made(Drawing(), [], epochs=2, validation=Drawing(5))
    assert [part.split for part in made.plan.segments] == ["train", "validation"] * 2
    assert same(made.samples(1), made.samples(3))


def test_stages_draw_the_same_whether_the_data_set_does_or_not():
    def drawn(x, rng):
        return rng.random(3)

    stages = [stage(drawn, on="x")]
    assert same(Made(Drawing(), stages).samples(), Made(Numbers(), stages).samples())
