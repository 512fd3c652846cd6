"""Any valid tree of a pydantic model, as JSON or YAML has it, by its annotations."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

Mend = dict[type[BaseModel], Callable[[dict[str, Any]], dict[str, Any]]]

words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
floats = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**60), 2**60) | floats | words
anything = scalars | st.lists(scalars, max_size=2) | st.dictionaries(words, scalars, max_size=2)


def trees(model: type[BaseModel], mend: Mend | None = None) -> st.SearchStrategy[dict[str, Any]]:
    """`mend` makes a model's tree satisfy what its fields do not say one by one."""
    mend = mend or {}
    required = {n: values(f.annotation, f.metadata, mend) for n, f in model.model_fields.items() if f.is_required()}
    others = {n: values(f.annotation, f.metadata, mend) for n, f in model.model_fields.items() if not f.is_required()}
    return st.fixed_dictionaries(required, optional=others).map(mend.get(model, lambda tree: tree))


def values(annotation: Any, rules: Any = (), mend: Mend | None = None) -> st.SearchStrategy:
    origin, args = get_origin(annotation), get_args(annotation)
    bounds = {
        name: getattr(rule, name)
        for rule in rules
        for name in ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
        if getattr(rule, name, None) is not None
    }
    if origin is Annotated:
        more = [rule for each in args[1:] for rule in (each.metadata if isinstance(each, FieldInfo) else [each])]
        return values(args[0], [*rules, *more], mend)
    if annotation is not float and any(isinstance(rule, AfterValidator) for rule in rules):  # where an object is
        return st.sampled_from(["mine:thing", "a.b:c"])
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    if not is_section and any(isinstance(rule, BeforeValidator) for rule in rules):  # a stage
        return words | st.dictionaries(words, anything, min_size=1, max_size=1)
    if origin in (Union, types.UnionType):
        return st.one_of([values(each, (), mend) for each in args])
    if origin is Literal:
        return st.sampled_from(args)
    if origin in (tuple, list):
        if origin is tuple and args[-1] is not Ellipsis:
            return st.tuples(*(values(each, (), mend) for each in args)).map(list)
        least = bounds.get("min_length", 0)
        return st.lists(values(args[0], (), mend), min_size=least, max_size=least + 2)
    if origin is dict:
        return st.dictionaries(values(args[0], (), mend), values(args[1], (), mend), max_size=2)
    if annotation is Any:
        return anything
    if annotation is type(None):
        return st.none()
    if annotation is bool:
        return st.booleans()
    if is_section:
        return trees(annotation, mend)
    return _plain(annotation, bounds)


def _plain(annotation: type, bounds: dict[str, Any]) -> st.SearchStrategy:
    if annotation is int:
        least = bounds.get("ge", bounds["gt"] + 1 if "gt" in bounds else -(2**60))
        return st.integers(least, bounds.get("le", bounds.get("lt", 2**60) - 1))
    if annotation is float:
        open_below, open_above = "gt" in bounds, "lt" in bounds
        return st.floats(
            bounds.get("ge", bounds.get("gt")),
            bounds.get("le", bounds.get("lt")),
            exclude_min=open_below,
            exclude_max=open_above,
            allow_nan=False,
            allow_infinity=False,
        )
    assert annotation is str, annotation
    if "pattern" in bounds:
        most = bounds.get("max_length", 2000)
        return st.from_regex(bounds["pattern"], fullmatch=True).filter(lambda text: len(text) <= most)
    return words
