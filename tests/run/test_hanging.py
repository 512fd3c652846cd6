"""Ranks that hang: when that is so, what they were at, and that the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from conftest import ROOT
from patience import patient, wait_for

from raytrain.record.schema import read_record
from raytrain.record.status import RankProcess, Status
from raytrain.run import hanging
from raytrain.run.hanging import HangWatch, end, stacks_of
from raytrain.train.checkpoints import shelf


def told(batches: int = 3, **changes) -> Status:
    return Status(**{"attempts": 1, "positions": {0: batches, 1: batches}, **changes})


def test_who_does_no_batch_for_so_long_hangs(tmp_path):
    watch = HangWatch(60.0, tmp_path)
    seen = []
    for now, status in (
        (0, told(3)),
        (59, told(3)),
        (60, told(3)),
        (61, told(4)),
        (120, told(4)),
        (121, told(4)),
        (130, told(4, attempts=2)),  # they begin anew
        (189, told(4, attempts=2)),
        (190, told(4, attempts=2)),
    ):
        seen.append(watch.hangs(status, now))
    assert seen == [False, False, True, False, False, True, False, False, True]


def test_the_first_batch_may_take_ten_times_as_long(tmp_path):
    watch = HangWatch(60.0, tmp_path)
    for positions in ({}, {0: 1, 1: 0}):
        status = told(positions=positions)
        assert [watch.hangs(status, now) for now in (0, 599, 600)] == [False, False, True]
        watch.hangs(told(starved=True), 600)
        watch.hangs(told(9), 0)


@pytest.mark.parametrize("changes", [{"starved": True}, {"stopping": True}, {"attempts": 0}])
def test_who_waits_for_data_stops_or_has_not_begun_does_not_hang(tmp_path, changes):
    watch = HangWatch(60.0, tmp_path)
    assert not any(watch.hangs(told(3, **changes), now) for now in range(0, 1000, 50))
    assert not watch.hangs(told(3), 1000), "from when it could have gone on"
    assert watch.hangs(told(3), 1010 + 50)


def test_who_waits_for_a_host_does_not_hang(tmp_path):
    watch = HangWatch(60.0, tmp_path)
    assert not any(watch.hangs(told(3), now, without_hosts=True) for now in range(0, 1000, 50))
    assert not watch.hangs(told(3), 1000) and watch.hangs(told(3), 1010)


def test_nobody_hangs_where_it_is_not_asked(tmp_path):
    watch = HangWatch(None, tmp_path)
    assert not any(watch.hangs(told(3), now) for now in (0, 1e9))


CHILD = """
import os, sys, threading, time
sys.modules["ray"] = type(sys)("ray")
import ray
ray.get_runtime_context = lambda: type("C", (), {"get_node_id": lambda self: "node"})()
from raytrain.run.hanging import listen
def waits_for_ever():
    time.sleep(600)
threading.Thread(target=waits_for_ever, daemon=True).start()
process = listen()
def computes():
    print(process.pid, process.created_at, process.stacks, flush=True)
    while True:
        sum(range(10_000_000))
computes()
"""


@pytest.fixture
def rank():
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    pid, created_at, stacks = child.stdout.readline().split()
    yield RankProcess(int(pid), float(created_at), "node", stacks)
    child.kill()
    child.wait()


@pytest.mark.process
@pytest.mark.parametrize("stopped", [False, True])
def test_what_a_process_is_at_and_its_end(rank, stopped):
    if stopped:
        os.kill(rank.pid, signal.SIGSTOP)
        wait_for(lambda: psutil.Process(rank.pid).status() == psutil.STATUS_STOPPED, 10, "it stops")
    assert not list(Path(tempfile.gettempdir()).glob(f"raytrain-rank-{rank.pid}-*")), "nothing stays behind"
    found = stacks_of({1: rank})
    assert list(found) == [1]
    first, *rest = found[1].splitlines()
    assert first.startswith(f"process {rank.pid}, {'stopped' if stopped else 'r'}")
    text = "\n".join(rest)
    assert "in computes" in text and "in waits_for_ever" in text and "it does not answer" not in text
    end({1: rank})
    assert psutil.Process(rank.pid).wait(patient(10)) is not None or not psutil.pid_exists(rank.pid)
    assert not os.path.exists(rank.stacks)


@pytest.mark.process
def test_another_process_of_the_same_number_is_left_alone_and_a_silent_one_is_named(rank, monkeypatch, tmp_path):
    monkeypatch.setattr(hanging, "ANSWER_S", 0.5)
    other = RankProcess(rank.pid, rank.created_at - 100, "node", str(tmp_path / "other"))
    silent = RankProcess(rank.pid, rank.created_at, "node", str(tmp_path / "nothing"))
    found = stacks_of({0: other, 1: silent})
    assert found[0] == "its process is gone\n"
    assert found[1].endswith("it does not answer\n")
    end({0: other})
    assert psutil.Process(rank.pid).is_running()


def steps_in(checkpoints) -> int:
    found = shelf.whole(checkpoints)
    return found[-1][1].steps if found else 0


@pytest.mark.ray
def test_a_rank_that_stands_still_is_ended_and_the_run_goes_on(job_file, tmp_path):
    path = job_file(training__epochs=16, training__hang_timeout_s=patient(8), training__checkpoint={"every_steps": 1})
    command = [sys.executable, "-m", "raytrain", "train", str(path), "--nodes", "gpu=1x2x2"]
    driver = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "small"
    wait_for(lambda: steps_in(folder / "checkpoints") >= 8, 120, "all have told of their first batch")
    processes = psutil.Process(driver.pid).children(recursive=True)
    ranks = [each for each in processes if "TrainWorker" in " ".join(each.cmdline())]
    assert len(ranks) == 2, [each.cmdline() for each in processes]
    ranks[0].suspend()
    _, errors = driver.communicate(timeout=patient(240))
    assert driver.returncode == 0, errors
    assert "no rank has done a batch for" in errors and "begin anew" in errors
    first, *_ = sorted(folder.glob("hang-*.txt"))  # where others take the cores, they may seem to hang again
    text = first.read_text()
    assert "rank 0: process" in text and "rank 1: process" in text and "stopped" in text
    assert read_record(folder / "record.json").status == "finished"
