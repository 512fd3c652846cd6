"""Samples a second of shapes of hosts, wherever the stages run: what accelerators, CPUs and networks admit, and the
placement with which they do most (see cost.placing, for one cluster). Pure; arrays over shapes.

A sample takes CPU seconds of the stages before the cut, and device seconds of those behind it beside the step's; what
goes from CPU hosts to ranks is as large as it is at the cut. Batches may have two cuts, so that CPUs and accelerators
are busy alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations

import numpy as np

from raytrain.cost.instances import InstanceType
from raytrain.cost.placing import LEAST_GAIN
from raytrain.cost.profile import Profile

LIMITS = ("accelerator", "CPUs", "network of the CPU hosts", "network of the GPU hosts")
LEAST_S = 1e-12  # of a CPU for a sample: no division by zero
TRIES = 4  # for a share; the first one is right unless hosts that wait for storage have CPUs of different speed
STEPS, ROUNDS = 8, 6  # of a search for a share: parts of what is left, each a quarter of the one before
Array = np.ndarray


@dataclass(frozen=True)
class Ladder:
    """Facts of some instance types as arrays, in one order.

    Attributes:
        workers: of one host, each on a vCPU of its own, memory permitting.
        cpu_s: of a vCPU for a sample, every stage on CPUs.
        gpus: of one host.
        step_s: of a GPU for a sample, every stage on CPUs; infinite without one.
        bytes_per_s: each way; infinite where the catalog does not know.
    """

    types: tuple[InstanceType, ...]
    usd_per_hour: Array
    workers: Array
    cpu_s: Array
    gpus: Array
    step_s: Array
    bytes_per_s: Array


@dataclass(frozen=True)
class Cut:
    """Some stages on CPUs, and those behind them on the device.

    Attributes:
        on_device: their names.
        cpu_share: of the CPU seconds with every stage on CPUs.
        device_s: by GPU, of a sample; infinite where nobody knows.
        wire_bytes: of a sample, from a CPU host to a rank.
    """

    on_device: tuple[str, ...]
    cpu_share: float
    device_s: tuple[float, ...]
    wire_bytes: float


def cuts_of(profile: Profile, gpus: Sequence[str]) -> tuple[Cut, ...]:
    """Every stage on CPUs, then one less and so on, as far as anybody knows what that costs on one of some GPUs."""
    found = [Cut((), 1.0, (0.0,) * len(gpus), profile.wire_bytes_per_sample.value)]
    for stage in reversed(profile.stages):
        if stage.wire_bytes_per_sample is None:  # it cannot
            break
        before = found[-1]
        own = [profile.device_s(stage, gpu) for gpu in gpus]
        device_s = tuple(s + (np.inf if o is None else o) for s, o in zip(before.device_s, own, strict=True))
        names, share = (stage.name, *before.on_device), max(before.cpu_share - stage.cpu_share, 0.0)
        found.append(Cut(names, share, device_s, stage.wire_bytes_per_sample.value))
    return tuple(cut for cut in found if np.isfinite(cut.device_s).any())


@dataclass(frozen=True)
class Load:
    """What a sample takes with some cut, float64 (num_shapes,)."""

    cpu_share: Array
    device_s: Array
    wire_bytes: Array

    @classmethod
    def at(cls, cut: Cut, gpu: Array) -> Load:
        """
        Args:
            gpu: (num_shapes,) numbers in the cut's device seconds.
        """
        own = np.asarray(cut.device_s)[gpu]
        return cls(np.full(len(gpu), cut.cpu_share), own, np.full(len(gpu), cut.wire_bytes))

    def mixed(self, other: Load, share: Array) -> Load:
        """On average, of so large a share of batches with another cut."""
        both = ((getattr(self, each.name), getattr(other, each.name)) for each in fields(self))
        return Load(*((1 - share) * mine + share * others for mine, others in both))

    def where(self, places: Array) -> Load:
        return Load(self.cpu_share[places], self.device_s[places], self.wire_bytes[places])


@dataclass(frozen=True)
class Admitted:
    """Samples a second, float64 (num_shapes,).

    Attributes:
        trained: by the accelerators.
        fed: by CPUs and networks.
        limit: int64, number in LIMITS.
    """

    trained: Array
    fed: Array
    limit: Array

    def where(self, places: Array) -> Admitted:
        return Admitted(self.trained[places], self.fed[places], self.limit[places])

    @property
    def rate(self) -> Array:
        return np.asarray(np.minimum(self.trained, self.fed))

    @property
    def gap(self) -> Array:
        """Seconds a sample by which the accelerators are faster."""
        return np.asarray(1 / self.fed - 1 / self.trained)


def admitted(profile: Profile, gpus: Ladder, cpus: Ladder, shapes: dict[str, Array], load: Load) -> Admitted:
    """
    Args:
        shapes: int64 arrays (num_shapes,): `gpu` and `gpu_hosts`, `first` and `first_hosts`, `second` and
            `second_hosts`: numbers of types in the two ladders, and hosts of each.
    """
    gpu, hosts = shapes["gpu"], shapes["gpu_hosts"]
    wire, read = load.wire_bytes, np.full(len(gpu), profile.read_bytes_per_sample.value)
    prepared, sent = np.zeros(len(gpu)), np.zeros(len(gpu))
    if len(cpus.types):
        for which, number in (("first", "first_hosts"), ("second", "second_hosts")):
            of_one = _prepared(profile, cpus, shapes[which], load)
            prepared += shapes[number] * of_one
            card = cpus.bytes_per_s[shapes[which]]  # two-way
            sent += shapes[number] * np.minimum(of_one, _per_s(card, np.maximum(wire, read)))
    trained = hosts * (gpus.gpus[gpu] / (gpus.step_s[gpu] + load.device_s))
    card = hosts * gpus.bytes_per_s[gpu]  # of all training hosts, inwards
    at_home = hosts * _prepared(profile, gpus, gpu, load)
    own = np.minimum(at_home, _per_s(card, read))
    with np.errstate(invalid="ignore"):  # infinite cards
        left = np.where(np.isinf(card), np.inf, np.maximum(card - own * read, 0.0))
    came = np.minimum(sent, _per_s(left, wire))
    by_network = np.where(came < sent, 3, np.where(sent < prepared, 2, np.where(own < at_home, 3, 1)))
    return Admitted(trained, own + came, np.where(own + came >= trained, 0, by_network))


def _prepared(profile: Profile, ladder: Ladder, which: Array, load: Load) -> Array:
    """By one host's CPUs: a worker computes, or waits for storage."""
    seconds = ladder.cpu_s[which] * load.cpu_share + profile.read_wait_s
    return np.asarray(ladder.workers[which] / np.maximum(seconds, LEAST_S))


