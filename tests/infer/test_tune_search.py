"""The tuner's search on simulated machines: how near to the best it comes with how few settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated_machine import SimulatedMachine, arbitrary, physical

from raytrain.infer.contract import Setting, Timed
from raytrain.infer.tune.search import Goal, Limits, Refused, Trial, search
from raytrain.infer.tune.surrogate import Factors, Surrogate, expected_gain, least_known

MACHINES = 20


def searched(machine: SimulatedMachine, goal: Goal = Goal(), budget_s: float = 1e6, seed: int = 0, **changes):
    limits = replace(Limits.of(len(machine.settings), budget_s), **changes)
    return search(machine.settings, machine.measure, goal, limits, seed=seed, clock=machine.clock)


@pytest.mark.parametrize(
    ("family", "machines", "least", "typical"),
    [(physical, MACHINES, 0.95, 0.99), (arbitrary, MACHINES // 2, 0.9, 0.97)],
)
def test_the_pick_is_within_5_percent_of_the_best_after_a_tenth_of_the_settings(family, machines, least, typical):
    shares = []
    for seed in range(machines):
        machine = family(seed)
        assert len(machine.settings) >= 200
        found = searched(machine)
        assert found.tried == len(set(machine.asked)) <= len(machine.settings) / 10
        shares.append(machine.share_of_best(found.leaders[0]))
    assert np.mean(np.array(shares) >= 0.95) >= least, sorted(shares)[:5]
    assert np.median(shares) >= typical


def test_chance_alone_does_not_come_near():
    """What the figures above are worth: the best of a tenth of the settings drawn at random, without noise."""
    shares = []
    for seed in range(MACHINES):
        machine, rng = physical(seed), np.random.default_rng(seed)
        drawn = rng.choice(len(machine.settings), len(machine.settings) // 10, replace=False)
        shares.append(machine.truth[drawn].max() / machine.truth.max())
    assert np.mean(np.array(shares) >= 0.95) < 0.6


def test_the_same_measurements_and_seed_give_the_same_search():
    one, other = physical(3), physical(3)
    assert searched(one).leaders == searched(other).leaders
    assert one.asked == other.asked
    another = physical(3)
    searched(another, seed=1)
    assert another.asked != one.asked


def test_leaders_are_measured_again_and_for_longer():
    """What led after one short measurement was lucky too; it is the mean by effort that ranks."""
    machine = physical(5)
    machine.noise = 0.1
    found = searched(machine)
    longer = [trial for trial in found.trials if trial.effort_s > found.trials[0].effort_s]
    assert {trial.setting for trial in longer} >= set(found.leaders)
    assert all(trial.effort_s == 3 * found.trials[0].effort_s for trial in longer)
    means = {}
    for leader in found.leaders:
        own = [trial for trial in found.trials if trial.setting == leader]
        figures, weights = zip(*((np.log(each.measured.samples_per_s), each.effort_s) for each in own), strict=True)
        means[leader] = np.average(figures, weights=weights)
    assert found.leaders == sorted(means, key=lambda leader: -means[leader])


@pytest.mark.parametrize("budget_s", [5.0, 30.0, 90.0])
def test_the_budget_is_kept(budget_s):
    machine = physical(2)
    found = searched(machine, budget_s=budget_s)
    assert machine.now_s <= budget_s
    assert found.leaders
    assert found.ended == "the budget was spent" or found.tried == len(machine.settings) // 10


def test_what_takes_too_long_is_left_out_and_the_others_go_on():
    """torch.compile takes a minute to start: it does not end the search for those that take two seconds."""
    machine = physical(0)
    assert {one.backend for one in machine.settings} > {"compile"}
    machine.start_s = {"compile": 60.0}
    found = searched(machine, budget_s=200.0)
    assert machine.now_s <= 200
    assert found.tried > 12
    assert sum(one.backend == "compile" for one in machine.asked) <= 2


def test_one_is_measured_whatever_the_budget():
    machine = physical(2)
    assert searched(machine, budget_s=0.1).tried == 1


def test_settings_that_cannot_be_are_results_and_those_like_them_are_avoided():
    """The best back end does not load, and nothing holds more than 512 samples at a time."""
    vain, shares = [], []
    for seed in range(6):
        machine = physical(seed)
        broken = machine.settings[int(np.argmax(machine.truth))].backend
        machine.refused = {
            one for one in machine.settings if one.backend == broken or one.batch_size * one.streams > 512
        }
        left = np.array([one not in machine.refused for one in machine.settings])
        found = searched(machine)
        assert not {*found.leaders} & machine.refused
        assert found.tried <= len(machine.settings) / 10
        vain.append(sum(one.backend == broken for one in machine.asked))
        shares.append(machine.of(found.leaders[0])[0] / machine.truth[left].max())
    assert np.mean(vain) <= 6, vain
    assert np.mean(np.array(shares) >= 0.95) >= 0.8, sorted(shares)


def test_nothing_works():
    machine = physical(0)
    machine.refused = set(machine.settings)
    found = searched(machine)
    assert found.leaders == [] and found.tried == len(machine.settings) // 10


def test_a_leader_that_fails_later_leads_no_more():
    machine, seen = physical(1), set()

    def measure(setting: Setting, effort_s: float):
        again = setting in seen
        seen.add(setting)
        return Refused("killed", 1.0) if again else machine.measure(setting, effort_s)

    found = search(machine.settings, measure, Goal(), Limits.of(len(machine.settings), 1e6), clock=machine.clock)
    failed = {trial.setting for trial in found.trials if isinstance(trial.measured, Refused)}
    assert failed and not failed & {*found.leaders}


def test_latency_is_p95_of_a_batch():
    shares = []
    for seed in range(6):
        machine = physical(seed)
        found = searched(machine, Goal("latency"))
        shares.append(machine.p95_s.min() / machine.of(found.leaders[0])[1])
    assert np.mean(np.array(shares) > 0.95) >= 0.8


def test_throughput_within_a_limit_of_latency():
    shares = []
    for seed in range(5):
        machine = physical(seed)
        limit_s = float(np.quantile(machine.p95_s, 0.3))
        found = searched(machine, Goal("throughput", limit_s))
        rate, p95_s = machine.of(found.leaders[0])
        assert found.allowed and p95_s <= 1.05 * limit_s
        shares.append(rate / machine.truth[machine.p95_s <= limit_s].max())
    assert np.mean(np.array(shares) >= 0.95) >= 0.8, sorted(shares)


def test_a_limit_that_nothing_keeps_leads_to_the_quickest():
    machine = physical(4)
    found = searched(machine, Goal("throughput", float(machine.p95_s.min()) / 10))
    assert not found.allowed
    quickest = min(trial.measured.percentile(0.95) for trial in found.trials)
    assert machine.of(found.leaders[0])[1] <= 1.1 * quickest


def test_of_a_small_grid_all_may_be_tried():
    machine = physical(6)
    few = machine.settings[:5]
    found = search(few, machine.measure, Goal(), Limits.of(5, 1e6), clock=machine.clock)
    assert found.tried == 5 and found.ended == "there were no others"


def test_a_grid_of_one():
    machine = physical(6)
    watched: list[Trial] = []
    limits = Limits.of(1, 1e6)
    found = search(machine.settings[:1], machine.measure, Goal(), limits, clock=machine.clock, watch=watched.append)
    assert found.leaders == machine.settings[:1] and watched == found.trials


# --- the surrogate ---


def test_first_settings_are_far_from_each_other():
    """Whatever has a value of its own is among them early, unlike in the grid's own order."""
    machine = physical(7)
    chosen = [machine.settings[number] for number in least_known(Factors.of(machine.settings), 12, seed=0)]
    assert len(set(chosen)) == 12
    for name in ("backend", "precision", "allocator"):
        assert {getattr(one, name) for one in chosen} == {getattr(one, name) for one in machine.settings}


