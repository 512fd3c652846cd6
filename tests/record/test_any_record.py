"""Any valid record comes back from its file; whatever is no record of this version is refused in one line."""

from __future__ import annotations

import json
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from of_models import anything, trees, words
from pydantic import BaseModel

from raytrain.errors import ConfigError
from raytrain.record.job import check_job
from raytrain.record.schema import (
    SCHEMA_VERSION,
    HostTimeline,
    Progress,
    RankFigures,
    RunRecord,
    parse_record,
    read_record,
)

few = settings(deadline=None, max_examples=40)


def of_a_job(tree):
    return {**tree, "job": {"training": {"epochs": 3}}, "epochs": [{**e, "epoch": 1} for e in tree["epochs"]]}


def of_one_length(tree):
    lists = [value for value in tree.values() if isinstance(value, list)]
    return {name: value[: min(map(len, lists))] if isinstance(value, list) else value for name, value in tree.items()}


@cache
def any_record() -> st.SearchStrategy[RunRecord]:
    mend = {RunRecord: of_a_job, Progress: of_one_length, HostTimeline: of_one_length}
    return trees(RunRecord, mend).map(RunRecord.model_validate)


def refused(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_record(text, "runs/a/record.json")
    message = str(caught.value)
    assert message.startswith("runs/a/record.json ") and len(message.splitlines()) == 1, message
    return message


@few
@given(any_record())
def test_a_record_comes_back(tmp_path_factory, record):
    path = tmp_path_factory.mktemp("records") / "run" / "record.json"
    record.write(path)
    assert read_record(path) == record
    assert [each.name for each in path.parent.iterdir()] == ["record.json"]
    assert read_record(path).model_dump_json() == record.model_dump_json()


@few
@given(any_record(), anything.filter(lambda version: version != SCHEMA_VERSION), st.booleans())
def test_another_version_is_refused_and_says_what_to_do(record, version, missing):
    tree = {**record.model_dump(mode="json"), "schema_version": version}
    if missing:
        del tree["schema_version"]
    message = refused(json.dumps(tree))
    told = (
        f"has schema version {None if missing else version!r}; this raytrain reads {SCHEMA_VERSION}: run the job again"
    )
    assert told in message


def sections(value, place=()):
    """Where the parts of a record lie."""
    if isinstance(value, BaseModel):
        yield place
        for name in type(value).model_fields:
            yield from sections(getattr(value, name), (*place, name))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from sections(each, (*place, number))


def at(tree, place):
    for part in place:
        tree = tree[part]
    return tree


@few
@given(any_record(), words | st.just("two\nlines"), anything, st.data())
def test_an_unknown_key_is_named_wherever_it_is(record, key, value, data):
    place = data.draw(st.sampled_from(list(sections(record))))
    if key in type(at_model(record, place)).model_fields:
        key += "?"
    tree = record.model_dump(mode="json")
    at(tree, place)[key] = value
    message = refused(json.dumps(tree))
    assert "is not a run record: " + ".".join(map(str, place)) in message
    assert str(ConfigError(" ".join(key.split()))) in message and "not permitted" in message


def at_model(record, place):
    for part in place:
        record = record[part] if isinstance(part, int) else getattr(record, part)
    return record


@few
@given(any_record(), st.data())
def test_a_missing_key_is_named(record, data):
    required = [name for name, field in RunRecord.model_fields.items() if field.is_required()]
    name = data.draw(st.sampled_from(required))
    tree = record.model_dump(mode="json")
    del tree[name]
    assert f"is not a run record: {name}: Field required" in refused(json.dumps(tree))


@few
@given(any_record(), st.floats(0, 1, exclude_max=True))
def test_a_record_that_was_cut_off_is_refused(record, share):
    text = record.model_dump_json()
    assert "is not JSON, or was cut off" in refused(text[: int(share * len(text))])


@few
@given(any_record(), st.integers(1, 3))
def test_an_epoch_without_its_number(record, more):
    tree = record.model_dump(mode="json")
    tree["epochs"] = [{"epoch": 1}] * more + [{"train_loss": 2.0}]
    assert "one of its epochs has no number" in refused(json.dumps(tree))


@few
@given(any_record(), st.integers(1, 3))
def test_lines_side_by_side_are_of_one_length(record, more):
    tree = record.model_dump(mode="json")
    tree["progress"] = {"at_s": [1.0] * more, "samples_per_s": [], "wait_share": []}
    assert "progress: Value error, the lists are not of one length" in refused(json.dumps(tree))


@pytest.mark.parametrize(
    ("job", "told"),
    [
        ({}, "training of the job: Field required"),
        ({"training": 3}, "training of the job: Input should be"),
        ({"training": {"epochs": "x"}}, "training.epochs of the job: "),
        ({"training": {}, "data": {"train": 3}}, "data.train of the job: "),
        ({"training": {}, "data": {"train": {}, "stages": 3}}, "data.stages of the job: "),
        ({"training": {}, "cluster": {"groups": [{}]}}, "cluster.groups.0.name of the job: Field required"),
        ({"training": {}, "sagemaker": {"region": 3}}, "sagemaker.region of the job: "),
        ({"training": {}, "model": []}, "model of the job: "),
        ({"training": {"threads": "3"}}, "training.threads of the job: "),
        ({"training": {}, "data": {"train": {}, "validation": 0.5}}, "data.validation of the job: "),
    ],
)
def test_a_job_that_cannot_be_read_again(job, told):
    """What tables, pages and plans take from it."""
    with pytest.raises(ValueError) as caught:
        check_job(job)
    assert str(caught.value).startswith(told)


def test_numbers_of_samples_that_nobody_can_have():
    """Each fits a float, and their sum does not."""
    ranks = [RankFigures.model_construct(num_samples=int(1e308), device_stage_s={"resize": 1.0}) for _ in range(3)]
    record = RunRecord.model_construct(ranks=ranks)
    assert record.device_stage_s_per_sample == {"resize": 0.0}