def _per_s(bytes_per_s: Array, bytes_per_sample: Array) -> Array:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # none, or next to no bytes
        return np.where(bytes_per_sample > 0, bytes_per_s / bytes_per_sample, np.inf)


def placed(
    profile: Profile, gpus: Ladder, cpus: Ladder, shapes: dict[str, Array], cuts: Sequence[Cut]
) -> dict[str, Array]:
    """The placement with which each shape does most; every stage on CPUs unless another does LEAST_GAIN more, and one
    cut for all batches unless two do.

    Args:
        cuts: the first with every stage on CPUs.

    Returns:
        float64 `rate` in samples a second, `share` of the batches that have the cut `other` and not `cut`,
        `device_share` of the accelerators' time that goes into stages; int64 `limit`, `cut`, `other`: numbers.
    """
    loads = [Load.at(cut, shapes["gpu"]) for cut in cuts]
    each = [admitted(profile, gpus, cpus, shapes, load) for load in loads]
    plain = each[0]
    count = len(plain.rate)
    none = np.zeros(count, dtype=np.int64)
    best = {"rate": plain.rate, "limit": plain.limit, "cut": none, "other": none, "share": np.zeros(count)}
    best = {name: values.copy() for name, values in best.items()}
    everywhere = np.arange(count)
    for number in range(1, len(cuts)):
        _take(best, everywhere, each[number], number, number)
    simple = best["rate"] * (1 + LEAST_GAIN)
    for cut, other in combinations(range(len(cuts)), 2):
        short = (each[cut].fed < each[cut].trained) & (each[cut].fed > 0)
        even = short & (each[other].fed > each[other].trained) & (each[other].trained > 0)
        grows = short & (loads[other].wire_bytes > loads[cut].wire_bytes) & (each[other].trained > 0)
        for search, wanted in ((_even, even), (_searched, grows)):
            places = np.flatnonzero(wanted)
            if len(places):
                some = {name: values[places] for name, values in shapes.items()}
                both = (loads[cut].where(places), loads[other].where(places))
                share, split = search(profile, gpus, cpus, some, *both)
                _take(best, places, split, cut, other, share, simple[places])
    little = np.flatnonzero(best["rate"] <= plain.rate * (1 + LEAST_GAIN))
    _put(best, little, plain.where(little), 0, 0, np.zeros(len(little)))
    device_s = np.stack([load.device_s for load in loads])
    with np.errstate(invalid="ignore"):  # infinite where nobody knows, times none
        of_other = np.where(best["share"] > 0, best["share"] * device_s[best["other"], everywhere], 0.0)
    taken = (1 - best["share"]) * device_s[best["cut"], everywhere] + of_other
    return {**best, "device_share": taken / (gpus.step_s[shapes["gpu"]] + taken)}


