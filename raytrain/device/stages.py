"""Stages on the device: what the ranks do to a whole batch, after the workers have done their part."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from raytrain.data.order import Split
from raytrain.data.samples.block import UNCUT
from raytrain.data.stages.drawing import Drawing
from raytrain.data.stages.mixing import MIXING
from raytrain.data.stages.settling import DevicePart
from raytrain.data.stages.stage import DRAWN, Stage
from raytrain.data.stages.torchvision import apply_named, apply_transform, call_transform, named_transform
from raytrain.device.clock import StageTimer
from raytrain.device.forms import FORMS, form_of_many
from raytrain.device.forms.tensors import stacked
from raytrain.errors import DataError, RaytrainError, named

Fields = dict[str, Any]
Drawn = Mapping[str, np.ndarray]
"""By `DRAWN` and the name of a stage, a row a sample."""


class DeviceStages:
    """
    Args:
        parts: of each split, those that may run here.
    """

    def __init__(self, parts: Mapping[Split, DevicePart], timer: StageTimer, device: torch.device):
        self._parts, self._timer, self._device = parts, timer, device
        self._on_host: set[str] = set()  # stages that may be anywhere and failed on the device

    def run(self, split: Split, fields: Fields, drawn: Drawn, about: str, cut: int = UNCUT) -> Fields:
        """
        Args:
            fields: (samples, ...) as they were sent, or decoded (see decoding.Decoded); nothing is changed in place.
            drawn: without those of a stage, numbers of its own take their place: for a stand-in.
            about: the batch, for messages.
            cut: how many of the stages have run on CPUs.

        Raises:
            DataError: a stage failed, or returned something else than so many samples.
        """
        stages = [stage for stage in self._parts.get(split, DevicePart()).at(cut) if not stage.decodes]  # are decoded
        if not stages:
            return dict(fields)
        with torch.no_grad(), torch.autocast(self._device.type, enabled=False):  # the loop's own is for its model
            return self._run(split, stages, fields, drawn, about)

    def _run(self, split: Split, stages: Sequence[Stage], fields: Fields, drawn: Drawn, about: str) -> Fields:
        """In halves where the whole does not fit into the device's memory, and each stage works sample by sample."""
        try:
            return self._run_at_once(split, stages, dict(fields), drawn, about)
        except torch.OutOfMemoryError as error:
            names = {name for stage in stages for name in stage.on or () if name in fields}
            samples = min(len(fields[name]) for name in names)
            if samples < 2 or not all(_is_by_sample(each) for each in stages):
                raise DataError(f"the stages on the device need more memory than it has, on {about}: {error}") from None
        half = samples // 2
        parts = [
            self._run(
                split,
                stages,
                {name: value[part] if name in names else value for name, value in fields.items()},
                {name: value[part] for name, value in drawn.items()},
                about,
            )
            for part in (slice(half), slice(half, None))
        ]
        made = [name for name in parts[0] if parts[0][name] is not fields.get(name)]
        return {**fields, **{name: _joined([part[name] for part in parts]) for name in made}}

    def _run_at_once(self, split: Split, stages: Sequence[Stage], made: Fields, drawn: Drawn, about: str) -> Fields:
        for stage in stages:
            with self._timer.timing(split, stage.name, _samples(stage, made)):
                try:
                    numbers = drawn.get(DRAWN + stage.name)
                    if numbers is None and stage.random:
                        numbers = _own_numbers(stage, made)
                    changed = self._somewhere(stage, made, numbers)
                except (RaytrainError, torch.OutOfMemoryError):
                    raise
                except Exception as error:  # noqa: BLE001 - a user's stage may raise anything
                    told = f"{named(error)[:300]}{_where(error)}"
                    raise DataError(f"the stage `{stage.name}` failed on the device, on {about}: {told}") from None
            _check(stage, changed, made, about)
            made |= changed
        return made

    def _somewhere(self, stage: Stage, fields: Fields, drawn: np.ndarray | None) -> Fields:
        """On the device; one that nobody has put there, on the host where that fails: slowly, and placed elsewhere as
        soon as that is measured."""
        if not stage.may_move:
            return _changed(stage, fields, drawn)
        try:
            if stage.name not in self._on_host:
                return _changed(stage, fields, drawn)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a device cannot do
            self._on_host.add(stage.name)
            told = f"the stage `{stage.name}` failed on the device and runs on the rank's CPU there"
            logging.getLogger("raytrain").warning(f"{told}: {named(error)[:300]}")
        on_host = {name: _sent(fields[name], torch.device("cpu")) for name in stage.on or ()}
        made = _changed(stage, on_host, drawn) if stage.form is None else _by_its_cpu_function(stage, on_host)
        return {name: _sent(value, self._device) for name, value in made.items()}


def _sent(value: Any, device: torch.device) -> Any:
    return [each.to(device) for each in value] if isinstance(value, list) else value.to(device)


def _joined(parts: list[Any]) -> Any:
    return stacked([each for part in parts for each in part]) if list in map(type, parts) else torch.cat(parts)


