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
from raytrain.record.status import Decision, Spent

TRIALS = 3  # batches of a rank whose stages the device runs as far as it can: the first of them only warms up
LEG_S = (4.0, 10.0, 20.0, 45.0)  # from one look to the next, the first of them before anything is known
GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Choice:
    """What there is to choose from.

    Attributes:
        stages: of the training split that CPUs may run, by name, in order.
        cuts: how many of them may run there, ascending, and for each how many of the validation's then do.
        places: the cores and devices.
        placed: by how many of the training hosts' cores prepare, what Ray is told.
        hosts: Ray node ids of the training hosts.
    """

    stages: Sequence[str]
    cuts: Mapping[int, int]
    places: Places
    placed: Mapping[int, PlacedStages]
    hosts: frozenset[str] = frozenset()

    @property
    def first(self) -> Placing:
        """Before anything is known: all stages on all CPUs."""
        most = max(self.cuts)
        return Placing(most, most, 0.0, self.places.host_cores, 0.0)


class Decider:
    """Looks at what has been measured between one leg of the stream and the next."""

    def __init__(self, choice: Choice, decided: Callable[[Decision], None]):
        self.placing = choice.first
        self._choice, self._decided = choice, decided
        self._measured = Measured(choice.stages, min(choice.cuts), choice.hosts)
        self._rate: float | None = None
        self._looks = 0

    @property
    def placed(self) -> PlacedStages:
        return self._choice.placed[self.placing.host_cores]

    def look(self, told: Mapping[int, Spent]) -> None:
        """Decide again, once every rank has told of itself."""
        if len(told) < self._choice.places.devices:
            return
        self._measured.look(told, self.placing, self._choice.places)
        costs = self._measured.costs()
        if costs is None:
            return
        places, now = self._measured.places(self._choice.places), self.placing
        before = rate_of(costs, places, now.cut + 1, now.other + 1, now.share, now.host_cores)
        found = best(costs, places)
        self._looks += 1
        first = self._rate is None
        fewer = found.host_cores < now.host_cores and found.rate >= before
        if first or fewer or found.rate > (1 + LEAST_GAIN) * before:
            self.placing = replace(found, cut=found.cut - 1, other=found.other - 1)  # reading is no stage
            self._rate = found.rate
            self._decided(self._decision(costs, places, before))
        else:
            self._rate = before

    def most_batches(self, batch_size: int, batch_s: float) -> int:
        """Of the next leg.

        Args:
            batch_s: of a core.
        """
        seconds = LEG_S[min(self._looks, len(LEG_S) - 1)]
        if self._rate is None:
            return max(int(seconds * self.placed.slots / batch_s), 1)
        return max(int(seconds * self._rate / batch_size), 1)

    def cuts(self, splits: Sequence[Split], world_size: int, trial: bool) -> np.ndarray:
        """How many stages the workers run, of each block in order, int64; of `world_size` that follow each other alike,
        since ranks step together.

        Args:
            splits: of the blocks.
            trial: some are to show what the stages take on the device.
        """
        rounds = np.arange(len(splits)) // world_size
        if trial:
            train = np.where((rounds % 2 == 0) & (rounds < 2 * TRIALS), min(self._choice.cuts), self.placing.cut)
        else:
            others = (rounds + 1) * GOLDEN % 1 < self.placing.share
            train = np.where(others, self.placing.other, self.placing.cut)
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


def told(placing: Placing, stages: Sequence[str], costs: Costs, places: Places, before: float) -> str:
    """In a line."""
    cores = [f"{places.cpu_cores} cores of CPU hosts"] if places.cpu_cores else []
    if placing.host_cores or not cores:
        cores.append(f"{placing.host_cores} of the training hosts' {places.host_cores}")
    always, sometimes = stages[placing.cut :], stages[placing.other : placing.cut]
    device = [f"{', '.join(always)} on the device"] if always else []
    if sometimes:
        device.append(f"{', '.join(sometimes)} on the device for {placing.share:.0%} of the batches")
    moved = [each for each in costs.device_s if each is not None]
    taken = f"a sample takes {sum(costs.cpu_s) * 1e3:.2f} ms of a core"
    taken += f", or {sum(moved) * 1e3:.2f} ms of a device for what may move," if moved else ""
    return (
        f"stages: on {' and '.join(cores)}{''.join(f'; {each}' for each in device)}; {placing.rate:,.0f} samples/s "
        f"expected, {before:,.0f} as before ({taken} and {costs.step_s * 1e3:.2f} ms of its step)"
    )
