"""What writes checkpoints beside the training: what it writes, what it waits for, and what becomes of a store that
fails. Time is simulated; the stores of `test_store.py` are real."""

from __future__ import annotations

import threading
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
from keeping import asked, keeper_of
from patience import patient

from raytrain.train.checkpoints import checkpoint, shelf, writer
from raytrain.train.checkpoints.host_copy import HostCopy
from raytrain.train.checkpoints.writer import Writer


class Weights:
    """An object with a state, all of one value."""

    def __init__(self, value=0.0, size=3):
        self.state = {"w": torch.full((size,), value), "steps": [0]}

    def state_dict(self):
        return self.state


def facts(steps, **changes):
    return shelf.Facts(
        **{
            **dict.fromkeys(("epoch", "updates", "samples", "consumed_in_epoch", "seed"), 0),
            "fingerprint": "f",
            "world_size": 1,
            "steps": steps,
            **changes,
        }
    )


def kept(folder) -> list[tuple[int, float]]:
    """Step and weight of every checkpoint on disk, in the order of writing; each is whole."""
    found = []
    for path, each in shelf.whole(folder):
        shelf.check_digests(path, each)
        found.append((each.steps, checkpoint.load_object(path, 0)["w"][0].item()))
    return found


class Store:
    """A keeper's, which fails or waits as the test says, and tells what is under way."""

    def __init__(self, folder, keep=9):
        self.ask_keeper = asked(keeper_of(folder, "a", keep))
        self.fails = lambda method: False
        self.open = threading.Event()
        self.open.set()
        self.calls, self.under_way, self.most_under_way = [], 0, 0

    def ask(self, method, *args):
        self.calls.append(method)
        fails = self.fails(method)
        answer = None if fails else self.ask_keeper(method, *args)
        self.under_way += 1
        self.most_under_way = max(self.under_way, self.most_under_way)

        def wait():
            assert self.open.wait(patient(30))
            self.under_way -= 1
            return "cannot write a checkpoint into /store: it fails" if fails else answer()

        return wait


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


@pytest.fixture
def told():
    return []