def _take(
    best: dict[str, Array],
    places: Array,
    found: Admitted,
    cut: int,
    other: int,
    share: Array | None = None,
    least: Array | float = 0.0,
) -> None:
    """At some places, where it is better, and more than the least."""
    better = found.rate > np.maximum(best["rate"][places], least)
    share = np.zeros(len(places)) if share is None else share
    _put(best, places[better], found.where(better), cut, other, share[better])


def _put(best: dict[str, Array], places: Array, found: Admitted, cut: int, other: int, share: Array) -> None:
    best["rate"][places], best["limit"][places] = found.rate, found.limit
    best["cut"][places], best["other"][places], best["share"][places] = cut, other, share


def _even(
    profile: Profile, gpus: Ladder, cpus: Ladder, shapes: dict[str, Array], cut: Load, other: Load
) -> tuple[Array, Admitted]:
    """The share of `other` at which accelerators and what feeds them do equally much, and what that is: by false
    position, from where the accelerators wait with `cut` and are waited for with `other`."""
    low, high = np.zeros(len(cut.device_s)), np.ones(len(cut.device_s))
    at_low = admitted(profile, gpus, cpus, shapes, cut).gap
    at_high = admitted(profile, gpus, cpus, shapes, other).gap
    for _ in range(TRIES):
        share = np.clip(low + (high - low) * at_low / (at_low - at_high), low, high)
        found = admitted(profile, gpus, cpus, shapes, cut.mixed(other, share))
        below = found.gap > 0
        low, at_low = np.where(below, share, low), np.where(below, found.gap, at_low)
        high, at_high = np.where(below, high, share), np.where(below, at_high, found.gap)
    return share, found


def _searched(
    profile: Profile, gpus: Ladder, cpus: Ladder, shapes: dict[str, Array], cut: Load, other: Load
) -> tuple[Array, Admitted]:
    """The share of `other` with which most is done, and what that is, where `other` sends more: a little of it helps
    the CPUs and more hinders the networks, so that the best need be neither cut nor where accelerators are as fast."""
    middle, reach = np.full(len(cut.device_s), 0.5), 0.5

    def done(share: Array) -> Admitted:
        return admitted(profile, gpus, cpus, shapes, cut.mixed(other, share))

    for _ in range(ROUNDS):
        shares = np.clip(middle + reach * np.linspace(-1, 1, STEPS + 1)[:, None], 0.0, 1.0)
        rates = np.stack([done(share).rate for share in shares])
        middle = np.take_along_axis(shares, rates.argmax(axis=0)[None], axis=0)[0]
        reach *= 2 / STEPS
    return middle, done(middle)
