"""CPU stages: frozen values over plain functions, in NumPy and OpenCV.

A function gets one field of a sample, some of its fields, the whole sample, or a whole batch (see `stage`). Where it is
random, it has a parameter `rng`, a `numpy.random.Generator` seeded with (seed, epoch, sample id): whichever host
prepares the sample, and however often, it comes out the same. Nothing here imports torch; only `torchvision` stages do,
in the workers that run them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from raytrain.data.samples.fields import Field, Kind, Sample, Schema, field_of
from raytrain.data.samples.values import plain
from raytrain.data.stages.draws import seed_draws
from raytrain.data.stages.options import check_options, check_types, field_given
from raytrain.errors import ConfigError

Scope = Literal["field", "fields", "sample", "batch"]
Place = Literal["auto", "cpu", "device"]
Draws = Callable[..., Any]
"""Of a generator, the canvas and the stage's options: a few numbers, as many for every sample (see `draws`)."""
On = str | Sequence[str] | None
Change = Callable[[Field], Field]

WHOLE = "*"  # all fields
DRAWN = ".drawn/"  # before a stage's name: the field with what was drawn for it, where it runs on the device
DECODED_FROM = ".decoded_from"  # behind a field's name: (height, width) of an image that was decoded smaller
WHERE = ".where"  # the field with the samples' descriptions, for messages, where they are decoded on the device
FEWER_PIXELS = "put it after the crop or the resize, where there are fewer pixels"
STORE_SMALLER = "store the images nearer to the size that you train on"
SAMPLES = "expected a dict of all fields, a list of such, or None to leave the sample out"
CALLED_WITH = {
    "field": "one array",
    "fields": "a dict of fields",
    "sample": "a dict of all fields",
    "batch": "a dict of all fields of a batch",
}


class StageFailed(Exception):
    """On one sample: `error`, in `stage`, or in the reading or decoding where that is None."""

    def __init__(self, error: Exception, stage: str | None):
        super().__init__(error)
        self.error, self.stage = error, stage