def test_the_surrogate_tells_a_sum_of_factors_from_few_points():
    """Of figures that are a sum over factors, all the others follow from a tenth, within its own doubt."""
    machine, rng = physical(8), np.random.default_rng(0)
    effects = {one.backend: rng.normal(0, 0.5) for one in machine.settings}
    effects |= {one.precision: rng.normal(0, 0.5) for one in machine.settings}
    figures = np.array(
        [effects[one.backend] + effects[one.precision] + 0.2 * np.log2(one.batch_size) for one in machine.settings]
    )
    factors = Factors.of(machine.settings)
    seen = least_known(factors, 24, seed=0)
    guesses = Surrogate(factors, 0).guesses(seen, figures[seen], [1.0] * 24)
    mean, spread = (np.mean(each, axis=0) for each in zip(*guesses, strict=True))
    error = np.abs(mean - figures)
    assert np.sqrt(np.mean(error**2)) < 0.25 * figures.std()
    assert np.mean(error < 2 * spread) > 0.9


def test_expected_gain_against_draws():
    draws = np.random.default_rng(0).normal(1.0, 0.5, 400_000)
    found = expected_gain(np.array([1.0]), np.array([0.5]), 1.3)
    assert found == pytest.approx(np.maximum(draws - 1.3, 0).mean(), rel=0.02)


def test_percentiles_and_weights():
    timed = Timed(10.0, [0.1] * 95 + [0.9] * 5, 1.0)
    assert Goal("latency").gain(timed) == pytest.approx(-np.log(0.9))
    assert Goal("throughput").gain(timed) == pytest.approx(np.log(10))
    assert Goal("throughput", 0.45).excess(timed) == pytest.approx(np.log(2))
