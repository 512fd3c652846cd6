"""Where stages run: against every other placement on a simulated clock."""

from __future__ import annotations

import heapq
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.cost.placing import Costs, Places, best, rate_of

BATCHES, WARM = 300, 100
READY = 4  # batches a core that may lie ready or be made


def simulated(costs: Costs, places: Places, cut: int, other: int, share: float, host_cores: int) -> float:
    """Samples a second of batches of one sample: cores make them in order and wait where enough lie ready, the device
    that is free first takes what was ready first."""
    busy = host_cores / places.host_cores if places.host_cores else 0.0
    slower = 1 / (1 - costs.interference * busy)
    cores, devices = [0.0] * (places.cpu_cores + host_cores), [0.0] * places.devices
    if not cores:
        return 0.0
    ready: list[tuple[float, int]] = []
    taken: list[float] = []
    begun, room_since = 0, 0.0
    while len(taken) < BATCHES:
        while len(ready) < READY * len(cores):
            of = other if int((begun + 1) * share) > int(begun * share) else cut
            made = max(heapq.heappop(cores), room_since) + costs.on_cpu(of)
            heapq.heappush(cores, made)
            heapq.heappush(ready, (made, of))
            begun += 1
        made, of = heapq.heappop(ready)
        room_since = max(heapq.heappop(devices), made)
        taken.append(room_since)
        heapq.heappush(devices, room_since + costs.on_device(of) * slower)
    return (BATCHES - WARM - 1) / (max(taken[WARM:]) - taken[WARM])


def case(seed: int) -> tuple[Costs, Places]:
    rng = np.random.default_rng(seed)
    stages = int(rng.integers(2, 4))
    device_s = [None, *(rng.lognormal(-7, 1, stages - 1) if rng.random() < 0.9 else [None] * (stages - 1))]
    cpu_s = rng.lognormal(-5.5, 1, stages)
    places = Places(int(rng.integers(0, 9)), int(rng.integers(1, 4)), int(rng.integers(1, 3)))
    return Costs(cpu_s.tolist(), device_s, float(rng.lognormal(-6, 1)), float(rng.uniform(0, 0.2))), places


def test_nothing_else_is_faster_on_a_simulated_clock():
    """Within 3 % of the best of all cuts, shares and cores in 95 % of random cases."""
    behind = []
    for seed in range(40):
        costs, places = case(seed)
        found = best(costs, places)
        mine = simulated(costs, places, found.cut, found.other, found.share, found.host_cores)
        rates = [
            simulated(costs, places, cut, other, share, host_cores)
            for host_cores in range(places.host_cores + 1)
            for other, cut in combinations_with_replacement(costs.cuts, 2)
            for share in ([0.0] if cut == other else np.linspace(0.1, 0.9, 9))
        ]
        behind.append(mine / max(rates))
        assert mine == pytest.approx(found.rate, rel=0.1), "the clock agrees with the arithmetic"
    assert np.quantile(behind, 0.05) >= 0.97, sorted(behind)[:5]


costs_of = st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=5)


@settings(deadline=None)
@given(costs_of, st.data())
def test_no_share_or_number_of_cores_does_more_by_the_costs(cpu_s, data):
    device_s = data.draw(st.lists(st.one_of(st.none(), st.floats(1e-4, 1.0)), min_size=len(cpu_s), max_size=len(cpu_s)))
    costs = Costs(cpu_s, device_s, data.draw(st.floats(1e-4, 1.0)), data.draw(st.floats(0, 0.5)))
    places = Places(data.draw(st.integers(0, 20)), data.draw(st.integers(0, 6)), data.draw(st.integers(1, 8)))
    found = best(costs, places)
    for number in range(3):
        cut, other = data.draw(st.sampled_from(costs.cuts)), data.draw(st.sampled_from(costs.cuts))
        share, host_cores = data.draw(st.floats(0, 1)), data.draw(st.integers(0, places.host_cores))
        assert found.rate >= rate_of(costs, places, cut, other, share, host_cores) * (1 - 1e-9), number
    assert found.rate == rate_of(costs, places, found.cut, found.other, found.share, found.host_cores)


def test_by_hand():
    """Two stages of 10 ms; a step of 10 ms; on the device the second takes 5."""
    costs = Costs([0.01, 0.01], [None, 0.005], 0.01)
    assert best(costs, Places(2, 0, 1)) == best(costs, Places(2, 4, 1)), (
        "CPU hosts suffice: the host's cores do nothing"
    )
    enough = best(costs, Places(4, 2, 1))
    assert (enough.cut, enough.share, enough.host_cores, enough.rate) == (2, 0.0, 0, pytest.approx(100))
    short = best(costs, Places(1, 0, 1))  # one core makes 50 a second of both stages, 100 of the first
    # of a share x: 0.02 - 0.01 x of the core, 0.01 + 0.005 x of the device: as much at x = 2 / 3
    assert (short.cut, short.other, short.host_cores) == (2, 1, 0)
    assert short.share == pytest.approx(2 / 3) and short.rate == pytest.approx(75)
    alone = best(costs, Places(0, 2, 1))
    assert alone.host_cores == 2 and alone.share == 0.0 and alone.rate == pytest.approx(100)
    dear = best(Costs([0.01, 0.01], [None, 0.005], 0.01, interference=0.5), Places(1, 1, 1))
    assert dear.host_cores == 0, "what the host's core adds is less than what it costs the device"
    assert best(Costs([0.01], [None], 0.01), Places(0, 0, 1)).rate == 0, "nobody can prepare"


def test_somebody_reads_even_where_that_costs_nothing():
    costs = Costs([0.0], [None], 0.002)
    assert [best(costs, Places(cpu_cores, 2, 1)).host_cores for cpu_cores in (0, 1)] == [1, 0]
