"""What a person sees while a run goes on: no line is older than the one above it."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import progress
from rich.console import Console

from raytrain.config.job import Job
from raytrain.record.status import Status
from raytrain.report import live
from raytrain.report.live import Display, step_line


@pytest.fixture
def display(monkeypatch):
    """A display of a log file that prints a step line whenever it may."""
    monkeypatch.setattr(live, "LINE_EVERY_S", 0.0)
    return Display(Console(width=120, file=io.StringIO()))


def entry(epoch: int) -> dict[str, float]:
    """Of a finished epoch."""
    return {"epoch": epoch, "loss": 0.5, "seconds": 2.0, "samples_per_s": 700.0}


def at(epoch: int, step: int, finished: int, **changes) -> Status:
    """Of a run of three epochs of 20 steps, `finished` of which are over."""
    history = [entry(number + 1) for number in range(finished)]
    now = {"epoch": epoch, "step": step, "history": history, "samples_per_s": 800.0, "wait_share": 0.25}
    return Status(progress={0: progress(**(now | changes))}, num_ready=1, attempts=1)


def ended(status: Status, finished: int = 3) -> Status:
    """The same once rank 0 has reported its result, which is newer than its progress."""
    result = SimpleNamespace(epochs=3, history=[entry(number + 1) for number in range(finished)])
    return replace(status, results={0: result})


def begun(display: Display) -> list[str]:
    """What each line begins with: `epoch 3/3  step 54/60`, `epoch 3/3  loss 0.5000`."""
    return ["  ".join(line.split("  ")[:2]) for line in display._console.file.getvalue().splitlines()]


def test_after_the_last_epoch_nothing_goes_backwards(display):
    for status in (at(3, 41, 2), at(3, 54, 2), ended(at(3, 54, 2)), ended(at(3, 54, 2))):
        display.update(status)
    assert begun(display) == [
        "epoch 1/3  loss 0.5000",
        "epoch 2/3  loss 0.5000",
        "epoch 3/3  step 41/60",
        "epoch 3/3  step 54/60",
        "epoch 3/3  loss 0.5000",
    ]


def test_a_run_whose_end_comes_before_any_progress_of_its_last_epochs(display):
    display.update(at(1, 1, 0))
    display.update(ended(at(1, 1, 0)))
    assert begun(display) == ["epoch 1/3  step 1/60", *(f"epoch {number}/3  loss 0.5000" for number in (1, 2, 3))]


def test_a_run_that_is_over_before_it_says_how_it_gets_on(display):
    display.update(replace(ended(at(1, 1, 0)), progress={}))
    assert begun(display) == [f"epoch {number}/3  loss 0.5000" for number in (1, 2, 3)]


def test_a_run_that_was_stopped_says_no_more(display):
    for status in (at(3, 41, 2), ended(at(3, 47, 2), 2), ended(at(3, 47, 2), 2)):
        display.update(status)
    assert begun(display)[2:] == ["epoch 3/3  step 41/60"]


def test_a_finished_epoch_has_its_own_line_and_the_next_goes_on_from_there(display):
    for status in (at(1, 19, 0), at(1, 20, 1), at(1, 20, 1), at(2, 21, 1)):
        display.update(status)
    assert begun(display) == [
        "epoch 1/3  step 19/60",
        "epoch 1/3  loss 0.5000",
        "epoch 2/3  step 21/60",
    ]


def test_what_a_second_attempt_does_again_is_shown_again(display):
    for status in (at(2, 21, 1), at(2, 40, 2), at(2, 25, 1, loss=0.3), at(2, 40, 2), at(3, 41, 2)):
        display.update(status)
    assert begun(display) == [
        "epoch 1/3  loss 0.5000",
        "epoch 2/3  step 21/60",
        "epoch 2/3  loss 0.5000",
        "epoch 2/3  step 25/60",
        "epoch 3/3  step 41/60",
    ]


def test_the_panel_stays_as_it_was_when_the_result_is_there():
    console = Console(width=120, force_terminal=True, file=io.StringIO())
    with Display(console) as display:
        display.update(at(3, 54, 2))
        shown = display._live.get_renderable()
        display.update(ended(at(3, 59, 2)))
        assert display._live.get_renderable() is shown
    assert "epoch 3/3  step 54/60" in console.file.getvalue()


def test_a_whole_number_that_was_logged_is_shown_as_one():
    line = live.epoch_line({**entry(1), "seen": 0, "validation_accuracy": 1.0, "skill": None}, 3)
    assert line.startswith("epoch 1/3  loss 0.5000  seen 0  skill -  validation accuracy 1.0000  2.0 s")


def test_the_last_line_of_a_fit_is_where_its_record_is(monkeypatch, tmp_path):
    console = Console(width=20, file=io.StringIO())
    done = object()
    monkeypatch.setattr(live.driver, "run", lambda *_, **__: done)
    monkeypatch.setattr(live, "print_summary", lambda record, _: None)
    job = Job.from_dict({"name": "mine", "run_dir": str(tmp_path / "runs"), "training": {"epochs": 1}})
    assert live.fit(print, None, job, console=console) is done
    assert console.file.getvalue().endswith(f"\nrecord: {tmp_path}/runs/mine/record.json\n")


def test_a_rate_is_shown_once_it_has_been_measured():
    unknown, slow = (at(1, 1, 0, samples_per_s=rate).progress[0] for rate in (None, 0.04))
    assert step_line(unknown, None) == "epoch 1/3  step 1/60  waiting 25.0%"
    assert step_line(slow, None) == "epoch 1/3  step 1/60  0.0 samples/s  waiting 25.0%"


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(live, "time", made)
    return made


def done(batches: int, step: int = 5, **changes) -> Status:
    return replace(at(1, step, 0), positions={0: batches, 1: batches}, **changes)


def told(display: Display) -> list[str]:
    return display._console.file.getvalue().splitlines()


def test_a_run_that_stands_still_says_so_and_for_how_long(clock, display):
    for seconds, status in (
        (1, done(4, 4)),
        (1, done(5)),  # 0.5 s a batch
        *[(10, done(5, num_ready=0))] * 6,
        *[(30, done(5, num_ready=3))] * 5,
        (1, done(6, 6)),
    ):
        clock.now_s += seconds
        display.update(status)
    lines = told(display)
    assert lines[:2] == [step_line(done(each, each).progress[0], left) for each, left in ((4, None), (5, 55.0))]
    assert lines[2:-1] == [
        "epoch 1/3  step 5/60  no batch for 0:20, none is ready",
        "epoch 1/3  step 5/60  no batch for 0:40, none is ready",
        "epoch 1/3  step 5/60  no batch for 1:30, 3 are ready: the training loop is busy",
        "epoch 1/3  step 5/60  no batch for 3:00, 3 are ready: the training loop is busy",
    ]
    assert lines[-1].startswith("epoch 1/3  step 6/60  800.0 samples/s")


def test_validation_and_long_steps_are_no_stall(clock, display):
    for batches in range(5, 20):  # of validation, 14 s each
        clock.now_s += 14
        display.update(done(batches))
    for _ in range(4):  # 56 s, four times as long
        clock.now_s += 14
        display.update(done(19))
    assert "no batch" not in display._console.file.getvalue()
    clock.now_s += 14.5
    display.update(done(19))
    assert told(display)[-1] == "epoch 1/3  step 5/60  no batch for 1:10, 1 are ready: the training loop is busy"


def test_a_run_that_begins_anew_or_stops_has_not_stalled(clock, display):
    display.update(done(5))
    clock.now_s += 60
    display.update(done(0, attempts=2))
    clock.now_s += 60
    display.update(done(0, attempts=2, stopping=True))
    assert "no batch" not in display._console.file.getvalue()
