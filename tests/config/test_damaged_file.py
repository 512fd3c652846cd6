"""YAML that is no description of anything, or that a description would choke on, is refused in one line."""

from __future__ import annotations

import math
import time

import pytest

from raytrain.config.file import from_yaml, read_tree
from raytrain.config.job import Job
from raytrain.cost.instances import catalog
from raytrain.errors import ConfigError

LETTERS = "abcdefgh"
BILLION = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip(LETTERS, LETTERS[1:], strict=False))
BILLION = f"a: &a [{', '.join('x' * 10)}]\n{BILLION}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (BILLION, "its aliases repeat so much"),
        ("a: &a [*a]", "has an alias of itself"),
        ("a: &a {b: {c: *a}}", "has an alias of itself"),
        ("a: " + "[" * 101 + "]" * 101, "it is nested too deeply, in more than 100 levels"),
        ("a: " + "{b: " * 50_000, "it is nested too deeply, in more than 100 levels"),
        ("a: " + "9" * 5_000, "Exceeds the limit"),
        ("a: !!int ''", "index out of range"),
        ("a: 9223372036854775808", "has more than 64 bits"),
        ("a: !!float 1:" + "0:" * 400 + "1", "too large"),
        ("a: !!bool x", "'x'"),
        ("a: !!timestamp x", "could not determine a constructor"),
        ("a: !!set {b}", "could not determine a constructor"),
        ("a: !!float x", "could not convert"),
        ("a: [.inf]", ".inf is no finite number"),
        ("a: -.INF", "-.INF is no finite number"),
        ("a: .nan", ".nan is no finite number"),
        ("a: 1.0e+999", "1.0e+999 is no finite number"),
        ('a: "\\ud800"', "half a surrogate pair"),
        ('a: "\\0"', "it holds a text with the character \\0"),
        ("!!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_what_a_job_file_cannot_be(tmp_path, text, why):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read_tree(path)
    assert str(caught.value).startswith(f"{path} is not YAML: ") and why in str(caught.value)
    with pytest.raises(ConfigError, match="the prices in .* are not YAML"):
        catalog(path)
    if not text.startswith("!!"):
        (tmp_path / "job.yaml").write_text("name: x")
        with pytest.raises(ConfigError, match="^--set .*: the value is not YAML"):
            read_tree(
                path,
                [f"x={text.partition(': ')[2] if text != BILLION else '{' + ', '.join(BILLION.splitlines()) + '}'}"],
            )
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (".".join("a" * 101) + "=1", "no key lies in more than 100 others"),
        ("model.options.\udcff=1", "half a surrogate pair"),
        ("model.options.x\0=1", "the character \\0"),
    ],
)
def test_a_key_that_no_job_has(tmp_path, override, told):
    (tmp_path / "job.yaml").write_text("name: x")
    with pytest.raises(ConfigError) as caught:
        read_tree(tmp_path / "job.yaml", [override])
    assert str(caught.value).startswith("--set '") and told in str(caught.value)


def test_a_date_is_text():
    assert from_yaml("[2001-01-01, 2001-13-45, 12:30]") == ["2001-01-01", "2001-13-45", 750]


def test_what_is_said_twice_is_read():
    assert from_yaml("a: &a [1, {b: 2}]\nc: [*a, *a]\nd: {<<: {e: 3}}") == {
        "a": [1, {"b": 2}],
        "c": [[1, {"b": 2}]] * 2,
        "d": {"e": 3},
    }


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("key", ["epochs", "clip_norm", "hang_timeout_s"])
def test_a_number_that_is_none(key, value):
    """Of a script; a file cannot hold it."""
    with pytest.raises(ConfigError) as caught:
        Job.from_dict({"name": "x", "training": {"epochs": 1, key: value}})
    assert str(caught.value).startswith(f"job: training.{key} must be ")