@dataclass(frozen=True)
class Stage:
    """One step of the preprocessing.

    Attributes:
        name: in tables and the record.
        function: called with what `scope` says, with `rng=` when `random`, and with `options`.
        random: whether it draws from `rng`.
        options: keyword arguments of `function`.
        scope: one `field` after the other, all `fields` of `on` as a dict, the `sample`, or the `batch`.
        on: names of fields; None until a pipeline knows its source (`settled`).
        kinds: that it is for. Empty where it takes any value.
        change: what becomes of such a field, where that is known.
        gives: the fields that come out, instead, where its maker said so.
        keeps: the function says whether the sample goes on, and changes nothing.
        decodes: it takes encoded bytes.
        helps: where it takes much of the time, what to do; empty where only its author knows.
        place: where it runs; with `auto`, on the CPU unless one before it runs on the device.
        movable: it can run on the device.
        draws: what it draws there, if it is random.
        form: its function on the device, where that is one of the user's own beside the CPU's.
        told: which of `kind` (of `fields`: `kinds`, by name) and `canvas`, (height, width) of an image or mask, for
            boxes that of the first of these, its function is called with too.
    """

    name: str
    function: Callable[..., Any]
    random: bool = False
    options: dict[str, Any] = field(default_factory=dict, hash=False)
    scope: Scope = "field"
    on: tuple[str, ...] | None = None
    kinds: tuple[Kind, ...] = ()
    change: Change | None = field(default=None, compare=False)
    gives: Schema | None = None
    keeps: bool = False
    decodes: bool = False
    helps: str = ""
    told: frozenset[str] = frozenset()
    on_kinds: tuple[Kind, ...] = ()  # of the fields `on`, once settled
    place: Place = "auto"
    movable: bool = False
    draws: Draws | None = None
    form: Callable[..., Any] | None = None

    @property
    def may_move(self) -> bool:
        """To the device and back as measurement says: what comes of it is the same within a rounding. (Torchvision's
        draw pixel by pixel from a generator of the device's own, and a GPU's decoder gives pixels of its own.)"""
        return self.movable and self.place == "auto" and self.draws is not seed_draws and not self.decodes

    # --- in a worker ---

    def __call__(self, sample: Sample, rng: np.random.Generator | None) -> Sample | list[Sample] | None:
        """A sample again, several, or None where it is not wanted; `sample` may have been changed.

        Raises:
            ConfigError: it has no such field.
            Exception: whatever the function raises, or TypeError if it returns what no field can be.
        """
        options = {**self.options, "rng": rng} if self.random else self.options
        if self.keeps:
            return sample if self.function(self._asked(sample), **options) else None
        if self.scope == "field":
            return self._each(sample, rng, options)
        if "kinds" in self.told:
            options = {**options, "kinds": dict(zip(self.on or (), self.on_kinds, strict=True))}
        result = self.function(self._asked(sample), **options)
        if self.scope == "sample":
            return self._whole(result)
        if result is None:
            return None
        if not isinstance(result, Mapping):
            raise TypeError(f"it returned {type(result).__name__}, expected a dict of fields, or None to leave it out")
        sample.update({name: self._plain(value, name) for name, value in result.items()})
        return sample

    def on_batch(self, samples: list[Sample], rng: np.random.Generator | None) -> list[Sample]:
        """All samples of a batch at once.

        Raises:
            TypeError: what comes back is not as many samples.
        """
        fields: dict[str, Any] = {}
        for name in samples[0]:
            values = [sample[name] for sample in samples]
            kinds = {(np.shape(value), getattr(value, "dtype", None)) for value in values}
            alike = not isinstance(values[0], str | bytes) and len(kinds) == 1
            fields[name] = np.stack(values) if alike else values
        result = self.function(fields, **({**self.options, "rng": rng} if self.random else self.options))
        if not isinstance(result, Mapping):
            raise TypeError(f"it returned {type(result).__name__}, expected a dict of fields")
        for name, values in result.items():
            if len(values) != len(samples):
                raise TypeError(f"it returned {len(values)} values of field `{name}` for {len(samples)} samples")
        return [
            {name: self._plain(values[place], name) for name, values in result.items()} for place in range(len(samples))
        ]

    def _asked(self, sample: Sample) -> Any:
        """What the function is called with, of one field or more."""
        if self.scope == "sample":
            return sample
        fields = {name: self._of(sample, name) for name in self.on or ()}
        return next(iter(fields.values())) if self.scope == "field" else fields

    def _each(self, sample: Sample, rng: np.random.Generator | None, options: dict[str, Any]) -> Sample:
        names = self.on or ()
        canvases = self._canvases(sample) if "canvas" in self.told else None
        state = rng.bit_generator.state if self.random and rng is not None and len(names) > 1 else None
        for number, name in enumerate(names):
            if number and state is not None and rng is not None:
                rng.bit_generator.state = state  # the same numbers for each
            if "kind" in self.told:
                options = {**options, "kind": self.on_kinds[number]}
            if canvases is not None:
                options["canvas"] = canvases[number]
            result = self.function(self._of(sample, name), **options)
            sample[name] = result if type(result) is np.ndarray else self._plain(result, name)
        return sample

    def _canvases(self, sample: Sample) -> list[tuple[int, int]]:
        """Of each of its fields; boxes have the first of the others'."""
        found: list[tuple[int, int] | None] = []
        for name, kind in zip(self.on or (), self.on_kinds, strict=True):
            shape = sample.pop(name + DECODED_FROM, None)
            if shape is not None:
                found.append((int(shape[0]), int(shape[1])))
                continue
            shape = np.shape(self._of(sample, name))
            if kind != "boxes" and len(shape) < 2:
                raise TypeError(f"field `{name}` has the shape {shape}, expected (height, width, channels)")
            found.append(None if kind == "boxes" else (shape[0], shape[1]))
        if self.random and len({each for each in found if each is not None}) > 1:
            each = zip(self.on or (), found, strict=True)
            told = ", ".join(f"`{name}` {size[0]} x {size[1]}" for name, size in each if size is not None)
            raise ValueError(f"fields of one sample must have one size to be cut alike: {told}")
        first = next(each for each in found if each is not None)
        return [each or first for each in found]

    def _of(self, sample: Sample, name: str) -> Any:
        if name not in sample:
            Schema({each: field_of(value) for each, value in sample.items()}).check_has([name], f"stage `{self.name}`")
        return sample[name]

    def _plain(self, value: Any, name: str) -> Any:
        if value is None:
            raise TypeError(f"it returned nothing for field `{name}`")
        return plain(value, f"field `{name}` behind `{self.name}`")

    def _whole(self, result: Any) -> Sample | list[Sample] | None:
        if result is None:
            return None
        if isinstance(result, Mapping):
            return {name: self._plain(value, name) for name, value in result.items()}
        if isinstance(result, Iterable) and not isinstance(result, str | bytes | np.ndarray):
            return self._several(result)
        raise TypeError(f"it returned {type(result).__name__}, {SAMPLES}")

    def _several(self, results: Iterable[Any]) -> list[Sample]:
        """Samples that share no memory: a generator may fill the same for each, and stages may change what they get."""
        lazy, seen = not isinstance(results, list | tuple), set()
        found: list[Sample] = []
        for each in results:
            if not isinstance(each, Mapping):
                raise TypeError(f"it returned {type(results).__name__}, {SAMPLES}")
            sample = {name: self._plain(value, name) for name, value in each.items()}
            for name, value in sample.items():
                if isinstance(value, np.ndarray):
                    is_shared = lazy or not value.flags.owndata or id(value) in seen
                    sample[name] = value.copy() if is_shared else value
                    seen.add(id(sample[name]))
            found.append(sample)
        return found


