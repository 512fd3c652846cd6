"""YAML from anywhere: plain values, of bounded size, and one line about anything else."""

from __future__ import annotations

import pytest
import yaml

from raytrain.config.file import from_yaml
from raytrain.config.job import Job
from raytrain.cost.instances import catalog
from raytrain.errors import ConfigError

NINE_OF_NINE = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGED = "a0: &a0 {k: 1}\n" + "".join(
    f"a{n}: &a{n} {{k{n}: 1, <<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)
)
BAD = {
    "bomb": (NINE_OF_NINE, "its aliases repeat so much that it is more than 1,000,000 values"),
    "merge bomb": (MERGED, "its aliases repeat so much that it is more than 1,000,000 values"),
    "ring": ("name: x\na: &a [1, *a]\n", "what begins in line 2 has an alias of itself in it"),
    "depth": ("a: " + "[" * 2_000 + "]" * 2_000, "it is nested too deeply"),
    "code": ("a: !!python/object/apply:os.system [exit]", "could not determine a constructor for the tag"),
    "name": ("a: !!python/name:os.system", "could not determine a constructor for the tag"),
    "number": ("a: " + "9" * 5000, "Exceeds the limit"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_job_file_of_evil_is_one_line(what, tmp_path):
    text, message = BAD[what]
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"^\S*job.yaml is not YAML: .*{message}"):
        Job.from_yaml(tmp_path / "job.yaml")


def test_a_file_of_prices_is_read_as_carefully(tmp_path):
    (tmp_path / "prices.yaml").write_text(NINE_OF_NINE)
    with pytest.raises(ConfigError, match="prices.yaml are not YAML: its aliases repeat so much"):
        catalog(tmp_path / "prices.yaml")


def test_aliases_that_a_person_writes_are_taken():
    text = "base: &base {lr: 0.1, betas: [0.9, 0.999]}\na: {<<: *base, lr: 0.2}\nb: *base\n"
    assert from_yaml(text) == yaml.safe_load(text)
    assert from_yaml("") is None
    assert from_yaml("x: [on, no]") == {"x": ["on", "no"]}


def test_a_long_document_without_aliases_has_no_limit():
    assert len(from_yaml("[" + "1," * 3_000 + "1]")) == 3_001
