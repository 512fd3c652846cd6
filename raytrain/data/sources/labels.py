"""From the text of labels to numbers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from raytrain.data.samples.fields import Field, Schema
from raytrain.errors import DataError

LABEL = "label"


def classes_of(like: Schema | None, name: str) -> tuple[str, ...]:
    """Those of the training split."""
    return like[name].classes if like is not None and name in like else ()


def names_classes(kind: pa.DataType) -> bool:
    """Whether values of this type can: whole numbers and text do; anything else is a field like any other."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(is_text or pa.types.is_integer(kind) or pa.types.is_boolean(kind))


def numbered(
    values: pa.ChunkedArray, classes: tuple[str, ...], name: str, told: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Whole numbers as they are, int64; text numbered in sorted order, or as `classes` has it; with the classes.

    Args:
        values: of a type that `names_classes`.
        told: where they come from, for messages.

    Raises:
        DataError: null, negative, or a class or number that the training data does not have.
    """
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if values.null_count:
        raise DataError(f"{told}: {values.null_count} labels in column {name!r} are null")
    if pa.types.is_integer(values.type) or pa.types.is_boolean(values.type):
        numbers = values.to_numpy().astype(np.int64)
        if len(numbers) and numbers.min() < 0:
            raise DataError(f"{told}: column {name!r} holds the negative label {numbers.min()}")
        if classes and len(numbers) and numbers.max() >= len(classes):
            many = f"{len(classes)} training classes"
            raise DataError(f"{told}: column {name!r} holds the label {numbers.max()}, which none of the {many} has")
        return numbers, classes
    encoded = values.combine_chunks().dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    classes = classes or tuple(sorted(texts))
    number = {each: label for label, each in enumerate(classes)}
    unknown = sorted(set(texts) - set(classes))
    if unknown:
        raise DataError(f"class {unknown[0]!r} of {told} is not among the training classes")
    table = np.array([number[each] for each in texts], dtype=np.int64)
    return table[encoded.indices.to_numpy()] if len(values) else table, classes


def check_alike(classes: tuple[str, ...], training: tuple[str, ...], told: str) -> None:
    """
    Raises:
        DataError: the names that a data set has for its numbers are not those of the training split.
    """
    if classes and training and classes != training:
        both = zip(classes, training, strict=False)
        one, other = next(((a, b) for a, b in both if a != b), (len(classes), len(training)))
        raise DataError(f"{told} numbers other classes than the training data does: {one} for {other}")


def check_apart(known: Iterable[str], taken: Iterable[str], told: str) -> None:
    """
    Raises:
        DataError: what is known beforehand has the name that the manifest has for the place of a row.
    """
    for name in sorted({*known} & {*taken}):
        raise DataError(
            f"{told}: labels and weights cannot be called {name!r}; give that field another name, in its file or with "
            "`columns`"
        )


def label_field(classes: tuple[str, ...]) -> Field:
    return Field("int64", (), classes=classes)