def test_a_copy_is_of_its_moment_and_tells_the_same(tmp_path):
    shared = torch.arange(6.0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = {
        "tied": [shared.view(2, 3), shared.view(2, 3)],
        "turned": shared.view(2, 3).t(),
        "empty": torch.zeros(0),
        "number": torch.tensor(3, dtype=torch.int64),
        "plain": {"lr": [0.1, 0.2], "betas": (0.9, 0.99), "none": None, "name": "adamw"},
        "model": model.state_dict(),
    }
    copy = HostCopy().take(state)
    torch.save(copy, tmp_path / "copy.pt")
    again = torch.load(tmp_path / "copy.pt", weights_only=True)
    with torch.no_grad():
        shared.add_(1)
        state["number"].add_(1)
        state["plain"]["lr"].append(0.3)
        for each in model.parameters():
            each.add_(1)
    for found in (copy, again):
        assert found["tied"][0].tolist() == [[0, 1, 2], [3, 4, 5]]
        assert found["tied"][0].data_ptr() == found["tied"][1].data_ptr(), "one tensor, written once"
        assert found["turned"].tolist() == [[0, 3], [1, 4], [2, 5]] and found["turned"].stride() == (1, 3)
        assert (found["empty"].shape, found["number"].item()) == ((0,), 3)
        assert found["plain"] == {"lr": [0.1, 0.2], "betas": (0.9, 0.99), "none": None, "name": "adamw"}
        assert type(found["model"]) is OrderedDict
        assert torch.equal(found["model"]["0.weight"] + 1, model[0].weight)
    assert copy["model"]._metadata == model.state_dict()._metadata, "by which torch knows old from new modules"
    assert not any(each.requires_grad for each in copy["model"].values())


def test_a_copy_takes_the_memory_of_the_one_before():
    copies, state = HostCopy(), {"a": torch.zeros(5), "b": torch.zeros(5), "c": torch.zeros(2)}
    places = []
    for number in range(3):
        state["a"] += 1
        taken = copies.take(state)
        assert (taken["a"][0], taken["b"][0]) == (number + 1, 0)
        places.append({each.data_ptr() for each in taken.values()})
    assert places[0] == places[1] == places[2] and len(places[0]) == 3
    assert copies.take({"d": torch.ones(7)})["d"].tolist() == [1] * 7
    assert sum(len(each) for each in copies._memory.values()) == 1, "and lets go of what nobody needs any more"


def test_a_step_waits_for_the_copy_alone_and_what_is_written_is_of_its_moment(store, tmp_path, told):
    keep, thing, history = Writer(store.ask, told.append), Weights(1.0), [{"epoch": 1}]
    store.open.clear()
    keep(facts(1, history=history), {"rng": torch.ones(2)}, [thing])
    assert keep.busy and shelf.whole(tmp_path) == []
    thing.state["w"] += 1  # the next step
    thing.state["steps"].append(1)
    history.append({"epoch": 2})
    store.open.set()
    assert keep.close() is None and not keep.busy
    assert kept(tmp_path) == [(1, 1.0)]
    [(path, found)] = shelf.whole(tmp_path)
    assert found.history == [{"epoch": 1}] and checkpoint.load_object(path, 0)["steps"] == [0]
    assert told == [] and keep.write_s > 0


def test_they_are_written_one_after_the_other(store, tmp_path, told):
    keep, thing = Writer(store.ask, told.append), Weights()
    for step in range(1, 6):
        thing.state["w"] += 1
        keep(facts(step), {}, [thing])
    assert keep.close() is None
    assert kept(tmp_path) == [(step, step) for step in range(1, 6)]
    assert store.calls == ["begin", "write", "write", "finish"] * 5


def test_it_goes_piece_by_piece_and_few_of_them_are_under_way(store, tmp_path, told, monkeypatch):
    monkeypatch.setattr(writer, "PIECE_BYTES", 1000)
    thing = Weights(2.0, size=10_000)
    keep = Writer(store.ask, told.append)
    keep(facts(1), {}, [thing])
    assert keep.close() is None
    assert store.calls.count("write") > 40
    assert store.most_under_way == writer.ON_THEIR_WAY
    [(path, _)] = shelf.whole(tmp_path)
    assert kept(tmp_path) == [(1, 2.0)] and len(checkpoint.load_object(path, 0)["w"]) == 10_000


@pytest.mark.parametrize("method", ["begin", "write", "finish"])
def test_a_store_that_fails_is_tried_again_and_that_is_told_once(store, tmp_path, told, method):
    keep, thing = Writer(store.ask, told.append, waits_s=(0, 0, 0)), Weights(1.0)
    keep(facts(1), {}, [thing])
    assert keep.close() is None
    left = iter([True, True])
    store.fails = lambda asked: asked == method and next(left, False)
    keep(facts(2), {}, [thing])
    assert keep.close() is None
    keep(facts(3), {}, [thing])
    assert keep.close() is None
    assert kept(tmp_path) == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert told == [
        "cannot write a checkpoint into /store: it fails; training goes on, and it is tried 3 times more, within 0 s, "
        "and again with the next one",
        "the checkpoint of step 2 is on disk: they can be written again",
    ]


def test_one_that_cannot_be_saved_is_no_harm_once_a_later_one_is(store, tmp_path, told):
    keep, thing = Writer(store.ask, told.append, waits_s=(0,)), Weights()
    for step in range(1, 5):
        store.fails = lambda method, step=step: method == "write" and step in (2, 3)
        keep(facts(step), {}, [thing])
        keep._thread.join()
        keep.check()
    assert keep.close() is None
    assert [step for step, _ in kept(tmp_path)] == [1, 4]
    assert len(told) == 2 and "step 4 is on disk" in told[1]


@pytest.mark.parametrize(
    ("saved", "stands", "then"),
    [
        (True, "that of step 1 stands", "resume"),
        (False, "no other was saved", "resume if there is an older one, else start again"),
    ],
)
def test_a_last_one_that_cannot_be_saved_is_an_error_of_one_line(store, told, saved, stands, then):
    keep, thing = Writer(store.ask, told.append, waits_s=(0, 0)), Weights()
    if saved:
        keep(facts(1), {}, [thing])
        assert keep.close() is None
    store.fails = lambda method: True
    keep(facts(2), {}, [thing])
    assert str(keep.close()) == (
        f"the last checkpoint, of step 2, could not be saved ({stands}): cannot write a checkpoint into /store: it "
        f"fails; mend the store and {then}"
    )
    assert store.calls[-3:] == ["begin"] * 3, "nothing is sent to a store that does not begin"


def test_a_newer_one_does_not_wait_for_the_tries_of_an_older(store, tmp_path, told):
    keep, thing = Writer(store.ask, told.append, waits_s=(3600,)), Weights(1.0)
    failed = threading.Event()
    store.fails = lambda method: failed.set() or True
    keep(facts(1), {}, [thing])
    assert failed.wait(patient(10)) and keep.busy
    store.fails = lambda method: False
    thing.state["w"] += 1
    keep(facts(2), {}, [thing])
    assert keep.close() is None
    assert kept(tmp_path) == [(2, 2.0)]


def test_when_the_loop_has_failed_the_try_at_hand_is_the_last(store, tmp_path, told):
    keep = Writer(store.ask, told.append, waits_s=(3600,))
    store.open.clear()
    keep(facts(1), {}, [Weights()])
    threading.Thread(target=lambda: keep._hurry.wait() and store.open.set()).start()
    assert keep.close(hurry=True) is None
    assert [step for step, _ in kept(tmp_path)] == [1], "which may be the last that there is"
    store.fails = lambda method: True
    keep(facts(2), {}, [Weights()])
    assert "of step 2, could not be saved (that of step 1 stands)" in str(keep.close(hurry=True))


@pytest.mark.parametrize("where", ["check", "call", "close"])
def test_what_is_no_fault_of_the_store_is_raised_by_the_training(store, told, where):
    keep = Writer(store.ask, told.append)
    store.fails = lambda method: 1 / 0
    keep(facts(1), {}, [Weights()])
    keep._thread.join()
    with pytest.raises(ZeroDivisionError):
        {"check": keep.check, "call": lambda: keep(facts(2), {}, [Weights()]), "close": keep.close}[where]()
    keep.check()


def test_a_store_that_is_gone_for_a_minute_is_waited_for_and_one_that_stays_away_is_not(
    store, tmp_path, told, monkeypatch
):
    """With the waits of a real run, by a clock of the test's."""
    now = [0.0]

    class Clock(threading.Event().__class__):
        def wait(self, timeout=None):
            now[0] += timeout
            return False

    monkeypatch.setattr(writer, "threading", SimpleNamespace(Event=Clock, Thread=threading.Thread))
    keep = Writer(store.ask, told.append)
    store.fails = lambda method: now[0] < 60
    keep(facts(1), {}, [Weights()])
    assert keep.close() is None and [step for step, _ in kept(tmp_path)] == [1]
    assert 60 <= now[0] <= 90
    store.fails, began = (lambda method: True), now[0]
    keep(facts(2), {}, [Weights()])
    assert keep.close() is not None
    assert now[0] - began == 91 and store.calls[-8:] == ["begin"] * 8


def test_that_writing_takes_too_long_is_told_once(store, told):
    keep = Writer(store.ask, told.append, waits_s=())
    for _ in range(3):
        keep.late(50)
    assert (keep.num_late, len(told)) == (3, 1)
    assert "a checkpoint takes longer to write than training.checkpoint.every_steps: 50 takes to train" in told[0]
    failing = Writer(store.ask, told.append, waits_s=())
    store.fails = lambda method: True
    failing(facts(1), {}, [Weights()])
    failing._thread.join()
    failing.late(50)
    assert len(told) == 2, "that the store fails says it"
