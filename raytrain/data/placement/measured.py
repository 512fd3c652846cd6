"""What the stages and the step cost, from what the ranks tell of themselves. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from raytrain.cost.placing import Costs, Places, Placing
from raytrain.record.status import READ, Amount, Spent

INTERFERENCE = 0.1  # until it has been measured; 0.09 to 0.12 on an H200 whose host had 3 of its 4 cores at work
MOST_INTERFERENCE = 0.5
LIMITED_FROM = 0.3  # of the ranks' time spent waiting: then it is the CPUs that set the pace, which wait for nobody
FORGOTTEN = 0.9  # of the overhead stays, from one look to the next at which nobody waits
BELIEVED, REMEMBERED = 2, 3  # looks: waits while processes start, and hiccups, only make the overhead seem too large
MOST_OVERHEAD = 0.5  # of what the stages take


@dataclass
class Measured:
    """
    Args:
        stages: of the training split that CPUs may run, by name, in order.
        first: of them, that the device may run too.
        hosts: Ray node ids of the training hosts.

    Attributes:
        step_s: of a rank, for a sample, the stages that always run on the device included; by the share of its host's
            cores that prepare.
    """

    stages: Sequence[str]
    first: int
    hosts: frozenset[str] = frozenset()
    cpu_s: dict[str, float] = field(default_factory=dict)
    device_s: dict[str, float] = field(default_factory=dict)
    step_s: dict[float, float] = field(default_factory=dict)
    host_speed: float | None = None
    _before: dict[int, Spent] = field(default_factory=dict)
    _overheads: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def look(self, told: Mapping[int, Spent], placing: Placing, places: Places, *, settled: bool = True) -> None:
        """Take in what has been spent since the last look, while the stages ran as `placing` says.

        Args:
            settled: they have done so all the time, so that nobody waited for them to begin.
        """
        since = [(self._before.get(rank), now) for rank, now in told.items()]
        self._before = dict(told)
        self._costs([each if before is None else _since(before, each) for before, each in since])
        spent = [_since(before, now) for before, now in since if before is not None]  # else its first step warms up
        if len(spent) == len(told) and all(each.step[0] for each in spent):
            self._step(spent, placing, places)
            if settled:
                self._overhead(spent, placing, places)

    @property
    def overhead_s(self) -> float:
        """What handing over a sample costs the CPUs beside its stages: the least seen lately, more than once."""
        return min(self._overheads) if len(self._overheads) >= BELIEVED else 0.0

    def costs(self) -> Costs | None:
        """None as long as some are not known."""
        movable = self.stages[self.first :]
        if not self.step_s or not {READ, *self.stages} <= {*self.cpu_s} or not {*movable} <= {*self.device_s}:
            return None
        step_s, interference = self._quiet_step()
        cpu_s = [self.cpu_s[READ] + self.overhead_s, *(self.cpu_s[name] for name in self.stages)]
        device_s = [None, *(self.device_s[n] if at >= self.first else None for at, n in enumerate(self.stages))]
        return Costs(cpu_s, device_s, step_s, interference)

    def _quiet_step(self) -> tuple[float, float]:
        """What a step takes where no core of the host prepares, and the interference: a rate that falls linearly with
        the share of busy cores, by the least and the most that were seen."""
        least, most = min(self.step_s), max(self.step_s)
        rate, rate_at_most = 1 / self.step_s[least], 1 / self.step_s[most]
        interference = INTERFERENCE
        if least < most:
            interference = (rate - rate_at_most) / max(rate * most - rate_at_most * least, 1e-9)
            interference = min(max(interference, 0.0), MOST_INTERFERENCE)
        return (1 - interference * least) / rate, interference

    def places(self, places: Places) -> Places:
        return replace(places, host_speed=self.host_speed or 1.0)

    def _costs(self, spent: Sequence[Spent]) -> None:
        for known, each in (
            (self.cpu_s, [one.cpu_stages for one in spent]),
            (self.device_s, [one.device_stages for one in spent]),
        ):
            for name in {name for amounts in each for name in amounts}:
                mean = _mean([amounts[name] for amounts in each if name in amounts])
                if mean is not None:
                    known[name] = _smoothed(known.get(name), mean)
        hosts, others = (self._by_stage(spent, of_hosts) for of_hosts in (True, False))
        both = [name for name in hosts if name in others]  # else who got the batches with more stages would seem slow
        if both and (taken := sum(hosts[name] for name in both)) > 0:
            self.host_speed = _smoothed(self.host_speed, sum(others[name] for name in both) / taken)

    def _by_stage(self, spent: Sequence[Spent], of_hosts: bool) -> dict[str, float]:
        """Seconds of a sample, of the training hosts' workers or of the others."""
        amounts: dict[str, list[Amount]] = {}
        for one in spent:
            for node, stages in one.nodes.items():
                for name, amount in stages.items() if (node in self.hosts) == of_hosts else ():
                    amounts.setdefault(name, []).append(amount)
        means = {name: _mean(each) for name, each in amounts.items()}
        return {name: mean for name, mean in means.items() if mean is not None}

    def _step(self, spent: Sequence[Spent], placing: Placing, places: Places) -> None:
        always = sum(seconds for name, seconds in self.device_s.items() if name not in self.stages)
        mean, busy = _mean([each.step for each in spent]), places.busy(placing.host_cores)
        if mean is not None and mean + always > 0:  # a GPU's are read late, and its stages' before them
            self.step_s[busy] = _smoothed(self.step_s.get(busy), mean + always)

    def _overhead(self, spent: Sequence[Spent], placing: Placing, places: Places) -> None:
        """Seen where nothing but the CPUs sets the pace."""
        names = [READ, *self.stages]
        if not {*names} <= {*self.cpu_s}:
            return
        waited = sum(each.wait_s for each in spent)
        staged = sum(seconds for each in spent for _, seconds in each.device_stages.values())
        total = waited + staged + sum(each.step[1] for each in spent)
        if waited < LIMITED_FROM * total:
            for at, seconds in enumerate(self._overheads):  # or one stall would be believed for ever
                self._overheads[at] = FORGOTTEN * seconds
            return
        wall_s = total / len(spent)  # every rank spends it at once
        taken_s = wall_s / sum(each.step[0] for each in spent) * self.places(places).cores(placing.host_cores)
        of_cut, of_other = (sum(self.cpu_s[name] for name in names[: cut + 1]) for cut in (placing.cut, placing.other))
        stages_s = (1 - placing.share) * of_cut + placing.share * of_other
        self._overheads.append(min(max(taken_s - stages_s, 0.0), MOST_OVERHEAD * stages_s))


def _since(before: Spent, now: Spent) -> Spent:
    """What was spent in between; of an attempt that began since, all."""
    if before.began_at != now.began_at:
        return now
    return Spent(
        now.began_at,
        now.wait_s - before.wait_s,
        _less(now.step, before.step),
        _each_less(now.device_stages, before.device_stages),
        _each_less(now.cpu_stages, before.cpu_stages),
        {node: _each_less(stages, before.nodes.get(node, {})) for node, stages in now.nodes.items()},
    )


def _each_less(now: Mapping[str, Amount], before: Mapping[str, Amount]) -> dict[str, Amount]:
    return {name: _less(amount, before.get(name, (0, 0.0))) for name, amount in now.items()}


def _less(now: Amount, before: Amount) -> Amount:
    return now[0] - before[0], now[1] - before[1]


def _mean(amounts: Sequence[Amount]) -> float | None:
    """Seconds of a sample."""
    samples = sum(each[0] for each in amounts)
    return sum(each[1] for each in amounts) / samples if samples else None


def _smoothed(before: float | None, now: float) -> float:
    """Half of what was known and half of what is new."""
    return now if before is None else (before + now) / 2
