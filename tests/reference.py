"""The tables of docs/reference.md that are read from the code: keys of a job file, sources, stages.

python tests/reference.py            # those of today
python tests/reference.py --write    # ... into docs/reference.md
"""

from __future__ import annotations

import argparse
import inspect
import os
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from raytrain import Job, PredictionJob, data
from raytrain.config import data as sections
from raytrain.config.data import HeldOut, OwnSource, Padded, StageSpec
from raytrain.config.section import ObjectPath, Section
from raytrain.data.samples.fields import Field
from raytrain.data.sources import registry
from raytrain.data.stages.registry import STAGES

PAGE = Path(__file__).parent.parent / "docs" / "reference.md"
BLOCK = re.compile(r"(<!-- (\w+), by tests/reference.py -->\n).*?(?=<!-- /\2 -->)", re.DOTALL)

COLLATIONS = ("padded", "ragged")
OF_OWN = ("stage", "keep_if", "on_device", "on_cpu", "Field")  # for stages of one's own
SOURCES = [*sorted(registry.SOURCES), "held_out"]
SECTIONS: dict[str, type[Section]] = {  # whose keys the arguments of a function are
    **sections.SOURCES,
    "held_out": HeldOut,
    "padded": Padded,
}
ON_ITS_OWN = (*sections.SOURCES.values(), HeldOut, OwnSource)  # sections with a table of their own
MADE_WITH = {"dtype": "uint8", "transform": "Resize"}  # a stage, to see what it is; other options are 3
MARKED = {get_args(ObjectPath)[1]: "`package.module:name`", get_args(StageSpec)[1]: "[stage](#stages)"}
PLAIN = {int: "whole number", float: "number", bool: "true or false", str: "text", Field: "`Field`", Any: "anything"}
REQUIRED = object()
EMPTY = inspect.Parameter.empty


@dataclass(frozen=True)
class Setting:
    """A key of a section or a parameter of a function.

    Attributes:
        default: REQUIRED where there is none.
    """

    name: str
    kind: str
    default: Any
    text: str


# --- what a type is called ----------------------------------------------------------------------------------------


