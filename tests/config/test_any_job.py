"""Any valid job survives being written and read, and `--set` is an edit of its file."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from of_models import anything, trees, words

from raytrain.config.cluster import Group
from raytrain.config.data import Collate, Data
from raytrain.config.file import read_tree
from raytrain.config.job import Job
from raytrain.config.training import Training
from raytrain.errors import ConfigError

few = settings(deadline=None, max_examples=50)


def one_length(tree):
    if tree.get("epochs") is None and tree.get("steps") is None:
        return {**tree, "epochs": 3}
    return {**tree, "steps": None} if tree.get("epochs") is not None else tree


def one_batch_size(tree):
    if tree.get("global_batch_size") is not None:
        return {**tree, "batch_size": None}
    return {**tree, "batch_size": tree.get("batch_size") or 64}


def of_some_size(tree):
    return tree if tree.get("instance_type") is not None else {**tree, "cpus": tree.get("cpus") or 2}


def one_of_two(tree):
    return {"padded": tree["padded"]} if tree.get("padded") else {"ragged": True}


@cache
def job_trees() -> st.SearchStrategy[dict]:
    return trees(Job, {Training: one_length, Group: of_some_size, Collate: one_of_two, Data: one_batch_size})


def flow(value) -> str:
    """On one line, as one types it after `--set key=`."""
    return yaml.safe_dump(value, default_flow_style=True, width=float("inf")).removesuffix("\n...\n")


@few
@given(job_trees(), st.sampled_from(["python", "json"]))
def test_a_job_is_what_its_own_dump_says(tree, mode):
    job = Job.from_dict(tree)
    assert Job.from_dict(job.model_dump(mode=mode)) == job
    assert Job.from_dict(job.model_dump(mode=mode, exclude_unset=True)) == job
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert Job.from_dict(tree) == job, "its tree is not changed by reading it"


@few
@given(job_trees())
def test_a_job_survives_its_file(tmp_path_factory, tree):
    path = tmp_path_factory.mktemp("jobs") / "job.yaml"
    job = Job.from_dict(tree)
    for written in (tree, job.model_dump(mode="json")):
        path.write_text(yaml.safe_dump(written), encoding="utf-8")
        assert Job.from_yaml(path) == job


def leaves(tree, place=()):
    """Every place of a tree that `--set` can name, and what is there."""
    for key, value in tree.items():
        if key and key == key.strip() and not set(key) & set(".="):
            yield (*place, key), value
            if isinstance(value, dict):
                yield from leaves(value, (*place, key))


@few
@given(job_trees(), job_trees(), st.data())
def test_overrides_are_edits_of_the_tree(tmp_path_factory, tree, other, data):
    """Values of another job, or any, at any places, one after the other; sections on the way are made."""
    path = tmp_path_factory.mktemp("jobs") / "job.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    edited, overrides = copy.deepcopy(tree), []
    for _ in range(data.draw(st.integers(1, 4))):
        place, value = data.draw(st.sampled_from(list(leaves(other))))
        value = data.draw(st.just(value) | anything)
        node, blocked = edited, None
        for part in place[:-1]:
            if node.get(part) is None:
                node[part] = {}
            if not isinstance(node[part], dict):
                blocked = part
                break
            node = node[part]
        override = f"{'.'.join(place)}={flow(value)}"
        if blocked is not None:
            with pytest.raises(ConfigError, match="is not a section"):
                read_tree(path, [*overrides, override])
            return
        node[place[-1]] = copy.deepcopy(value)
        overrides.append(override)
    assert read_tree(path, overrides) == edited
    assert read_tree(path) == tree, "the file stays as it is"


@few
@given(job_trees(), words, anything, st.data())
def test_an_unknown_key_is_one_line_that_names_it(tree, key, value, data):
    sections = [
        ("training",),
        *([("data",)] if tree.get("data") else []),
        *([("model",)] if tree.get("model") else []),
        (),
    ]
    place = data.draw(st.sampled_from(sections))
    node = tree
    for part in place:
        node = node[part]
    key = f"{key}?"
    node[key] = value
    with pytest.raises(ConfigError) as caught:
        Job.from_dict(tree, where="job.yaml")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.startswith(f"job.yaml: unknown key {'.'.join((*place, key))!r}")
