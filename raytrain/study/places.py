"""Where a job's stages had best run on the hosts that it was measured on: from seconds of each on a core and on a
device, alone and beside the model. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from raytrain.cost.placing import LEAST_GAIN, Costs, Places, Placing, best, rate_of
from raytrain.cost.profile import Figure, StageCost


@dataclass(frozen=True)
class Seconds:
    """What a sample takes in a stage that may run on the device.

    Attributes:
        alone: of the device, with nothing else on it.
        beside: likewise, with the model's steps between batches.
        expected: as steps with all stages in them say: see `told_by_steps`.
    """

    alone: float
    beside: float
    expected: float

    @property
    def figure(self) -> Figure:
        every = (self.alone, self.beside, self.expected)
        return Figure(value=self.expected, low=min(every), high=max(every))


def told_by_steps(alone: Mapping[str, float], without: Sequence[float], with_them: Sequence[float]) -> float:
    """By how much the stages are dearer in a step than they are alone: 1 unless the steps say for certain that it is
    something else.

    Args:
        alone: seconds of a sample by stage, of all that the steps have.
        without, with_them: seconds of a sample in steps, several times.
    """
    sum_s = sum(alone.values())
    least, most = min(with_them) - max(without), max(with_them) - min(without)
    return max(min(max(sum_s, least), most), 0.0) / sum_s if sum_s and most > 0 else 1.0


@dataclass(frozen=True)
class Where:
    """
    Attributes:
        seconds: by name, of each stage that may run on the device.
        dearer: see told_by_steps.
        on_cpus: samples a second expected with all of them on CPUs.
        expected: with the best placement.
        on_device: of that, by stage the share of the batches for which it runs on the device; empty where they all
            stay on CPUs.
        device_share: of the device's time that goes into them.
        all_on_device: samples a second expected with all of them there.
        shared: the device is a CPU, and shares its cores with the workers.
    """

    seconds: Mapping[str, Seconds]
    dearer: float
    on_cpus: float
    expected: float
    on_device: Mapping[str, float] = field(default_factory=dict)
    device_share: float = 0.0
    all_on_device: float = 0.0
    shared: bool = False


def where(
    names: Sequence[str],
    costs: Costs,
    places: Places,
    seconds: Mapping[str, Seconds],
    *,
    dearer: float,
    efficiency: float,
    shared_rate: Callable[[float, float], float] | None = None,
) -> Where:
    """The best placement of some stages; one cut for all batches, and all on CPUs, unless another does LEAST_GAIN more.

    Args:
        names: of the stages of `costs`.
        efficiency: of the whole, as a share of what the parts admit.
        shared_rate: what cores admit that both prepare and train, from seconds of each for a sample; None where devices
            have none of them.
    """

    def at(cut: int) -> float:
        rate = rate_of(costs, places, cut, cut, 0.0, places.host_cores)
        return rate if shared_rate is None else min(rate, shared_rate(costs.on_cpu(cut), costs.on_device(cut)))

    cuts = costs.cuts
    last, cut = cuts[-1], max(cuts, key=lambda each: (at(each), each))
    found = Placing(cut, cut, 0.0, places.host_cores, at(cut))
    split = best(costs, places) if shared_rate is None else found
    if split.rate > found.rate * (1 + LEAST_GAIN):
        found = split
    if found.rate <= at(last) * (1 + LEAST_GAIN):
        found = Placing(last, last, 0.0, places.host_cores, at(last))
    low = found.other if found.share else found.cut
    on_device = {name: 1.0 if place >= found.cut else found.share for place, name in enumerate(names) if place >= low}
    taken = sum(share * (costs.device_s[names.index(name)] or 0.0) for name, share in on_device.items())
    return Where(
        seconds=seconds,
        dearer=dearer,
        on_cpus=efficiency * at(last),
        expected=efficiency * found.rate,
        on_device=on_device,
        device_share=taken / (costs.step_s + taken),
        all_on_device=efficiency * at(cuts[0]),
        shared=shared_rate is not None,
    )


def stage_costs(
    cpu_s: Mapping[str, float],
    total_s: float,
    gpu: str,
    seconds: Mapping[str, Seconds],
    wire_bytes: Mapping[str, float],
) -> tuple[StageCost, ...]:
    """For a profile: those that stay on CPUs, and then those that may move.

    Args:
        cpu_s: by stage, of a core for a sample.
        total_s: of a core for a sample.
        gpu: the device's name there.
        wire_bytes: by stage, of a sample where it is the first on the device.
    """
    whole = max(total_s, sum(cpu_s.values()))
    stay = [StageCost(name=name, cpu_share=s / whole) for name, s in cpu_s.items() if name not in seconds]
    move = [
        StageCost(
            name=name,
            cpu_share=cpu_s[name] / whole,
            device_s_per_sample={gpu: each.figure},
            wire_bytes_per_sample=Figure.once(wire_bytes[name]),
        )
        for name, each in seconds.items()
    ]
    return (*stay, *move)
