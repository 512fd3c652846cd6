"""Reading a job file: YAML, `key=value` overrides, and errors that name the key and what to do."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from raytrain.errors import ConfigError, nearest, one_line


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
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a mapping of job keys, such as `name:` and `training:`")
    for override in overrides:
        _apply(tree, override)
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(f"--set {override!r} must look like key.sub=value, such as training.epochs=2")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML: {one_line(error)}") from None
    node = tree
    for part in parts[:-1]:
        child = node.get(part)
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is not a section")
        node = child
    node[parts[-1]] = parsed


def explain(error: ValidationError, root: type[BaseModel], where: str) -> str:
    """The first problem in one line: which key, what is wrong, and the nearest key that exists."""
    first, more = error.errors()[0], len(error.errors()) - 1
    names = [part for part in first["loc"] if not _is_union_tag(part)]
    key = ".".join(str(part) for part in names) or "the job"
    if first["type"] == "extra_forbidden":
        fields = _fields_at(root, first["loc"][:-1])
        message = f"{where}: unknown key {key!r}{nearest(str(names[-1]), fields)}"
        if "did you mean" not in message:
            message += f" (known here: {', '.join(sorted(fields))})"
    elif first["type"] == "missing":
        message = f"{where}: {key!r} is missing"
    else:
        text = first["msg"].removeprefix("Value error, ")
        given = first.get("input")
        shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) else ""
        message = f"{where}: {key}: {text[0].lower()}{text[1:]}{shown}"
    return message + (f" (and {more} more)" if more else "")


def _is_union_tag(part: Any) -> bool:
    return isinstance(part, str) and part in {"image_folder", "parquet", "webdataset", "synthetic"}


def _fields_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the section that `loc` points to."""
    current: Any = model
    for part in loc:
        candidates = _models_in(current)
        if _is_union_tag(part):
            current = next(c for c in candidates if part in get_args(c.model_fields["kind"].annotation))
        elif isinstance(part, str):
            current = next((c.model_fields[part].annotation for c in candidates if part in c.model_fields), current)
    return [name for candidate in _models_in(current) for name in candidate.model_fields]


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, list):
        return [model for arg in get_args(annotation) for model in _models_in(arg)]
    return []


def _reason(error: Exception) -> str:
    return error.strerror.lower() if isinstance(error, OSError) and error.strerror else one_line(error)
