"""Reading a job file: YAML, `key=value` overrides, and errors that name the key and what to do."""

from __future__ import annotations

import math
import re
import types
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from raytrain.config.masking import masked, masked_setting
from raytrain.config.own_code import OFFERED_SOURCES, offered
from raytrain.errors import ConfigError, nearest, one_line

Section = TypeVar("Section", bound=BaseModel)
ONLY_FOR = {  # kinds that the other places do not have
    "held_out": "is for `data.validation` alone",
    "from_torch": "is for Python; name your data set itself, package.module:name",
    "from_ray": "is for Python; name a function of yours that returns it, package.module:name",
}
UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
MOST_CHARACTERS_SHOWN = 80
MOST_VALUES = 1_000_000
MOST_LEVELS = 100
TAG = "tag:yaml.org,2002:"
BOOL = f"{TAG}bool"
NOT_JSON = ("set", "omap", "pairs", "binary", "timestamp")
RULES = {  # by how pydantic's name for a problem begins
    "int_": "must be a whole number",
    "float_": "must be a number",
    "finite_number": "must be a finite number",
    "bool_": "must be true or false",
    "string_type": "must be text",
    "string_pattern_mismatch": "does not have the form that it must have, {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than_equal": "must be at least {ge:g}",
    "greater_than": "must be greater than {gt:g}",
    "less_than_equal": "must be at most {le:g}",
    "less_than": "must be less than {lt:g}",
    "tuple_type": "must be a list, such as [a, b]",
    "too_short": "must hold {min_length} or more values",
    "too_long": "must hold {max_length} or fewer values",
    "dict_type": "must be a section of `key: value` lines",
    "model_": "must be a section of `key: value` lines",
}


class Loader(yaml.SafeLoader):
    """`on`, `off`, `yes`, `no` and dates are text, as in YAML 1.2: a stage has an option `on`, and a class may be `no`.
    There is nothing that JSON has not."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self._depth += 1
        if self._depth > MOST_LEVELS:
            raise yaml.YAMLError(f"it is nested too deeply, in more than {MOST_LEVELS} levels")
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_yaml_int(self, node: Any) -> int:
        number: int = super().construct_yaml_int(node)
        if not -(2**63) <= number < 2**63:
            raise yaml.MarkedYAMLError(None, None, f"{node.value[:20]} has more than 64 bits", node.start_mark)
        return number

    def construct_yaml_float(self, node: Any) -> float:
        number = super().construct_yaml_float(node)
        if not math.isfinite(number):
            raise yaml.MarkedYAMLError(None, None, f"{node.value} is no finite number", node.start_mark)
        return number


Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] not in (BOOL, f"{TAG}timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.yaml_constructors = {
    tag: make for tag, make in yaml.SafeLoader.yaml_constructors.items() if tag not in {TAG + each for each in NOT_JSON}
}
Loader.add_constructor(f"{TAG}int", Loader.construct_yaml_int)
Loader.add_constructor(f"{TAG}float", Loader.construct_yaml_float)
Loader.add_implicit_resolver(BOOL, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def from_yaml(text: str) -> Any:
    """Plain values only; what aliases (`*name`) repeat is bounded.

    Raises:
        yaml.YAMLError: it is none, or holds what no description does: itself, more than MOST_VALUES, or text that
            cannot be written.
    """
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _size(node, {})
        return loader.construct_document(node)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:  # of an empty number
        raise yaml.YAMLError(one_line(error, 200)) from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values it is, with what aliases repeat: nine lines of nine aliases each are 400 million.

    Raises:
        yaml.YAMLError: more than anybody means, or it holds itself.
    """
    if id(node) in known:
        if known[id(node)] < 0:
            raise yaml.YAMLError(f"what begins in line {node.start_mark.line + 1} has an alias of itself in it")
        return known[id(node)]
    known[id(node)] = -1
    if isinstance(node, yaml.ScalarNode):
        _check_text(node.value)
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = (part for each in inner for part in (each if isinstance(each, tuple) else (each,)))
    size = known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    if size > MOST_VALUES and size > 2 * len(known):
        raise yaml.YAMLError(f"its aliases repeat so much that it is more than {MOST_VALUES:,} values")
    return size


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise yaml.YAMLError("it holds half a surrogate pair, which is no text") from None
    if "\0" in text:
        raise yaml.YAMLError("it holds a text with the character \\0")


