"""When the stages run elsewhere, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest

from raytrain.cluster.placement import PlacedStages
from raytrain.cost.placing import Places
from raytrain.data.placement.decider import LOOK_S, ROOM, TRIALS, Choice, Decider
from raytrain.record.status import Decision, Spent

PLACED = {cores: PlacedStages({"cores": cores}, 4 + cores) for cores in range(3)}
CHOICE = Choice(("decode", "blur"), {1: 0, 2: 1}, Places(4, 2, 1), PLACED, 2, frozenset({"host"}))


def spent(times: int, blur_ms: float, device_ms: float, step_ms: float = 2.0, wait_s: float = 0.0) -> Spent:
    """So many times 1,000 samples; decoding takes 1 ms, reading none."""
    samples = 1000 * times
    return Spent(
        1.0,
        wait_s * times,
        (samples, step_ms * times),
        {"blur": (samples, device_ms * times)},
        {"read": (samples, 0.0), "decode": (samples, 1.0 * times), "blur": (samples, blur_ms * times)},
        {node: {"decode": (samples, 1.0 * times)} for node in ("cpu", "host")},
    )


def decided(choice: Choice = CHOICE, looks: int = 2, ranks: int = 1, **costs: float) -> tuple[Decider, list[Decision]]:
    decisions: list[Decision] = []
    decider = Decider(choice, decisions.append)
    for times in range(1, looks + 1):
        if decider.look({rank: spent(times, **costs) for rank in range(ranks)}, 100.0 * times):
            decider.cuts([], 1, trial=False)  # what is left is cut anew
    return decider, decisions


def test_cpu_hosts_that_suffice_leave_the_training_host_alone():
    decider, [decision] = decided(blur_ms=2.0, device_ms=1.0)
    # 4 cores make 4 / 3 ms, the device takes 1 / 1.8 ms with the prior's tenth off the step that was measured
    assert (decision.cut, decision.other, decision.share, decision.host_cores) == (2, 2, 0.0, 0)
    assert decision.rate == pytest.approx(1000 / 1.8)
    assert decision.rate_before == pytest.approx(1000 / 2), "all of its cores prepared"
    assert decider.placed == PLACED[0]
    assert decision.text == (
        "stages: all on 4 cores of CPU hosts alone (busy training hosts cost their devices 10%); 556 samples/s "
        "expected, 500 as placed before (a sample takes: all stages 3.00 ms of a core; blur 1.00 ms of a device "
        "instead; the model's step 1.80)"
    )


def test_what_cpus_cannot_do_the_device_does():
    _, [decision] = decided(blur_ms=20.0, device_ms=2.0)
    assert (decision.cut, decision.other) == (2, 1) and 0 < decision.share < 1
    told = f"blur on the device for {decision.share:.0%} of the batches"
    assert told in decision.text and "and 2 of the training hosts' 2" in decision.text
    # CPUs and device are busy alike
    cpu_s, device_s = 0.021 - 0.020 * decision.share, 0.0018 + 0.002 * decision.share
    assert 6 / (ROOM * cpu_s) == pytest.approx(0.9 / device_s) == pytest.approx(decision.rate), "with some room"


def test_a_decision_stands_until_another_is_worth_it():
    decider, decisions = decided(blur_ms=60.0, device_ms=0.2, looks=3)
    assert len(decisions) == 1
    assert not decider.look({0: spent(4, 59.0, 0.2)}, 400.0)
    assert len(decisions) == 1, "a few per cent of one stage"
    slow = spent(5, 60.0, 0.2)
    slower = Spent(*(1.0, 0.0, (5000, 10.0), {"blur": (5000, 101.0)}, slow.cpu_stages, slow.nodes))
    assert decider.look({0: slower}, 500.0), "at once"
    assert len(decisions) == 2 and decisions[1].cut == 2, "the device has become slow"
    assert decisions[1].rate > 1.02 * decisions[1].rate_before


def test_what_is_measured_is_of_what_runs_and_not_of_what_has_been_decided():
    decisions: list[Decision] = []
    loud = Decider(CHOICE, decisions.append)
    for times in (1, 2):
        assert loud.look({0: spent(times, 2.0, 1.0)}, 100.0 * times) == (times == 2)
    assert loud.look({0: spent(3, 2.0, 1.0)}, 300.0), "not decided again, and still worth it"
    assert set(loud._measured.step_s) == {True}, "the training host's cores still prepare: nothing has been cut anew"
    assert len(decisions) == 1
    loud.cuts([], 1, trial=False)
    loud.look({0: spent(4, 2.0, 1.0)}, 400.0)
    assert set(loud._measured.step_s) == {True, False}


def test_what_cpus_are_at_is_not_broken_off_again_at_once_for_a_little():
    costs = {"blur_ms": 2.0, "device_ms": 1.0}  # 556 samples/s in place of 500 with the host's cores freed
    decider = Decider(CHOICE, lambda decision: None)
    told = {at: decider.look({0: spent(times, **costs)}, at) for times, at in enumerate((100, 200, 205, 229, 250), 1)}
    assert told == {100: False, 200: True, 205: False, 229: False, 250: True}
    dear = {"blur_ms": 20.0, "device_ms": 2.0}
    decider = Decider(CHOICE, lambda decision: None)
    told = {at: decider.look({0: spent(times, **dear)}, at) for times, at in enumerate((100, 200, 205), 1)}
    assert told == {100: False, 200: True, 205: True}, "what is worth much is worth it"


def test_nothing_is_decided_before_every_rank_has_told():
    choice = Choice(CHOICE.stages, CHOICE.cuts, Places(4, 2, 2), PLACED, 2)
    assert decided(choice, ranks=1, blur_ms=60.0, device_ms=0.2)[1] == []
    assert len(decided(choice, ranks=2, blur_ms=60.0, device_ms=0.2)[1]) == 1


def test_a_look_is_taken_when_it_is_due():
    decisions: list[Decision] = []
    decider = Decider(CHOICE, decisions.append)
    assert not decider.look({}, 0.0), "no rank has told"
    assert not decider.look({0: spent(1, 60.0, 0.2)}, 10.0), "the first steps warm up"
    assert not decider.look({0: spent(2, 60.0, 0.2)}, 10.0 + LOOK_S[0] - 0.1) and not decisions
    assert decider.look({0: spent(3, 60.0, 0.2)}, 10.0 + LOOK_S[0]) and len(decisions) == 1
    decider.cuts([], 1, trial=False)
    slow = Spent(1.0, 0.0, (5000, 10.0), {"blur": (5000, 500.0)}, spent(5, 60.0, 0.2).cpu_stages, {})
    due = 10.0 + LOOK_S[0] + LOOK_S[0]
    assert not decider.look({0: slow}, due - 0.1) and len(decisions) == 1
    assert decider.look({0: slow}, due) and len(decisions) == 2


def test_the_first_batches_show_what_the_device_takes():
    decider, _ = decided(looks=0, blur_ms=0, device_ms=0)
    splits = ["train"] * 20
    assert decider.cuts(splits, 2, trial=True).tolist() == [1, 1, 2, 2] * TRIALS + [2] * 8
    assert decider.cuts(splits, 2, trial=False).tolist() == [2] * 20


@pytest.mark.parametrize("world_size", [1, 3])
def test_a_share_is_spread_evenly_and_ranks_step_alike(world_size):
    decider, [decision] = decided(blur_ms=20.0, device_ms=2.0)
    found = decider.cuts(["train"] * 200 * world_size, world_size, trial=False).reshape(-1, world_size)
    assert (found == found[:, :1]).all()
    moved = np.cumsum(found[:, 0] == decision.other)
    assert np.abs(moved - decision.share * np.arange(1, 201)).max() < 3
    validation = decider.cuts(["validation"] * 200, 1, trial=False)
    assert set(validation.tolist()) == {0, 1}, "of its own stages"


def test_now_and_then_a_batch_shows_what_the_stages_take_where_they_do_not_run():
    decider, _ = decided(blur_ms=2.0, device_ms=1.0)
    found = decider.cuts(["train"] * 2 * 1500, 2, trial=False).reshape(-1, 2)
    assert (decider.placing.cut, decider.placing.share) == (2, 0.0)
    assert np.flatnonzero(found[:, 0] == 1).tolist() == [250, 1250], "a step at a time, and none at 750"
    assert (found[:, 0] == found[:, 1]).all()
