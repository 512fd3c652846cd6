"""Waits of tests, and that a pure test starts nothing."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time

import patience
import pytest
from patience import patient, wait_for


def test_an_event_is_waited_for_and_given_back():
    events = iter([None, 0, "", "there"])
    assert wait_for(lambda: next(events), 5, "it is there", every_s=0.001) == "there"


def test_what_does_not_come_is_named_with_the_last_state(monkeypatch):
    monkeypatch.setattr(patience, "factor", lambda: 2.0)
    began = time.monotonic()
    with pytest.raises(AssertionError, match=r"within 0.2 s not: the host is ready; last: \[\]"):
        wait_for(list, 0.1, "the host is ready", every_s=0.01)
    assert time.monotonic() - began > 0.2
    with pytest.raises(AssertionError, match="not: ready; last: 'starting'"):
        wait_for(lambda: False, 0.01, "ready", lambda: "starting")


@pytest.mark.parametrize(("took_s", "factor"), [(0.1, 1.0), (0.4, 1.0), (1.0, 2.5), (60.0, 10.0)])
def test_the_factor_is_how_much_slower_it_is(monkeypatch, took_s, factor):
    monkeypatch.delenv(patience.VARIABLE, raising=False)
    monkeypatch.setattr(patience, "_measured", lambda: took_s)
    assert patience.factor.__wrapped__() == pytest.approx(factor)
    monkeypatch.setenv(patience.VARIABLE, "3")
    assert patience.factor.__wrapped__() == 3.0


def test_seconds_that_messages_name_are_whole(monkeypatch):
    monkeypatch.setattr(patience, "factor", lambda: 1.234)
    assert (patient(9), patient(0.5)) == (11.0, pytest.approx(0.617))


def test_every_wait_is_as_patient(request):
    own = request.node.get_closest_marker("timeout").args[0]
    assert own == pytest.approx(float(request.config.getini("timeout")) * patience.factor())


def test_a_pure_test_that_starts_something_fails(pure_test):
    spawned = multiprocessing.get_context("spawn").Process(target=print)
    starts = [
        lambda: subprocess.run(["true"]),
        os.fork,
        lambda: os.posix_spawn("/bin/true", ["true"], {}),
        lambda: os.system("true"),
        spawned.start,
    ]
    for number, start in enumerate(starts, start=1):
        with pytest.raises(AssertionError, match="a pure test starts a process: "):
            start()
        assert len(pure_test.started) == number, "hiding the error does not help"
    pure_test.started.clear()