def read_tree(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> dict[str, Any]:
    """The content of a job file with overrides applied (their values are YAML).

    Raises:
        ConfigError: the file cannot be read or parsed, or an override has another form.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the job file {path}: {_reason(error)}") from None
    try:
        tree = from_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {_wrong(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of job keys, such as `name:` and `training:`")
    for override in overrides:
        _apply(tree, override)
    return tree


def _wrong(error: yaml.YAMLError) -> str:
    """What and where, without the line itself, which may hold a secret."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return one_line(error, 200)
    what = ", ".join(filter(None, (error.context, error.problem)))
    return f"{what} (line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1})"


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {masked_setting(override)!r} must look like key.sub=value, such as training.epochs=2")
    if len(parts) > MOST_LEVELS:
        raise ConfigError(f"--set {masked_setting(override)!r}: no key lies in more than {MOST_LEVELS} others")
    try:
        _check_text(key)
        parsed = from_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {masked_setting(override)!r}: the value is not YAML: {_wrong(error)}") from None
    node = tree
    for part in parts[:-1]:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {masked_setting(override)!r}: {part!r} is not a section")
        node = child
    node[parts[-1]] = parsed


def has(tree: Any, section: str, key: str) -> bool:
    """Whether parsed YAML has a key in a section."""
    return isinstance(tree, dict) and isinstance(tree.get(section), dict) and key in tree[section]


def section_of(kind: type[Section], tree: Any, where: str) -> Section:
    """A section from parsed YAML or from what a script gave; `where` opens the message.

    Raises:
        ConfigError: naming the first problem.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, where)) from None


def explain(error: ValidationError, root: type[BaseModel], where: str) -> str:
    """The first problem in one line: which key, what is wrong, and the nearest key that exists."""
    problems: dict[str, tuple[tuple[Any, ...], Any]] = {}
    for each in error.errors():
        place = _place(root, each)
        problems.setdefault(".".join(str(part) for part in place), (place, each))
    # of a value that may be one of two things there is a problem each; the one that got further says more
    keys = [key for key in problems if not any(other.startswith(f"{key}.") for other in problems)]
    keys.sort(key=lambda key: problems[key][1]["type"] == "missing")  # what is missing may only be mistyped
    place, first = problems[keys[0]]
    more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
    return f"{where}: {_problem(first, place, root)}{more}"


def _problem(found: Any, place: tuple[Any, ...], root: type[BaseModel]) -> str:
    key, kind, ctx = ".".join(str(part) for part in place) or "the job", found["type"], found.get("ctx", {})
    if kind in UNKNOWN_KEY:
        _, here = _walk(root, found["loc"][:-1])
        fields = {name for section in _models_in(here) for name in section.model_fields}
        hint = nearest(str(place[-1]), fields)
        return f"unknown key {key!r}{hint}" + ("" if hint else f" (known here: {', '.join(sorted(fields))})")
    if kind == "union_tag_not_found" and (
        mistyped := get_close_matches("kind", [str(k) for k in found["input"] if len(str(k)) < 80], n=1)
    ):
        return f"unknown key {f'{key}.{mistyped[0]}'!r}; did you mean 'kind'?"
    if kind == "missing":
        return f"{key!r} is missing"
    if kind.startswith("union_tag_"):
        kinds = [*_kinds(_walk(root, found["loc"])[1]), *offered(OFFERED_SOURCES)]
        known = f"{', '.join(kinds)}, or package.module:name for your own"
        if "tag" not in ctx:
            return f"{key}: 'kind' is missing; it is one of {known}"
        if ctx["tag"] in ONLY_FOR:
            return f"{key}: `{ctx['tag']}` {ONLY_FOR[ctx['tag']]} (known here: {known})"
        return f"{key}: unknown kind {ctx['tag']!r}{nearest(ctx['tag'], kinds)} (known: {known})"
    if kind == "value_error":
        return f"{key}: {ctx['error']}"
    if kind == "literal_error":
        hint = nearest(str(found["input"]), re.findall(r"'([^']*)'", ctx["expected"]))
        return f"{key} must be {ctx['expected']}{_given(found)}{hint}"
    return f"{key} {_rule(kind, ctx)}{_given(found)}"


def _rule(kind: str, ctx: dict[str, Any]) -> str:
    """What a value must be, from pydantic's name for what it is not."""
    for start, rule in RULES.items():
        if kind.startswith(start):
            return rule.format(**ctx)
    return "is not a value that this key takes"


def _given(found: Any) -> str:
    given = found.get("input")
    if given is None:
        return " (given: nothing)"
    given = masked(given, str(found["loc"][-1]) if found["loc"] else "")
    return f" (given: {given!r})" if len(repr(given)) <= MOST_CHARACTERS_SHOWN else ""


def _place(root: type[BaseModel], found: Any) -> tuple[Any, ...]:
    """The keys that lead to a problem as the job file has them."""
    unknown = found["loc"][-1:] if found["type"] in UNKNOWN_KEY else ()
    place, _ = _walk(root, found["loc"][: len(found["loc"]) - len(unknown)])
    return (*place, *unknown)


def _walk(root: type[BaseModel], loc: tuple[Any, ...]) -> tuple[tuple[Any, ...], Any]:
    """`loc` without pydantic's names for the types that a value may have, which no job file holds; and what stands
    there."""
    current: Any = root
    kept: list[Any] = []
    for part in loc:
        sections = _models_in(current)
        by_name = _by_name(current)
        if by_name is not None:
            kept.append(part)
            current = get_args(by_name)[1]
        elif isinstance(part, int):
            kept.append(part)
        elif part in (kinds := _kinds(current)):
            current = kinds[part]
        elif owner := next((c for c in sections if part in c.model_fields), None):
            kept.append(part)
            current = owner.model_fields[part].annotation
    return tuple(kept), current


def _by_name(annotation: Any) -> Any:
    """The mapping that may stand there, such as `dict[str, FieldOf] | None`; None where none may."""
    inside = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((each for each in inside if get_origin(each) is dict), None)


def _kinds(annotation: Any) -> dict[str, type[BaseModel]]:
    """By what its key `kind` says, a section that may stand there."""
    fields: list[tuple[type[BaseModel], Any]] = [
        (c, c.model_fields["kind"].annotation) for c in _models_in(annotation) if "kind" in c.model_fields
    ]
    said = [(section, get_args(kind)) for section, kind in fields if get_origin(kind) is Literal]
    return {name: section for section, names in said for name in names}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, list):
        return [model for arg in get_args(annotation) for model in _models_in(arg)]
    return []


def _reason(error: Exception) -> str:
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else one_line(error)
