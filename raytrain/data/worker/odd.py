"""Single samples that come out unlike the others, or as no numbers, and the stage that is to blame.

Imported by every preprocessing worker: NumPy and nothing else.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from raytrain.data.made import Made
from raytrain.data.order import SampleRng
from raytrain.data.samples.collate import Collation, Encoded, Pad, Ragged
from raytrain.data.samples.fields import Sample
from raytrain.data.sources.manifest import Manifest
from raytrain.data.stages.stage import Stage
from raytrain.record.status import Failure

ODD_SHARE = 0.1  # of a batch, or one sample: where more differ, a stage or the data is not as the job says
Rules = Mapping[str, Collation | Encoded]
Steps = Iterator[tuple[Stage | None, Sample]]
"""A sample as it is read, and then what each stage makes of it."""


class OddOnes:
    """Of one producer: looks at each batch, and goes through the stages once more with what is odd."""

    def __init__(self, rng: SampleRng):
        self._rng = rng
        self._usual_nan: set[tuple[int, str]] = set()  # manifest and field: the source has them

    def leave_out(
        self,
        manifest: Manifest,
        stages: Sequence[Stage],
        made: Made,
        epochs: Sequence[int],
        ids: Sequence[int],
        *,
        rules: Rules | None,
        allow_nan: bool,
    ) -> None:
        """Samples that a stage is to blame for become failures, unless there are so many that they are no exceptions.

        Args:
            epochs, ids: by place.
            rules: what becomes of fields whose shape varies; None where nothing must agree yet.
            allow_nan: arrays may have numbers that are none.
        """

        def steps(place: int) -> Steps:
            return self._steps(manifest, stages, epochs[place], ids[place])

        odd = {} if rules is None else _unlike(made, rules, steps)
        for place, sample in zip(made.places, made.samples, strict=True) if not allow_nan else ():
            name = nan_in(sample)
            if name is None or place in odd or (id(manifest), name) in self._usual_nan:
                continue
            stage = next((stage for stage, behind in steps(place) if nan_in(behind) is not None), None)
            if stage is None:
                self._usual_nan.add((id(manifest), name))
            else:
                odd[place] = stage, f"field `{name}` is NaN in places behind `{stage.name}`"
        for place, (stage, reason) in odd.items():
            made.failures.append(Failure(ids[place], manifest.describe(ids[place]), reason, stage.name))
        if odd:
            kept = [number for number, place in enumerate(made.places) if place not in odd]
            made.samples = [made.samples[number] for number in kept]
            made.places, made.parts = ([each[number] for number in kept] for each in (made.places, made.parts))

    def _steps(self, manifest: Manifest, stages: Sequence[Stage], epoch: int, index: int) -> Steps:
        """As far as there is one sample."""
        [sample] = manifest.read_many([index], lambda _: self._rng.of(epoch, index, reading=True))
        rng = self._rng.of(epoch, index)
        for stage in (None, *stages):
            made = sample if stage is None else stage(sample, rng)
            if not isinstance(made, dict):
                return
            yield stage, made
            sample = made


def _unlike(made: Made, rules: Rules, steps: Callable[[int], Steps]) -> dict[int, tuple[Stage, str]]:
    """By place, the stage to blame and why."""
    looks = [look(sample, rules) for sample in made.samples]
    if not looks or looks.count(looks[0]) == len(looks):
        return {}
    usual, often = Counter(looks).most_common(1)[0]
    if len(looks) - often > max(ODD_SHARE * len(looks), 1) or 2 * often <= len(looks):
        return {}
    like = [look(sample, rules) for _, sample in steps(made.places[looks.index(usual)])]
    others = dict.fromkeys(made.places[number] for number, each in enumerate(looks) if each != usual)
    found = {place: _parted(steps(place), like, rules) for place in others}
    return {place: parted for place, parted in found.items() if parted is not None}


def _parted(steps: Steps, like: list[Any], rules: Rules) -> tuple[Stage, str] | None:
    """The stage behind which a sample was never like the other again, where it is one of the user's own."""
    found = None
    for (stage, sample), usual in zip(steps, like, strict=False):
        if (now := look(sample, rules)) == usual:
            found = None
        elif found is None:
            found = stage, dict(usual), dict(now)
    if found is None or found[0] is None or found[0].kinds:
        return None
    stage, before, now = found
    name = next(each for each in [*before, *now] if before.get(each) != now.get(each))
    told, most = _told(now.get(name)), _told(before.get(name))
    return stage, f"field `{name}` is {told} behind `{stage.name}`, and {most} of most samples"


def look(sample: Sample, rules: Rules) -> tuple[Any, ...]:
    """What must agree: by field its type, and its shape along the axes that may not vary."""
    return tuple((name, _of(value, rules.get(name))) for name, value in sample.items())


def _of(value: Any, rule: Collation | Encoded | None) -> Any:
    if isinstance(value, str | bytes):
        return type(value).__name__
    vary = rule.axes if isinstance(rule, Pad) else (0,) if isinstance(rule, Ragged) else ()
    return value.dtype.name, *(-1 if axis in vary else length for axis, length in enumerate(value.shape))


def _told(what: Any) -> str:
    if what is None or isinstance(what, str):
        return what or "not there"
    return f"({', '.join('?' if length < 0 else str(length) for length in what[1:])}) {what[0]}"


def nan_in(sample: Sample) -> str | None:
    """The first array that has numbers which are none; a single number may be missing on purpose."""
    for name, value in sample.items():
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim and _has_nan(value):
            return name
    return None


def _has_nan(array: np.ndarray) -> bool:
    """13 us of 224 x 224 x 3 float32. NumPy takes 370 us of float16, number by number; its bits say it in 22."""
    if array.dtype != np.float16:
        return bool(np.isnan(array).any())
    return bool((array.view(np.uint16) << 1 > 0xF800).any())
