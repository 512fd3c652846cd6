"""A whole run whose store of checkpoints fails, and the process that keeps them."""

from __future__ import annotations

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from conftest import ROOT
from patience import patient

from raytrain.record.schema import read_record
from raytrain.run.rank import asked
from raytrain.simulate.hosts import unavailable
from raytrain.train.checkpoints import shelf


def test_a_keeper_that_is_lost_is_a_reason_like_others(monkeypatch):
    import ray

    def died():
        raise ray.exceptions.ActorDiedError

    def method(called, answered):
        return SimpleNamespace(remote=lambda *_: called() or answered)

    monkeypatch.setattr(ray, "get", lambda reference: reference())
    fine = lambda: None  # noqa: E731
    keeper = SimpleNamespace(begin=method(died, fine), write=method(fine, died), finish=method(fine, fine))
    ask = asked(keeper)
    told = "cannot write a checkpoint, since the process that keeps them failed: ActorDiedError"
    assert ask("begin", "draft")().startswith(told) and ask("write", "draft", "a.pt", 0, b"")().startswith(told)
    assert ask("finish", "draft", "{}", {})() is None


@pytest.mark.ray
def test_a_run_goes_on_without_its_store_and_says_at_the_end_what_is_not_saved(images, tmp_path):
    if unavailable() is not None:
        pytest.skip(unavailable())
    script = ROOT / "tests" / "damaging_job.py"
    command = ["unshare", "--mount", sys.executable, str(script), str(images / "train"), str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patient(120))
    assert result.returncode != 0, result.stderr
    told = result.stderr
    assert len(re.findall("No such file or directory; training goes on", told)) == 1
    assert len(re.findall("Read-only file system; training goes on", told)) == 1
    assert len(re.findall("is on disk: they can be written again", told)) == 1
    assert "since the process that keeps them failed" not in told, "Ray has started it anew"
    last = told.strip().splitlines()[-1]
    assert last.startswith(
        "raytrain.errors.CheckpointError: the last checkpoint, of step 24, could not be saved (that of"
    )
    assert last.endswith("Read-only file system; mend the store and resume") and "step 16 stands" in last
    record = read_record(tmp_path / "damaged" / "record.json")
    assert (record.status, record.totals.attempts, record.ranks[0].num_batches) == ("failed", 1, 24)
    of_the_store = [each for each in record.warnings if "takes longer" not in each]  # while the keeper begins anew
    assert len(of_the_store) == 3 and "No such file or directory" in of_the_store[0]
    assert record.ranks[0].checkpoint_write_s > 0
    found = shelf.latest(tmp_path / "damaged" / "checkpoints")
    assert shelf.read_facts(found).steps == 16
    assert str(found) == record.checkpoint
