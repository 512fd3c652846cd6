"""What a worker is at, read by another process and after its end; and the watchdog that reads it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from patience import patient

from raytrain.data.worker.crumb import READING, Crumb, Spot, new_file, spot_in
from raytrain.data.worker.watchdog import EXIT_CODE, Patience

DIES = """
import os, signal, sys
from pathlib import Path
from raytrain.data.worker.crumb import HERE
HERE.into(Path(sys.argv[1]))
HERE.batch(7, -1)
HERE.reads(31)
HERE.sample(32)
HERE.stage(2)
os.kill(os.getpid(), signal.SIGKILL)
"""
HANGS = """
import ctypes, sys, time
from raytrain.data.worker.crumb import HERE
from raytrain.data.worker.watchdog import Watchdog
Watchdog(HERE, 0.4)
HERE.batch(0, -1)
HERE.stage(1)
print("hangs", flush=True)
{how}
print("is still there", flush=True)
"""


@pytest.mark.process
def test_it_outlives_its_process(tmp_path):
    path = tmp_path / "crumb"
    new_file(path)
    assert subprocess.run([sys.executable, "-c", DIES, str(path)]).returncode == -9
    spot = spot_in(path)
    assert spot == Spot(count=1, batch=7, sample=32, at=2, cut=-1, hung=False)
    assert spot.stage(["decode", "crop", "flip"], ["mix"]) == "crop"
    assert spot.is_of_one


def test_it_says_what_a_worker_is_at():
    crumb, names = Crumb(), (["decode", "flip"], ["mix", "pad"])
    seen = []
    for step in (
        lambda: crumb.batch(3, 1),
        lambda: crumb.reads(5),
        lambda: crumb.sample(5),
        lambda: crumb.stage(2),
        lambda: crumb.stage(1),
        lambda: crumb.stage_of_batch(1),
        crumb.rests,
    ):
        step()
        spot = crumb.spot
        seen.append((spot.sample, spot.stage(*names), spot.is_of_one, spot.at == READING))
    assert seen[0][1:] == (None, False, False)
    assert seen[1:] == [
        (5, None, True, True),
        (5, None, True, True),
        (5, "decode", True, False),
        (5, "flip", True, False),
        (5, "pad", False, False),
        (5, None, False, False),
    ]


def spot(**changes):
    return Spot(**{"count": 1, "batch": 0, "sample": 4, "at": 2, "cut": -1, "hung": False, **changes})


def test_patience_counts_looks_at_one_stage_of_one_sample():
    patience = Patience(3.0)
    assert patience.every_s == 0.75
    stays = [patience.is_over(spot()) for _ in range(5)]
    assert stays == [False] * 4 + [True], "the first look starts the count"
    for changes in ({"at": 1}, {"sample": 5}, {"count": 2}):
        patience = Patience(3.0)
        assert not any(patience.is_over(spot(**(changes if look == 3 else {}))) for look in range(7))
    patience = Patience(1000.0)
    assert patience.every_s == 1.0
    assert not any(patience.is_over(spot(at=0)) for _ in range(1500)), "a worker without work"


@pytest.mark.process
@pytest.mark.parametrize(
    ("how", "code", "words"),
    [
        ("time.sleep(1000)", EXIT_CODE, "a stage has taken longer than 0.4 s; its worker ends"),
        ("ctypes.PyDLL(None).sleep(1000)", 1, "Timeout"),  # it holds the interpreter's lock
    ],
    ids=["waits", "holds the lock"],
)
def test_a_worker_that_hangs_is_ended_and_shows_its_stack(how, code, words):
    script = HANGS.format(how=how)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=patient(20))
    assert (done.returncode, done.stdout) == (code, "hangs\n")
    assert words in done.stderr
    assert 'File "<string>"' in done.stderr
