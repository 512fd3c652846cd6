"""When the stages run elsewhere from now on, and what is said of it. Pure, but for the clock."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raytrain.cluster.placement import PlacedStages
from raytrain.cost.placing import LEAST_GAIN, Costs, Places, Placing, best, rate_of
from raytrain.data.order import Split
from raytrain.data.placement.measured import Measured
from raytrain.errors import TrainingError
from raytrain.record.status import Decision, Spent

TRIALS = 3  # batches of a rank whose stages the device runs as far as it can: the first of them only warms up
LOOK_S = (2.0, 5.0, 10.0, 20.0, 30.0)  # from one look to the next, once something has been decided
PROBE_EVERY = 500  # steps: a batch that runs where the others do not, so that what it costs there stays known
ROOM = 1.05  # times what a sample costs a core
AT_ONCE = 0.05  # of the rate: what is worth to break off what the CPUs are at
CALM_S, SOON = 30.0, 3  # after which that may be done again as lightly; before, for so many times as much
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Choice:
    """What there is to choose from.

    Attributes:
        stages: of the training split that CPUs may run, by name, in order.
        cuts: how many of them may run there, ascending, and for each how many of the validation's then do.
        places: the cores and devices.
        placed: by how many of the training hosts' cores prepare, what Ray is told.
        host_cores: that prepare at first.
        hosts: Ray node ids of the training hosts.
    """

    stages: Sequence[str]
    cuts: Mapping[int, int]
    places: Places
    placed: Mapping[int, PlacedStages]
    host_cores: int
    hosts: frozenset[str] = frozenset()

    @property
    def first(self) -> Placing:
        """Before anything is known: all stages on CPUs."""
        most = max(self.cuts)
        return Placing(most, most, 0.0, self.host_cores, 0.0)


class Decider:
    """Looks at what has been measured, now and then, while the stream goes on."""

    def __init__(self, choice: Choice, decided: Callable[[Decision], None]):
        self.placing = self._in_force = choice.first  # what is decided may have to wait until what CPUs are at is done
        self._choice, self._decided = choice, decided
        self._measured = Measured(choice.stages, min(choice.cuts), choice.hosts)
        self._look_at, self._looks, self._settled = 0.0, 0, False
        self._broken_off_s = float("-inf")

    @property
    def placed(self) -> PlacedStages:
        return self._choice.placed[self.placing.host_cores]

    @property
    def has_decided(self) -> bool:
        return self._looks > 0

    def lose_cpu_hosts(self) -> None:
        """All of them are gone: the training hosts' cores prepare.

        Raises:
            TrainingError: these may not.
        """
        places = self._choice.places
        if not places.host_cores:
            raise TrainingError(
                "the CPU hosts are lost, and the training hosts have no CPUs for the stages; start the run again on "
                "other hosts, with --resume"
            )
        self._choice = replace(self._choice, places=replace(places, cpu_cores=0))
        self.placing = replace(self.placing, host_cores=max(self._choice.host_cores, 1))
        self._look_at, self._looks = 0.0, 0  # what is decided next is said in any case

    def look(self, told: Mapping[int, Spent], now_s: float) -> bool:
        """Decide again, if it is time to and every rank has told of itself. Whether to change at once what is being
        prepared.

        Args:
            now_s: by a clock that only goes forward.
        """
        if now_s < self._look_at or len(told) < self._choice.places.devices:
            return False
        self._look_at = now_s + LOOK_S[min(self._looks, len(LOOK_S) - 1)]
        self._measured.look(told, self._in_force, self._choice.places, settled=self._settled)
        self._settled = True
        costs = self._measured.costs()
        if costs is None:
            return False
        self._looks += 1
        places = self._measured.places(self._choice.places)
        before = _rate(costs, places, self.placing)
        found = _with_room(costs, places)
        rate = _rate(costs, places, found)
        fewer = found.host_cores < self.placing.host_cores and rate >= before * (1 - LEAST_GAIN / 2)
        if self._looks == 1 or fewer or rate > (1 + LEAST_GAIN) * before:
            self.placing = replace(found, rate=rate)
            self._decided(self._decision(costs, places, before))
        gain = _rate(costs, places, self.placing) / max(_rate(costs, places, self._in_force), 1e-9) - 1
        calm = now_s - self._broken_off_s >= CALM_S
        frees = calm and self.placing.host_cores < self._in_force.host_cores and gain >= 0
        at_once = frees or gain > (1 if calm else SOON) * AT_ONCE
        if at_once:
            self._broken_off_s = now_s
        return at_once

    def cuts(self, splits: Sequence[Split], world_size: int, trial: bool) -> np.ndarray:
        """How many stages the workers run, of each block in order, int64; of `world_size` that follow each other alike,
        since ranks step together.

        Args:
            splits: of the blocks.
            trial: some are to show what the stages take on the device.
        """
        self._in_force, self._settled = self.placing, False
        rounds = np.arange(len(splits)) // world_size
        if trial:
            train = np.where((rounds % 2 == 0) & (rounds < 2 * TRIALS), min(self._choice.cuts), self.placing.cut)
        else:
            others = (rounds + 1) * GOLDEN % 1 < self.placing.share
            train = np.where(others, self.placing.other, self.placing.cut)
            probes = (rounds % PROBE_EVERY == PROBE_EVERY // 2) & self.has_decided
            there = np.where(rounds // PROBE_EVERY % 2 == 0, min(self._choice.cuts), max(self._choice.cuts))
            train = np.where(probes, there, train)
        validation = np.array([self._choice.cuts[cut] for cut in train.tolist()], dtype=np.int64)
        return np.where([split == "train" for split in splits], train, validation)

    def _decision(self, costs: Costs, places: Places, before: float) -> Decision:
        names, placing = self._choice.stages, self.placing
        device_s = dict(zip(names, costs.device_s[1:], strict=True))
        return Decision(
            at=time.time(),
            cut=placing.cut,
            other=placing.other,
            share=placing.share,
            cores=places.cpu_cores,
            host_cores=placing.host_cores,
            stages={name: (cpu_s, device_s[name]) for name, cpu_s in zip(names, costs.cpu_s[1:], strict=True)},
            step_s=costs.step_s,
            interference=costs.interference,
            rate=placing.rate,
            rate_before=before,
            text=told(placing, names, costs, places, before),
        )


def _with_room(costs: Costs, places: Places) -> Placing:
    """The fastest where a sample costs a core a little more: CPUs and devices that can do just as much as each other
    wait for each other now and then."""
    found = best(replace(costs, cpu_s=[ROOM * each for each in costs.cpu_s]), places)
    return replace(found, cut=found.cut - 1, other=found.other - 1)  # reading is no stage


def _rate(costs: Costs, places: Places, placing: Placing) -> float:
    """Samples a second."""
    return rate_of(costs, places, placing.cut + 1, placing.other + 1, placing.share, placing.host_cores)


def told(placing: Placing, stages: Sequence[str], costs: Costs, places: Places, before: float) -> str:
    """In a line."""
    cores = [f"{places.cpu_cores} cores of CPU hosts"] if places.cpu_cores else []
    if placing.host_cores or not cores:
        cores.append(f"{placing.host_cores} of the training hosts' {places.host_cores}")
    else:
        cores[0] += f" alone (busy training hosts cost their devices {costs.interference:.0%})"
    always, sometimes = stages[placing.cut :], stages[placing.other : placing.cut]
    device = [f"{', '.join(always)} on the device"] if always else []
    if sometimes:
        device.append(f"{', '.join(sometimes)} on the device for {placing.share:.0%} of the batches")
    moved = {name: each for name, each in zip(stages, costs.device_s[1:], strict=True) if each is not None}
    taken = [f"all stages {sum(costs.cpu_s) * 1e3:.2f} ms of a core"]
    if moved:
        taken.append(f"{', '.join(moved)} {sum(moved.values()) * 1e3:.2f} ms of a device instead")
    taken.append(f"the model's step {costs.step_s * 1e3:.2f}")
    return (
        f"stages: {'' if device else 'all '}on {' and '.join(cores)}{''.join(f'; {each}' for each in device)}; "
        f"{placing.rate:,.0f} samples/s expected, {before:,.0f} as placed before (a sample takes: {'; '.join(taken)})"
    )