def stage(
    function: Callable[..., Any],
    *,
    on: On = None,
    whole_batch: bool = False,
    gives: Mapping[str, Field] | None = None,
    device: Callable[..., Any] | None = None,
    name: str | None = None,
    **options: Any,
) -> Stage:
    """A stage of your own: a function, random when it has a parameter `rng`, a `numpy.random.Generator` that is seeded
    by sample.

    Args:
        function: called with one of the following, and with `options`.
        on: what it is called with. The name of a field: its value, and it returns the new one. A list of names: a dict
            of these, and it returns a dict of what is new, or None to leave the sample out. `"*"`: a dict of all, and
            it returns the dict that goes on, None, or a list of dicts, each a sample. Without: the field `image`, or
            the only one that is an array.
        whole_batch: it is called with a dict of all fields of a batch, each an array (samples, ...) where the shapes
            and types agree, else a list, and returns the like.
        gives: the fields that it returns, each a Field or a dict of its dtype, shape and kind, where a later stage
            should be checked against them before anything starts.
        device: what gives the same on the device, of the tensors of a whole batch (see `on_device`), where the function
            is not random. Then the stage runs where it is cheapest, as far as the shapes of what it works on are known.
        name: in tables and the record; by default the function's.
        options: keyword arguments of the function, and of `device`.

    Raises:
        ConfigError: `options` do not fit the function's signature; or `device` is for something else.
    """
    made = made_of(function, on, whole_batch, gives, name, options, "rng")
    if device is None:
        return made
    if made.random or made.scope not in ("field", "fields"):
        raise ConfigError(
            f"stage {made.name!r}: `device` is for a function that is not random, of a field or a list of fields; a "
            "random one can run on the device alone, with `place: device` and a parameter `seeds`"
        )
    made_of(device, on, False, None, f"{made.name}, device", options, "")
    return replace(made, form=device, movable=True)


def made_of(
    function: Callable[..., Any],
    on: On,
    whole_batch: bool,
    gives: Mapping[str, Field] | None,
    name: str | None,
    options: dict[str, Any],
    draws_by: str,
) -> Stage:
    """
    Args:
        draws_by: the parameter that a random function has.

    Raises:
        ConfigError: `options` do not fit the function's signature.
    """
    label = name or str(getattr(function, "__name__", type(function).__name__))
    scope = _scope(label, on, whole_batch)
    made = Stage(
        label,
        function,
        options=options,
        scope=scope,
        on=on_names(on, label) if scope in ("field", "fields") else None,
        gives=None if gives is None else Schema({of: field_given(label, of, what) for of, what in gives.items()}),
    )
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return made
    except TypeError as error:
        raise ConfigError(f"stage {label!r}: {error}") from None
    random = draws_by in parameters
    check_options(f"stage {label!r}", [each for each in parameters.values() if each.name != draws_by][1:], options)
    try:
        inspect.signature(function).bind(None, **({draws_by: None} if random else {}), **options)
    except TypeError as error:
        raise ConfigError(f"stage {label!r} is called with {CALLED_WITH[scope]} and its options: {error}") from None
    return replace(made, random=random)


def built_in(
    function: Callable[..., Any],
    name: str,
    on: On,
    *,
    kinds: tuple[Kind, ...],
    change: Change,
    decodes: bool = False,
    helps: str = FEWER_PIXELS,
    draws: Draws | None = None,
    movable: bool = False,
    **options: Any,
) -> Stage:
    """One of ours, on each of its fields alike.

    Args:
        movable: it has a form for the device (see device.forms).

    Raises:
        ConfigError: an option is of another type.
    """
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    check_types(name, function, options)
    parameters = inspect.signature(function).parameters
    return Stage(
        name,
        function,
        "rng" in parameters,
        options,
        on=on_names(on, name),
        kinds=kinds,
        change=change,
        decodes=decodes,
        helps=helps,
        told=frozenset({"kind", "canvas"} & set(parameters)),
        movable=movable,
        draws=draws,
    )


def on_names(on: On, label: str, what: str = "a field or a list of fields") -> tuple[str, ...] | None:
    """
    Raises:
        ConfigError: it names no fields.
    """
    if on is None:
        return None
    names = (on,) if isinstance(on, str) else on
    if not isinstance(names, Sequence) or not names or not all(isinstance(n, str) and n != WHOLE for n in names):
        raise ConfigError(f"stage {label!r}: `on` is {what} (given: {on!r})")
    return tuple(names)


def _scope(label: str, on: On, whole_batch: bool) -> Scope:
    if whole_batch:
        if on is not None:
            raise ConfigError(f"stage {label!r}: a stage of a whole batch gets all fields; leave `on` out")
        return "batch"
    if on == WHOLE:
        return "sample"
    on_names(on, label, 'a field, a list of fields, or "*"')
    return "field" if on is None or isinstance(on, str) else "fields"


def keep_if(condition: Callable[..., Any], *, on: On = WHOLE, **options: Any) -> Stage:
    """Leave out the samples of which `condition` is not true; they are counted, and consumed once like any other.

    Args:
        condition: a function that tells; random when it has a parameter `rng`.
        on: what it is called with, as of `stage`; a dict of all fields by default.
        options: keyword arguments of the function, or `name`.
    """
    return replace(stage(condition, on=on, **options), keeps=True)