def words(kind: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in a reader's words; null is told by the default."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        marks = [mark for each in inside[1:] for mark in getattr(each, "metadata", [each])]
        return words(inside[0], [*marks, *metadata])
    for mark in metadata:
        if mark in MARKED:
            return MARKED[mark]
    if isinstance(kind, type) and issubclass(kind, Section):
        return "section"
    if origin in (Union, types.UnionType):
        return _one_of([each for each in inside if each is not types.NoneType], metadata)
    if origin is Literal:
        return _either([f"`{each}`" for each in inside if each != ""])
    if origin is tuple and inside[-1] is not ...:
        return f"list of {len(inside)} {_several(words(inside[0]))}"
    if origin in (tuple, Sequence):
        return f"list of {_several(words(inside[0]))}"
    if origin in (dict, Mapping):
        return "mapping" if inside[1] is Any else f"{_several(words(inside[1]))} by name"
    if origin is os.PathLike or kind is os.PathLike:
        return "path"
    if origin is Callable:
        return "function"
    plain = PLAIN.get(kind) or f"`{getattr(kind, '__name__', kind)}`"
    return plain + _bounds(kind, metadata)


def _one_of(kinds: Sequence[Any], metadata: Sequence[Any]) -> str:
    if all(isinstance(each, type) and issubclass(each, Section) for each in map(_bare, kinds)):
        return "[source](#sources)" if set(map(_bare, kinds)) & {*ON_ITS_OWN} else "section"
    if any(get_origin(each) is os.PathLike for each in kinds):
        kinds = [each for each in kinds if each is not str]
    return _either([*dict.fromkeys(words(each, metadata) for each in kinds)])


def _either(names: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _bare(kind: Any) -> Any:
    """Without marks; of a union, its first."""
    while get_origin(kind) in (Annotated, Union, types.UnionType):
        kind = get_args(kind)[0]
    return kind


def _several(word: str) -> str:
    return re.sub(r"\b(number|path|section|stage|list)\b", r"\1s", word, count=1)


def _bounds(kind: Any, metadata: Sequence[Any]) -> str:
    least = next((each for each in metadata if isinstance(each, Ge | Gt)), None)
    most = next((each for each in metadata if isinstance(each, Le | Lt)), None)
    said = ""
    if isinstance(least, Ge):
        said = f" from {least.ge:,}"
    elif least is not None:
        said = " from 1" if kind is int and least.gt == 0 else f" above {least.gt:,}"
    if most is not None:
        said += f" to {most.le:,}" if isinstance(most, Le) else f" below {most.lt:,}"
    return re.sub(r"\.0\b", "", said)


def told(value: Any) -> str:
    """A default, as a job file has it."""
    if value is REQUIRED:
        return "required"
    if isinstance(value, Section):
        return ""
    return f"`{_yaml(value)}`"


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_yaml(each)}' for key, each in value.items())}}}"
    if isinstance(value, float):
        return f"{value:.5g}"
    return '""' if value == "" else str(value)


# --- what the code says -------------------------------------------------------------------------------------------


def keys_of(section: type[Section], before: str = "", seen: set[type[Section]] | None = None) -> Iterator[Setting]:
    """Every key, and those of the sections below it, by the path to it; of one kind of section once."""
    seen = set() if seen is None else seen
    for name, field in section.model_fields.items():
        if name == "kind" and section in SECTIONS.values():
            continue
        default = REQUIRED if field.is_required() else field.get_default(call_default_factory=True)
        kind = words(field.annotation, field.metadata)
        yield Setting(f"{before}{name}", kind, default, field.description or _text_of(field))
        for below in sections_in(field.annotation):
            if below not in ON_ITS_OWN and below not in seen:
                seen.add(below)
                yield from keys_of(below, f"{before}{name}.{_between(field.annotation)}", seen)


def _text_of(field: FieldInfo) -> str:
    """Of a section, where the key says nothing: what it is."""
    below = [each for each in sections_in(field.annotation) if each not in ON_ITS_OWN]
    return _joined(below[0].__doc__ or "") if below else ""


def sections_in(kind: Any) -> list[type[Section]]:
    """That stand somewhere in a type."""
    if isinstance(kind, type) and issubclass(kind, Section):
        return [kind]
    return [section for part in get_args(kind) for section in sections_in(part)]


def _between(kind: Any) -> str:
    """What stands in a path between the key of several sections and theirs."""
    kind = next((each for each in get_args(kind) if get_origin(each) in (dict, tuple)), kind)
    return "NAME." if get_origin(kind) is dict else "N." if get_origin(kind) is tuple else ""


def documented(function: Any) -> tuple[str, dict[str, str]]:
    """What a docstring says, and what it says of each argument (or attribute)."""
    doc = inspect.getdoc(function) or ""
    said, _, rest = re.sub(r"^(Attributes|Raises):$", r"\1:", doc, flags=re.M).partition("\nArgs:\n")
    if not rest:
        said, _, rest = doc.partition("\nAttributes:\n")
    arguments = re.split(r"\n(?=\S)", rest)[0]
    found: dict[str, str] = {}
    for names, text in re.findall(r"^    (\w+(?:, \w+)*): (.*(?:\n        .*)*)", arguments, re.M):
        found |= dict.fromkeys(names.split(", "), _joined(text))
    return _joined(re.split(r"^(?:Raises|Returns):$", said, flags=re.M)[0]), found


def _joined(text: str) -> str:
    return " ".join(text.split())


def settings_of(name: str) -> list[Setting]:
    """Of a function of raytrain.data: a parameter each, and the keys below it that a job file has."""
    function = getattr(data, name)
    _, texts = documented(function)
    hints = get_type_hints(function, include_extras=True)
    keys = {each.name: each for each in keys_of(SECTIONS[name])} if name in SECTIONS else {}
    found = []
    for each in inspect.signature(function).parameters.values():
        if each.name == "on" and name in STAGES:
            continue
        text = texts.get(each.name, "")
        key = keys.pop(each.name, None)
        if key is not None and (not text or text.startswith("see `raytrain.")):
            text = key.text
        default = key.default if key else REQUIRED if each.default is EMPTY else each.default
        if each.kind is each.VAR_KEYWORD:
            found.append(Setting(f"**{each.name}", "", {}, text))
        else:
            found.append(Setting(each.name, key.kind if key else words(hints.get(each.name, Any)), default, text))
        found += [keys.pop(other) for other in list(keys) if other.startswith(f"{each.name}.")]
    return found + [replace(each, text=f"{each.text} (in a job file)") for each in keys.values()]


def works_on(name: str) -> str:
    """Which fields a stage is for, and whether it is random."""
    parameters = inspect.signature(STAGES[name]).parameters.values()
    needed = [each.name for each in parameters if each.default is EMPTY and each.kind is not each.VAR_KEYWORD]
    made = STAGES[name](**{each: MADE_WITH.get(each, 3) for each in needed})
    kinds = ", ".join(made.kinds) or "any array"
    random = "; random by `transform`" if name == "torchvision" else "; random" if made.random else ""
    return f"{'encoded ' if made.decodes else ''}{kinds}{random}"


# --- the page -----------------------------------------------------------------------------------------------------


def table(first: str, rows: Sequence[tuple[str, ...]]) -> str:
    head = f"| {first} | type | default | meaning |\n|---|---|---|---|\n"
    cells = ([cell.replace("|", r"\|") for cell in row] for row in rows)
    return head + "".join(f"| {' | '.join(row)} |\n" for row in cells)


def rows_of(settings: Sequence[Setting]) -> list[tuple[str, ...]]:
    return [(f"`{each.name}`", each.kind, told(each.default), each.text.removesuffix(".")) for each in settings]


def functions_table(first: str, names: Sequence[str], about: Callable[[str], str] = lambda _: "") -> str:
    rows: list[tuple[str, ...]] = []
    for name in names:
        rows += [(f"**`{name}`**", about(name), "", documented(getattr(data, name))[0]), *rows_of(settings_of(name))]
    return table(first, rows)


def keys_table(job: type[Section] = Job) -> str:
    return table("key", rows_of(list(keys_of(job))))


def blocks() -> dict[str, str]:
    return {
        "keys": keys_table(),
        "prediction": keys_table(PredictionJob),
        "sources": functions_table("source, its options", SOURCES),
        "stages": functions_table("stage, its options", list(STAGES), works_on),
        "own": functions_table("function, its options", OF_OWN),
        "collations": functions_table("collation, its options", COLLATIONS),
    }


def lacking() -> list[str]:
    """What has no text."""
    functions = [name for name in data.__all__ if not documented(getattr(data, name))[0]]
    parameters = [f"{name}: {each.name}" for name in data.__all__ for each in settings_of(name) if not each.text]
    return [
        *functions,
        *parameters,
        *(each.name for job in (Job, PredictionJob) for each in keys_of(job) if not each.text),
    ]


def written() -> str:
    """The page with the tables of today."""
    made = blocks()
    return BLOCK.sub(lambda match: match[1] + made[match[2]], PAGE.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="into docs/reference.md")
    if parser.parse_args().write:
        PAGE.write_text(written())
    else:
        print("\n".join(f"{name}\n\n{text}" for name, text in blocks().items()), end="")


if __name__ == "__main__":
    main()
