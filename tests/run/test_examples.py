"""The examples, trained for real: each reaches the result that its docstring states."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT
from patience import patient

from raytrain.cluster import local
from raytrain.cluster.environment import prepare_environment
from raytrain.record.schema import read_record

EXAMPLES = ROOT / "examples"
ELSEWHERE = {"own_everything", "own_source"}  # run by test_docs
UNTRAINED = {  # what each reached with a learning rate of 0
    "multi_label": 0.44,
    "regression": 0.00,
    "segmentation": 0.16,
    "siamese": 0.50,
    "text": 0.66,
    "with_ray": 0.10,
    "with_torch": 0.10,
}


def stated(name: str) -> float:
    """The result in an example's docstring."""
    [figure] = re.findall(r"It ends at an?\s.*?about (0\.\d+)\.\n", (EXAMPLES / f"{name}.py").read_text(), re.S)
    return float(figure)


def check_result(name: str, printed: str) -> None:
    [figure] = re.findall(r"^validation .+: (-?\d\.\d\d)$", printed, re.M)
    assert float(figure) == pytest.approx(stated(name), abs=0.08), f"examples/{name}.py states another result"


def test_every_example_is_short_and_run():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*UNTRAINED, *ELSEWHERE}
    assert {path.name: n for path in EXAMPLES.iterdir() if (n := len(path.read_text().splitlines())) >= 60} == {}


@pytest.mark.parametrize("name", UNTRAINED)
def test_a_stated_result_is_not_to_be_had_without_training(name):
    assert stated(name) - 0.08 > UNTRAINED[name] + 0.2


@pytest.fixture(scope="module")
def one_ray():
    """Which every example finds this process connected to."""
    prepare_environment()
    running = local.start(())
    yield
    running.close()


@pytest.mark.ray
@pytest.mark.parametrize("name", sorted({*UNTRAINED} - {"with_ray"}))
def test_an_example_learns(name, one_ray, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    check_result(name, capsys.readouterr().out)
    record = read_record(tmp_path / "runs" / name.replace("_", "-") / "record.json")
    assert (record.status, record.cluster_attached, record.totals.attempts) == ("finished", True, 1)
    assert (record.corrupt.train, record.corrupt.validation) == (0, 0)


@pytest.mark.ray
def test_the_example_with_ray_learns_on_the_ray_that_its_data_set_has_started(tmp_path):
    """In a process of its own, since Ray is there before raytrain is."""
    ended = subprocess.run(
        [sys.executable, str(EXAMPLES / "with_ray.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patient(200),
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 0, ended.stderr
    check_result("with_ray", ended.stdout)
    record = read_record(tmp_path / "runs/with-ray/record.json")
    assert record.guarantee.endswith("only if the ray.data.Dataset is deterministic")
