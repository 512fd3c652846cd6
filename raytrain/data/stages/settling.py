"""Stages before anything starts: which fields each works on, what the samples are behind it, and which of them run on
the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from raytrain.data.samples.block import UNCUT
from raytrain.data.samples.fields import BYTES, IMAGE, Field, Kind, Schema
from raytrain.data.stages.drawing import BY_SIZE, canvas_behind, drawing
from raytrain.data.stages.draws import seed_draws
from raytrain.data.stages.encoded.ahead import looking_ahead
from raytrain.data.stages.stage import Stage
from raytrain.errors import ConfigError
from raytrain.record.status import DRAW, READ


@dataclass(frozen=True)
class DevicePart:
    """What of the stages may run on the device: those from the first cut on.

    Attributes:
        cuts: see Settled.
        names: of all stages that may run on CPUs.
    """

    stages: tuple[Stage, ...] = ()
    cuts: tuple[int, ...] = (0,)
    names: tuple[str, ...] = ()

    def at(self, cut: int = UNCUT) -> tuple[Stage, ...]:
        """Those that do."""
        return self.stages[(self.cuts[-1] if cut == UNCUT else cut) - self.cuts[0] :]

    def alike(self, names: Set[str]) -> int:
        """The cut behind which the most of these stages run, and no others."""
        return next((cut for cut in self.cuts if {stage.name for stage in self.at(cut)} <= names), self.cuts[-1])

    @property
    def decoded(self) -> dict[str, Kind]:
        """Fields that are, and what they become; they are whatever the cut, since no measurement moves `decode`."""
        each = (zip(stage.on or (), stage.on_kinds, strict=True) for stage in self.at() if stage.decodes)
        return {name: kind for of_stage in each for name, kind in of_stage}


@dataclass(frozen=True)
class Settled:
    """
    Attributes:
        stages: in order, each knowing its fields.
        cuts: how many of them may run on CPUs before the others run on the device, ascending; the last unless something
            else is asked for.
        schema: of the samples behind all.
    """

    stages: tuple[Stage, ...]
    cuts: tuple[int, ...]
    schema: Schema

    @property
    def cpu(self) -> tuple[Stage, ...]:
        return self.cpu_at(self.cuts[-1])

    @property
    def device(self) -> DevicePart:
        names = tuple(stage.name for stage in self.stages[: self.cuts[-1]])
        return DevicePart(self.stages[self.cuts[0] :], self.cuts, names)

    def cpu_at(self, cut: int) -> tuple[Stage, ...]:
        """What the workers run: with what they draw for random stages on the device."""
        behind = self.stages[cut:]
        draws = [drawing(behind)] if any(each.random for each in behind) else []
        here = [each if each.form is None else replace(each, form=None) for each in self.stages[:cut]]  # may want torch
        return (*looking_ahead(here), *draws)


def settle(stages: Sequence[Stage], schema: Schema, key: str, on_cpu: Iterable[str] = ()) -> Settled:
    """Stages that know their fields and have a name each, since seconds are kept by name.

    From the first that is to run on the device on, all do.

    Args:
        key: where they stand in the job, such as `data.stages`.
        on_cpu: fields that are no tensors of a batch, so that what works on them stays on the CPU unless it is to run
            on the device.

    Raises:
        ConfigError: one wants a field that there is not, or something else than it is; or it cannot run where it is to.
    """
    found: list[Stage] = []
    schemas = [schema]  # before each, and behind all
    seen: dict[str, int] = {READ: 1, DRAW: 1}
    for number, each in enumerate(stages, start=1):
        who = _who(key, number, each)
        if found and found[-1].scope == "batch" and each.scope != "batch":
            raise ConfigError(f"{who} works on one sample, and the one before it on a whole batch; put it before that")
        made, behind = settled(each, schemas[-1], who)
        seen[each.name] = seen.get(each.name, 0) + 1
        made = made if seen[each.name] == 1 else replace(made, name=f"{each.name}_{seen[each.name]}")
        found.append(made)
        schemas.append(behind)
    cut = next((number for number, each in enumerate(found) if each.place == "device"), len(found))
    _check_behind(cut, found, schemas, key)
    return Settled(tuple(found), _cuts(cut, found, schemas, key, {*on_cpu}), schemas[-1])


def _is_tensor(name: str, schema: Schema, last: Schema) -> bool:
    """Whether the values of a field are of one shape. Channels that nobody knows are the same for all samples unless
    stages make them so."""
    shape, behind = (each.get(name, Field()).shape for each in (schema, last))
    if shape is None or None in shape[:2]:
        return False
    return None not in shape or (behind is not None and None in behind[2:])


def _who(key: str, number: int, stage: Stage) -> str:
    return f"{key}: stage {number}, `{stage.name}`,"


def _check_behind(cut: int, stages: Sequence[Stage], schemas: Sequence[Schema], key: str) -> None:
    """
    Raises:
        ConfigError: one of the stages from the cut on cannot run on the device.
    """
    for at in range(cut, len(stages)):
        _check_on_device(stages[at], stages[cut:at], schemas[at], schemas[cut], _who(key, at + 1, stages[at]))
    _check_sizes(cut, stages, schemas, key)


def _check_sizes(cut: int, stages: Sequence[Stage], schemas: Sequence[Schema], key: str) -> None:
    """
    Raises:
        ConfigError: images that are decoded on the device do not come to one size, or something before that works on a
            whole batch of them.
    """
    ways = "`random_resized_crop`, `random_crop`, `center_crop`, or `resize` to [height, width]"
    vary: dict[str, None] = {}
    for at in range(cut, len(stages)):
        stage, on = stages[at], stages[at].on or ()
        met = next((name for name in on if name in vary), None)
        if met is not None and (stage.change is None or stage.draws is seed_draws):
            raise ConfigError(
                f"{_who(key, at + 1, stage)} works on a whole batch, and `decode` on the device leaves field `{met}` "
                f"in sizes that vary; put before it what gives one size: {ways}"
            )
        vary |= dict.fromkeys(on) if stage.decodes else {}
        vary = {each: None for each in vary if each not in on or not _is_tensor(each, schemas[at + 1], schemas[-1])}
    for name in vary:
        raise ConfigError(
            f"{key}: `decode` on the device leaves field `{name}` in sizes that vary, and no stage behind it gives one "
            f"size: {ways} (validation has the stages of training but for the random ones, unless you give its own)"
        )


def _cuts(most: int, stages: Sequence[Stage], schemas: Sequence[Schema], key: str, on_cpu: set[str]) -> tuple[int, ...]:
    """Down from the most stages that CPUs may run, as long as what measurement may move can be moved."""
    found = [most]
    for cut in range(most - 1, -1, -1):
        stage = stages[cut]
        names = {*(stage.on or ())}
        are_tensors = not on_cpu & names and all(_is_tensor(name, schemas[cut], schemas[-1]) for name in names)
        with_last = tuple(stages[max(cut - 1, 0) : cut + 1])
        if not (stage.may_move and are_tensors and looking_ahead(with_last) == with_last):
            break
        try:
            _check_behind(cut, stages, schemas, key)
        except ConfigError:
            break
        found.append(cut)
    return tuple(reversed(found))


def _check_on_device(stage: Stage, before: Sequence[Stage], schema: Schema, arrives: Schema, who: str) -> None:
    """
    Args:
        before: it, on the device.
        schema: of what it meets.
        arrives: of what the CPU stages make.

    Raises:
        ConfigError: it cannot run there.
    """
    if not stage.movable or (stage.decodes and stage.place != "device"):
        own = "" if stage.change else ", or write it for the device: a function of a batch's tensor"
        first = f"`{before[0].name}`, which runs on the device with all that comes then"
        raise ConfigError(f"{who} can run on the CPU alone; put it before {first}{own}")
    if stage.place == "cpu":
        raise ConfigError(f"{who} is to run on the CPU, and `{before[0].name}` before it on the device; put it before")
    for name, kind in zip(stage.on or (), stage.on_kinds, strict=True):
        what = schema.get(name, Field())
        if kind == "boxes":
            raise ConfigError(f"{who} cannot move boxes on the device; leave it and those behind it to the CPU")
        if stage.decodes and what.dtype not in ("", BYTES):
            raise ConfigError(f"{who} is to decode on the device, and field `{name}` is {what}; leave it out")
        if what.is_encoded and not stage.decodes:
            raise ConfigError(f"{who} needs decoded images, and field `{name}` is encoded; put `decode` before it")
        if not what.may_be_array and not stage.decodes:
            raise ConfigError(f"{who} runs on the device, on tensors, and field `{name}` is {what}")
        if stage.kinds and arrives.whole and name not in arrives:
            raise ConfigError(
                f"{who} is for images that the CPU stages make, and field `{name}` comes about on the device; only "
                "functions of your own can go on with it"
            )
    unknown = _size_unknown_since(before, stage.on or ()) if stage.draws in BY_SIZE else None
    if unknown is not None:
        raise ConfigError(
            f"{who} draws by the size of the image, which nobody knows behind `{unknown.name}`; put it before that"
        )


def _size_unknown_since(stages: Sequence[Stage], on: Sequence[str]) -> Stage | None:
    """The last stage behind which nobody knows the size of one of these fields, unless one after it makes it known."""
    since: dict[str, Stage] = {}
    for stage in stages:
        for name in stage.on or ():
            behind = canvas_behind(stage, name, None if name in since else (1, 1))
            since = {other: each for other, each in since.items() if other != name}
            since |= {} if behind else {name: stage}
    return next((since[name] for name in on if name in since), None)


def settled(stage: Stage, schema: Schema, who: str) -> tuple[Stage, Schema]:
    """With its fields known, and what the samples are behind it.

    Args:
        who: it is, for messages: `stage 3, `resize`,`.

    Raises:
        ConfigError: its fields are not there, or nothing that it can work on.
    """
    if stage.scope in ("sample", "batch"):
        return stage, _behind(stage, schema, ())
    on = stage.on or _found(stage, schema, who)
    schema.check_has(on, who)
    for name in on:
        _check_takes(stage, name, schema, who)
    kinds = tuple(_kind(stage, schema.get(name), name) for name in on)
    if stage.told & {"canvas", "kinds"} and set(kinds) == {"boxes"}:
        raise ConfigError(f"{who} needs an image or a mask beside boxes, which alone have no size")
    return replace(stage, on=on, on_kinds=kinds), _behind(stage, schema, on)


def _found(stage: Stage, schema: Schema, who: str) -> tuple[str, ...]:
    """The fields that it is for where nobody has said."""
    if stage.decodes:
        found = tuple(name for name, each in schema.items() if each.is_encoded)
        found = found or tuple(name for name, each in schema.items() if each.dtype == BYTES)
        found = found if found and (schema[found[0]].kind or len(found) == 1) else schema.of_kind("image")
    elif stage.kinds:  # what is still encoded as well, which is refused: no mask moves without its image
        found = tuple(n for n, f in schema.items() if f.kind in stage.kinds and (f.may_be_array or f.is_encoded))
    else:
        found = (IMAGE,) if IMAGE in schema else tuple(n for n, each in schema.items() if _may_be_meant(each))
        found = found if len(found) == 1 else ()
    if found:
        return found
    if IMAGE in schema or not schema.whole:
        return (IMAGE,)
    arrays = [n for n, each in schema.items() if each.may_be_array and (each.shape is None or len(each.shape) > 1)]
    if stage.kinds and len(arrays) == 1:
        return (arrays[0],)
    wants = f"wants field `{IMAGE}`" if stage.kinds else "does not know which field it is for"
    raise ConfigError(f"{who} {wants}; there are {schema.names}; say which with `on`")


def _check_takes(stage: Stage, name: str, schema: Schema, who: str) -> None:
    if stage.change is None or name not in schema or stage.decodes:  # one's own takes what it takes
        return
    what = schema[name]
    if what.is_encoded:
        raise ConfigError(f"{who} needs decoded images, and field `{name}` is encoded; put `decode` before it")
    if not what.may_be_array:
        raise ConfigError(f"{who} works on arrays, and field `{name}` is {what}")
    if stage.kinds and what.shape is not None and len(what.shape) < 2:
        raise ConfigError(f"{who} is for {', '.join(stage.kinds)}, and field `{name}` is {what}")


def _kind(stage: Stage, what: Field | None, name: str) -> Kind:
    if what is not None and what.kind:
        return what.kind
    return "image" if stage.kinds else ""


def _behind(stage: Stage, schema: Schema, on: tuple[str, ...]) -> Schema:
    if stage.keeps:
        return schema
    if stage.gives is not None:
        return stage.gives if stage.scope in ("sample", "batch") else schema.but(**stage.gives)
    if stage.scope in ("sample", "batch"):  # it may have kept any of them
        return Schema({name: Field(kind=each.kind) for name, each in schema.items()}, whole=False)
    changed = {}
    for name in on:
        before = schema.get(name, Field())
        kind = _kind(stage, before, name)
        changed[name] = stage.change(replace(before, kind=kind)) if stage.change else Field(kind=before.kind)
    after = schema.but(**changed)
    return after if stage.scope == "field" else replace(after, whole=False)


def _may_be_meant(what: Field) -> bool:
    """Whether a function of one array may be for such a field: not for a number."""
    return what.dtype != "" and what.shape != () or (what.dtype == "" and what.shape is None)
