"""Any field of a batch, and by a small model what a rank should read of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st

from raytrain.data.samples.collate import Collation, Column, Pad, columns_of, padded, ragged, without_samples
from raytrain.data.samples.fields import DTYPES, np_dtype

SHAPES = [(), (1,), (64,), (3, 5), (2, 3, 1), (8, 8, 2), (4, 16, 4), (2, 2, 2, 16), (0, 3), (4, 4, 3)]


@dataclass
class Drawn:
    """Values of one field, one a sample, and what becomes of them.

    Attributes:
        like: a value, of which a batch without samples has the form.
    """

    values: list[Any]
    like: Any
    rule: Collation | None = None

    @property
    def dtype(self) -> np.dtype:
        return self.like.dtype.newbyteorder("=")


@dataclass
class DrawnBatch:
    fields: dict[str, Drawn]
    key: np.ndarray
    part: np.ndarray | None = None
    collations: dict[str, Collation] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.collations = {name: each.rule for name, each in self.fields.items() if each.rule is not None}

    def columns(self, *, together: bool = False) -> dict[str, Column]:
        count = len(self.key)
        rows = [{name: each.values[place] for name, each in self.fields.items()} for place in range(count)]
        if rows:
            return columns_of(rows, self.collations, str, together=together)
        like = columns_of([{name: each.like for name, each in self.fields.items()}], self.collations, str)
        return {name: without_samples(column) for name, column in like.items()}


def laid_out(draw, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array whose axes lie in memory in any order, forwards or backwards; any bits, but for truth values."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    order = draw(st.permutations(range(len(shape))))
    raw = rng.integers(0, 2 if dtype.kind == "b" else 256, int(np.prod(shape)) * dtype.itemsize, np.uint8)
    array = raw.view(dtype).reshape([shape[axis] for axis in order]).transpose(np.argsort(order))
    return array[::-1] if shape and draw(st.booleans()) else array


@st.composite
def dtypes(draw) -> np.dtype:
    dtype = np_dtype(draw(st.sampled_from(DTYPES)))
    return dtype if dtype.kind == "V" else dtype.newbyteorder(draw(st.sampled_from("=>")))


@st.composite
def dense_fields(draw, count: int) -> Drawn:
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(dtypes())
    values = [laid_out(draw, shape, dtype) for _ in range(max(count, 1))]
    if shape == () and draw(st.booleans()):
        values = [value[()] for value in values]  # numbers of NumPy's
    return Drawn(values[:count], values[0])


@st.composite
def ragged_fields(draw, count: int) -> Drawn:
    rest, dtype = draw(st.sampled_from([(), (3,), (2, 4)])), draw(dtypes())
    lengths = draw(st.lists(st.sampled_from([0, 1, 2, 5, 40]), min_size=max(count, 1), max_size=max(count, 1)))
    values = [laid_out(draw, (length, *rest), dtype) for length in lengths]
    return Drawn(values[:count], values[0], ragged())


@st.composite
def padded_fields(draw, count: int) -> Drawn:
    num_axes = draw(st.integers(1, 3))
    axes = draw(st.sets(st.integers(0, num_axes - 1), min_size=1).map(sorted))
    dtype = draw(dtypes())
    fixed = [draw(st.integers(1, 4)) for _ in range(num_axes)]
    lengths = st.integers(0, 7)
    shapes = [[draw(lengths) if a in axes else fixed[a] for a in range(num_axes)] for _ in range(max(count, 1))]
    values = [laid_out(draw, tuple(shape), dtype) for shape in shapes]
    most = draw(st.none() | st.integers(1, 4))
    rule = padded(draw(st.sampled_from([0, 1])), axes=axes, multiple_of=draw(st.sampled_from([1, 3])), most=most)
    return Drawn(values[:count], values[0], rule)


@st.composite
def string_fields(draw, count: int) -> Drawn:
    texts = st.text(st.characters(), max_size=6)  # lone surrogates too, as Python has of paths
    each = draw(st.sampled_from([texts, st.binary(max_size=70)]))
    values = [draw(each) for _ in range(max(count, 1))]
    return Drawn(values[:count], values[0])


def one_field(count: int) -> st.SearchStrategy[Drawn]:
    return st.one_of(dense_fields(count), ragged_fields(count), padded_fields(count), string_fields(count))


numbers = st.integers(-(2**63), 2**63 - 1)


@st.composite
def batches(draw) -> DrawnBatch:
    count = draw(st.integers(0, 4))
    fields = {name: draw(one_field(count)) for name in draw(st.sampled_from(["a", "ab", "abc"]))}
    keys, parts = (draw(st.lists(numbers, min_size=count, max_size=count)) for _ in range(2))
    return DrawnBatch(fields, np.array(keys, np.int64), np.array(parts, np.int64) if draw(st.booleans()) else None)


# --- the model ----------------------------------------------------------------------------------------------------


def expected_padding(drawn: Drawn, rule: Pad) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The field, its mask and its lengths, number by number."""
    shapes, cut = [list(value.shape) for value in drawn.values], rule.axes[0]
    for shape in shapes:
        shape[cut] = min(shape[cut], rule.most or shape[cut])
    full = list(drawn.values[0].shape)
    for axis in rule.axes:
        full[axis] = max(1, *(shape[axis] for shape in shapes))
        while full[axis] % rule.multiple_of:
            full[axis] += 1
    field_ = np.zeros((len(shapes), *full), drawn.dtype)
    mask = np.zeros((len(shapes), *(full[axis] for axis in rule.axes)), bool)
    for number, (value, shape) in enumerate(zip(drawn.values, shapes, strict=True)):
        for place in np.ndindex(*full):
            inside = all(at < size for at, size in zip(place, shape, strict=True))
            field_[(number, *place)] = value[place] if inside else rule.value
        for place in np.ndindex(*mask.shape[1:]):
            mask[(number, *place)] = all(at < shape[axis] for at, axis in zip(place, rule.axes, strict=True))
    lengths = [[shape[axis] for axis in rule.axes] for shape in shapes]
    return field_, mask, np.array([each[0] if len(rule.axes) == 1 else each for each in lengths], np.int64)
