"""From the values of a batch's samples to what travels: one column a field.

Values of one shape are dense: what the last stage left in memory is referenced, not copied. Where shapes differ, the
pipeline says what becomes of them: `pad` or `ragged`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from raytrain.data.samples.fields import BYTES, DTYPES, TEXT, Sample
from raytrain.errors import ConfigError, DataError

PIECE_BYTES = 128 << 10  # samples from here on are worth a piece each
ANY_TEXT = "surrogatepass"  # paths with bytes that are no UTF-8 too, as Python has them
ALIGNED = 64  # bytes: how Ray lays out buffers; pieces of whole multiples lie side by side

Form = Literal["dense", "ragged", "bytes", "text"]
_KNOWN = frozenset(DTYPES)


@dataclass(frozen=True)
class Pad:
    """Values are filled up to the longest of the batch. Beside field `x` there are then `x_mask`, bool, true where
    there was something, over the axes that vary; and `x_length`, int64, how much (one number an axis where several
    vary).

    Args:
        value: that fills.
        axes: that vary, from 0; the others must agree.
        multiple_of: lengths are rounded up to one, so that the device sees fewer shapes.
        most: what is longer along the first of the axes is cut off.

    Raises:
        ConfigError: a value that no length or axis can have.
    """

    value: float = 0
    axes: tuple[int, ...] = (0,)
    multiple_of: int = 1
    most: int | None = None

    def __post_init__(self) -> None:
        for name, given in (("multiple_of", self.multiple_of), ("most", self.most)):
            if given is not None and (not isinstance(given, int) or given < 1):
                raise ConfigError(f"padded: {name} must be a whole number of at least 1 (given: {given!r})")
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise ConfigError(f"padded: value must be a number (given: {self.value!r})")
        axes = self.axes
        whole = isinstance(axes, tuple) and all(isinstance(each, int) for each in axes)
        if not whole or not axes or sorted({*axes}) != list(axes) or axes[0] < 0:
            told = list(axes) if isinstance(axes, tuple) else axes
            raise ConfigError(f"padded: axes must be different axes in order, from 0 (given: {told!r})")


@dataclass(frozen=True)
class Ragged:
    """Values lie behind one another, with their lengths along the first axis beside them; the others must agree."""


@dataclass(frozen=True)
class Encoded:
    """Files lie behind one another as they were read, uint8, to be decoded where they arrive."""


Collation = Pad | Ragged


def padded(value: float = 0, *, axes: Sequence[int] = (0,), multiple_of: int = 1, most: int | None = None) -> Pad:
    """Fill values of different lengths up to the longest of their batch. Beside field `x` there are then `x_mask`,
    bool, true where there was something, and `x_length`, int64, how much: one number, or one an axis of `axes`."""
    return Pad(value, tuple(axes) if isinstance(axes, Sequence) else axes, multiple_of, most)


def ragged() -> Ragged:
    """Leave values of different lengths as they are, behind one another along the first axis: `batch["x"]` has
    `values`, `offsets` and `lengths`, and `nested()`."""
    return Ragged()


def padded_names(name: str) -> tuple[str, str]:
    """The fields beside a padded one."""
    return f"{name}_mask", f"{name}_length"


@dataclass(frozen=True)
class Column:
    """One field of a batch.

    Attributes:
        form: how `pieces` are to be read. Of `ragged`, `bytes` and `text` there is one, all samples in a row.
        dtype: of a value, by NumPy's name.
        shape: of a value; of `ragged`, behind its first axis.
        axes: of a value, from the slowest in memory to the fastest.
        pieces: contiguous memory, in order; of `dense`, the whole batch or one sample each.
        lengths: int64 by sample, along the first axis or in bytes; None of `dense`.
    """

    form: Form
    dtype: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    pieces: list[np.ndarray]
    lengths: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return sum(piece.nbytes for piece in self.pieces)


def columns_of(
    samples: Sequence[Sample],
    collations: Mapping[str, Collation | Encoded],
    describe: Callable[[int], str],
    *,
    together: bool = False,
) -> dict[str, Column]:
    """The columns of a batch of one sample or more.

    Large values stay where they are, unless they shall be put `together`; small ones always are.

    Args:
        describe: a sample by its place in the batch, for messages.

    Raises:
        DataError: samples with different fields, or values of one field that do not go together.
    """
    check_fields(samples, describe)
    columns: dict[str, Column] = {}
    for name in samples[0]:
        values = [sample[name] for sample in samples]
        _check_alike(name, values, describe)
        rule = collations.get(name)
        if isinstance(rule, Encoded):
            columns[name] = _encoded(name, values, describe)
        elif isinstance(values[0], str | bytes):
            columns[name] = _strings(values)
        elif isinstance(rule, Pad):
            made = _padded(name, values, rule, describe)
            taken = next((each for each in made if each != name and each in samples[0]), None)
            if taken is not None:
                raise DataError(f"collate: padding `{name}` makes a field `{taken}`, and there is one; rename it")
            columns |= made
        elif isinstance(rule, Ragged):
            columns[name] = _ragged(name, values, describe)
        else:
            _check_shapes(name, values, (), describe, rule)
            columns[name] = dense(values, together=together)
    return columns


def dense(values: Sequence[Any], *, together: bool = False) -> Column:
    """Of one shape and dtype, in any order of their axes in memory. They travel in the machine's own byte order, which
    is the only one that torch takes."""
    like = values[0]
    if like.ndim == 0:
        return Column("dense", like.dtype.name, (), (), [np.array(values, like.dtype.newbyteorder("="))])
    axes = tuple(int(axis) for axis in np.argsort([-abs(stride) for stride in like.strides], kind="stable"))
    dtype = like.dtype.newbyteorder("=")
    pieces = [np.ascontiguousarray(value.transpose(axes), dtype) for value in values]
    apart = len(pieces) == 1 or (pieces[0].nbytes >= PIECE_BYTES and pieces[0].nbytes % ALIGNED == 0)
    if together or not apart:
        pieces = [np.stack(pieces)]
    return Column("dense", dtype.name, like.shape, axes, pieces)


def without_samples(column: Column) -> Column:
    """The column of a batch that has none."""
    lengths = None if column.lengths is None else column.lengths[:0]
    return Column(column.form, column.dtype, column.shape, column.axes, [], lengths)


def check_fields(samples: Sequence[Sample], describe: Callable[[int], str]) -> None:
    """
    Raises:
        DataError: samples with different fields, or without any.
    """
    first = samples[0].keys()
    if not first:
        raise DataError(f"no field is left of {describe(0)}; have its last stage return a dict that has some")
    for number, sample in enumerate(samples):
        if sample.keys() != first:
            told = (f"{', '.join(each) or 'none'} of {describe(n)}" for n, each in ((0, first), (number, sample)))
            raise DataError(
                f"samples come out with different fields: {' and '.join(told)}; have a stage give all of them the same"
            )


def _check_alike(name: str, values: list[Any], describe: Callable[[int], str]) -> None:
    """Of one kind of value and dtype, in any byte order, with as many axes."""
    first = values[0]
    if isinstance(first, str | bytes):
        kind = str if isinstance(first, str) else bytes
        other = next((n for n, value in enumerate(values) if not isinstance(value, kind)), None)
    else:
        if first.dtype.name not in _KNOWN:
            raise DataError(
                f"field `{name}` of {describe(0)} is {first.dtype}, which cannot travel; have a stage make it one of "
                f"{', '.join(DTYPES)}, text or bytes"
            )
        other = next((number for number, value in enumerate(values) if not _agree(first, value)), None)
    if other is not None:
        raise _unlike(name, values, other, describe, "have a stage make them alike")


def _agree(first: Any, other: Any) -> bool:
    if isinstance(other, str | bytes) or first.ndim != other.ndim:
        return False
    return bool(first.dtype == other.dtype) or first.dtype.name == other.dtype.name  # which is without the byte order


def _check_shapes(
    name: str, values: list[Any], vary: tuple[int, ...], describe: Callable[[int], str], rule: Collation | None
) -> None:
    """Whether values agree along the axes that do not vary."""
    first = values[0].shape
    for number, value in enumerate(values):
        if value.shape != first and any(
            n != m for axis, (n, m) in enumerate(zip(first, value.shape, strict=True)) if axis not in vary
        ):
            raise _unlike(name, values, number, describe, _mend(name, values[0], rule))


def _mend(name: str, like: Any, rule: Collation | None) -> str:
    alike = "end its stages (those on the CPU) with a resize" if like.ndim == 3 else "have a stage make them alike"
    if rule is None:
        return f"{alike}, or give it a collation (collate: {{{name}: padded}} or ragged)"
    if isinstance(rule, Ragged):
        return f"{alike}: `ragged` lets the first axis vary alone"
    return f"{alike}, or name what else varies in `axes` of `padded` (now {list(rule.axes)})"


def _unlike(name: str, values: list[Any], other: int, describe: Callable[[int], str], mend: str) -> DataError:
    first, second = (_told(values[number]) for number in (0, other))
    return DataError(
        f"samples come out in different {'shapes' if first[1] == second[1] else 'types'}: field `{name}` is {first[0]} "
        f"of {describe(0)} and {second[0]} of {describe(other)}; {mend}"
    )


def _told(value: Any) -> tuple[str, str]:
    if isinstance(value, str | bytes):
        kind = TEXT if isinstance(value, str) else BYTES
        return kind, kind
    return f"{value.shape} {value.dtype.name}", value.dtype.name


def _strings(values: list[Any]) -> Column:
    form: Form = "text" if isinstance(values[0], str) else "bytes"
    data = [value.encode(errors=ANY_TEXT) if form == "text" else value for value in values]
    lengths = np.array([len(each) for each in data], np.int64)
    return Column(form, "uint8", (), (), [np.frombuffer(b"".join(data), np.uint8)], lengths)


def _encoded(name: str, values: list[Any], describe: Callable[[int], str]) -> Column:
    if not isinstance(values[0], bytes):
        raise DataError(
            f"field `{name}` of {describe(0)} is {_told(values[0])[0]}, and `decode` on the device takes encoded "
            "bytes; leave it to the CPU, or out"
        )
    lengths = np.array([len(each) for each in values], np.int64)
    return Column("ragged", "uint8", (), (), [np.frombuffer(b"".join(values), np.uint8)], lengths)


def _ragged(name: str, values: list[np.ndarray], describe: Callable[[int], str]) -> Column:
    first = values[0]
    _check_axes(name, values, (0,), describe, Ragged())
    dtype = first.dtype.newbyteorder("=")
    lengths = np.array([len(value) for value in values], np.int64)
    shape = first.shape[1:]
    return Column("ragged", dtype.name, shape, tuple(range(len(shape))), [np.concatenate(values, dtype=dtype)], lengths)


def _padded(name: str, values: list[np.ndarray], rule: Pad, describe: Callable[[int], str]) -> dict[str, Column]:
    first = values[0]
    _check_axes(name, values, rule.axes, describe, rule)
    if not can_fill(rule.value, first.dtype):
        raise DataError(f"collate: `{name}` is padded with {rule.value:g}, which {first.dtype.name} cannot hold")
    if rule.most is not None:
        cut = (*(slice(None) for _ in range(rule.axes[0])), slice(rule.most))
        values = [value[cut] for value in values]
    lengths = np.array([[value.shape[axis] for axis in rule.axes] for value in values], np.int64)
    full = list(first.shape)
    for axis, longest in zip(rule.axes, lengths.max(axis=0).tolist(), strict=True):
        full[axis] = -(-max(longest, 1) // rule.multiple_of) * rule.multiple_of
    whole = np.full((len(values), *full), rule.value, first.dtype.newbyteorder("="))
    mask = np.zeros((len(values), *(full[axis] for axis in rule.axes)), bool)
    for number, value in enumerate(values):
        whole[number][tuple(slice(0, length) for length in value.shape)] = value
        mask[number][tuple(slice(0, length) for length in lengths[number])] = True
    mask_name, length_name = padded_names(name)
    length = lengths[:, 0] if len(rule.axes) == 1 else lengths
    arrays = {name: whole, mask_name: mask, length_name: np.ascontiguousarray(length)}
    return {each: stacked(array) for each, array in arrays.items()}


def stacked(array: np.ndarray) -> Column:
    """Of a batch that is one array in C order, its samples along the first axis."""
    return Column("dense", array.dtype.name, array.shape[1:], tuple(range(array.ndim - 1)), [array])


def can_fill(value: float, dtype: np.dtype) -> bool:
    """Whether a whole number or truth value of this type can be `value`; all others come near it."""
    if dtype.kind not in "biu":
        return True
    with np.errstate(invalid="ignore"):
        return bool(np.asarray(value).astype(dtype) == value)


def _check_axes(
    name: str, values: list[np.ndarray], vary: tuple[int, ...], describe: Callable[[int], str], rule: Collation
) -> None:
    """Whether values agree along the axes that do not vary, and have those that do."""
    first = values[0].shape
    if len(first) <= vary[-1]:
        raise DataError(
            f"field `{name}` of {describe(0)} has the shape {first}, and no axis {vary[-1]} that could vary"
        )
    _check_shapes(name, values, vary, describe, rule)