def _where(error: Exception) -> str:
    """The line that raised it; nothing where it was none of a function's own."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return "" if frame.filename == __file__ else f" ({frame.filename}:{frame.lineno})"


def _check(stage: Stage, changed: Fields, before: Fields, about: str) -> None:
    """
    Raises:
        DataError: something else came back than a tensor of as many samples.
    """
    length = _samples(stage, before)
    for name, value in changed.items():
        if isinstance(value, list) and stage.function in FORMS:
            continue
        if not isinstance(value, torch.Tensor):
            hint = "; is its `return` missing?" if value is None else ""
            told = f"returned {'nothing' if value is None else type(value).__name__} for field `{name}`"
            raise DataError(f"the stage `{stage.name}` {told}, on {about}, expected a tensor{hint}")
        if value.ndim == 0 or len(value) != length:
            count = len(value) if value.ndim else "a number"
            raise DataError(
                f"the stage `{stage.name}` returned {count} for the {length} samples of field `{name}`, on {about}; on "
                "the device a batch keeps its length: leave samples out on the CPU"
            )


def _is_by_sample(stage: Stage) -> bool:
    """Not a function of the user's, which may do what it likes with a batch, and none that mixes one."""
    return bool(stage.change or stage.form) and stage.draws not in MIXING


def _samples(stage: Stage, fields: Fields) -> int:
    first = fields.get((stage.on or ("",))[0])
    return 0 if first is None else len(first)


def _own_numbers(stage: Stage, fields: Fields) -> np.ndarray:
    shapes = {name: fields[name].shape[1:] for name in stage.on or () if isinstance(fields[name], torch.Tensor)}
    [numbers] = Drawing.of([stage]).drawn(shapes, np.random.default_rng(0)).values()
    return numbers[None]


def _changed(stage: Stage, fields: Fields, drawn: np.ndarray | None) -> Fields:
    """The fields that a stage works on, behind it."""
    names = stage.on or ()
    if stage.function in (apply_named, apply_transform):
        return _by_torchvision(stage, {name: fields[name] for name in names}, drawn)
    form = FORMS.get(stage.function)
    if form is not None:
        each = zip(names, stage.on_kinds, strict=True)
        return {
            name: form(fields[name], drawn, kind, **stage.options)
            if isinstance(fields[name], torch.Tensor)
            else form_of_many(stage.function, fields[name], drawn, kind, stage.options)
            for name, kind in each
        }
    function = stage.form or stage.function
    seeds = {"seeds": torch.from_numpy(drawn.copy())} if drawn is not None else {}
    of_kinds = zip(names, stage.on_kinds, strict=True)
    images = {name for name, kind in of_kinds if kind == "image" and fields[name].ndim == 4}
    given = {name: _channels_first(fields[name]) if name in images else fields[name] for name in names}
    tensors = {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}
    versions = {name: value._version for name, value in tensors.items()}  # counts what has been written to it
    if stage.scope == "field":
        made = {name: function(value, **seeds, **stage.options) for name, value in given.items()}
    else:
        made = function(given, **seeds, **stage.options)
    if written := [name for name, value in tensors.items() if value._version != versions[name]]:
        raise TypeError(f"it changed field `{written[0]}` in place, which is not its own; let it work on a clone()")
    if not isinstance(made, Mapping):
        raise TypeError(f"it returned {type(made).__name__}, expected a dict of fields")
    turned = {name for name in images & {*made} if isinstance(made[name], torch.Tensor) and made[name].ndim == 4}
    return {name: _channels_last(value) if name in turned else value for name, value in made.items()}


def _by_its_cpu_function(stage: Stage, fields: Fields) -> Fields:
    """Sample by sample, as a worker would."""
    arrays = {name: value.numpy() for name, value in fields.items()}
    places = range(_samples(stage, fields))
    samples = [{name: value[place].copy() for name, value in arrays.items()} for place in places]
    made = [stage(sample, None) for sample in samples]
    return {name: torch.from_numpy(np.stack([each[name] for each in made])) for name in made[0]}  # type: ignore[index]


def _by_torchvision(stage: Stage, fields: Fields, seeds: np.ndarray | None) -> Fields:
    """Of one that draws, sample by sample, as each has a seed of its own; else the batch at once."""
    transform = named_transform(stage.options["transform"], stage.options.get("arguments"))
    kinds = dict(zip(stage.on or (), stage.on_kinds, strict=True))
    if seeds is not None:  # noise falls on pixels in their order in memory, which is to be a decoded image's
        fields = {name: value.contiguous() for name, value in fields.items()}
    tensors = {name: _tv_tensor(value, kinds[name]) for name, value in fields.items()}
    if seeds is None:
        made = call_transform(transform, tensors)
    else:
        parts = []
        with torch.random.fork_rng(_cuda_devices(fields)):
            for place, seed in enumerate(seeds.tolist()):
                torch.manual_seed(seed)
                one = {name: _tv_tensor_of(value[place], kinds[name]) for name, value in tensors.items()}
                parts.append(call_transform(transform, one))
        made = {name: torch.stack([part[name].as_subclass(torch.Tensor) for part in parts]) for name in fields}
    return {name: _from_tv(made[name].as_subclass(torch.Tensor), kinds[name]) for name in fields}


def _tv_tensor(value: torch.Tensor, kind: str) -> Any:
    return _tv_tensor_of(_channels_first(value) if value.ndim == 4 else value, kind)


def _tv_tensor_of(value: torch.Tensor, kind: str) -> Any:
    from torchvision import tv_tensors

    return (tv_tensors.Mask if kind == "mask" else tv_tensors.Image)(value)


def _from_tv(value: torch.Tensor, kind: str) -> torch.Tensor:
    return _channels_last(value) if value.ndim == 4 else value


def _cuda_devices(fields: Fields) -> list[torch.device]:
    return list({value.device for value in fields.values() if value.device.type == "cuda"})


def _channels_first(value: torch.Tensor) -> torch.Tensor:
    return value.permute(0, 3, 1, 2)


def _channels_last(value: torch.Tensor) -> torch.Tensor:
    return value.permute(0, 2, 3, 1)
