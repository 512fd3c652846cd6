"""Arrow's values and types as fields.

Imported by every preprocessing worker, so it imports NumPy and pyarrow and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.data.samples.fields import ANYTHING, BYTES, IMAGE, TEXT, Field, Kind, Sample

# the first bytes of an image file: JPEG, PNG, WebP, BMP, TIFF (both byte orders)
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"II*\x00", b"MM\x00*")


def looks_like_image(data: Any) -> bool:
    """By its first bytes."""
    return isinstance(data, bytes) and (data.startswith(_IMAGES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"))


def is_binary(kind: pa.DataType) -> bool:
    """Bytes, or the {bytes, path} of Hugging Face data sets."""
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and is_binary(kind.field(place).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def field_of_type(kind: pa.DataType, name: str) -> Field | None:
    """What a column's values are as a field; None of what can be none."""
    if is_binary(kind):
        return Field(BYTES, ())
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind):
        return Field(TEXT, ())
    if pa.types.is_boolean(kind):
        return Field("bool", ())
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return Field(np.dtype(kind.to_pandas_dtype()).name, ())
    if isinstance(kind, pa.FixedShapeTensorType):
        return _array(kind.value_type, tuple(kind.shape), name)
    if isinstance(kind, pa.BaseExtensionType) and isinstance(getattr(kind, "shape", None), tuple):  # Ray Data's tensors
        return Field(shape=kind.shape, kind="image" if name == IMAGE and len(kind.shape) == 3 else "")
    shape: list[int | None] = []
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        shape.append(kind.list_size if pa.types.is_fixed_size_list(kind) else None)
        kind = kind.value_type
    return _array(kind, tuple(shape), name) if shape else None


def _array(value: pa.DataType, shape: tuple[int | None, ...], name: str) -> Field | None:
    inner = field_of_type(value, "")
    if inner is None or not inner.may_be_array:
        return None
    kind: Kind = "image" if name == IMAGE and len(shape) == 3 else ""
    return Field(inner.dtype, shape, kind) if inner is not ANYTHING else None


def lengths_of(values: pa.Array | pa.ChunkedArray) -> np.ndarray | None:
    """int64: of lists along their first axis, of text in characters, of bytes; of a whole number, it; 0 where there is
    nothing. None of what has no length."""
    import pyarrow.compute as pc  # 35 ms, for every worker and every start

    kind = values.type
    if pa.types.is_dictionary(kind):
        return lengths_of(values.cast(kind.value_type))
    if pa.types.is_struct(kind) and is_binary(kind):  # the {bytes, path} of Hugging Face data sets
        return lengths_of(pc.struct_field(values, "bytes"))
    if isinstance(kind, pa.FixedShapeTensorType):
        return np.full(len(values), kind.shape[0], np.int64)
    if pa.types.is_integer(kind):
        lengths = values
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        lengths = pc.utf8_length(values)
    elif is_binary(kind):
        lengths = pc.binary_length(values)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(values)
    else:
        return None
    return np.asarray(pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False), np.int64)


def cells(table: pa.Table, row: int, columns: Mapping[str, str]) -> Sample | Exception:
    """A row's fields, each from its column; or which one has no value."""
    sample: Sample = {}
    for name, column in columns.items():
        value = cell(table.column(column)[row])
        if value is None:
            return ValueError(f"column {column!r} is null")
        sample[name] = value
    return sample


def cell(value: pa.Scalar) -> Any:
    """An Arrow value as a field's; None where it is null.

    Raises:
        ValueError: a list of lists of different lengths, or with nothing in a place.
    """
    if isinstance(value, pa.ExtensionScalar):  # a tensor, Arrow's or Ray Data's
        array = value.as_py()
        if array is None:
            return None
        return np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else array)
    if isinstance(value, pa.StructScalar):  # the {bytes, path} of Hugging Face data sets
        return None if not value.is_valid else cell(value["bytes"])
    if isinstance(value, pa.StringScalar | pa.LargeStringScalar):  # which Arrow takes for a kind of bytes
        return value.as_py()
    if isinstance(value, pa.BinaryScalar | pa.LargeBinaryScalar):
        buffer = value.as_buffer()
        return None if buffer is None else buffer.to_pybytes()
    if not value.is_valid:
        return None
    if isinstance(value, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return _flat(value.values)
    plain = value.as_py()
    if isinstance(plain, str):
        return plain
    return np.asarray(plain, np.dtype(value.type.to_pandas_dtype()))[()]


def _flat(values: pa.Array) -> np.ndarray:
    """A nested list as one array; every level must be regular."""
    if values.null_count:
        raise ValueError("a list holds nothing in a place")
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        import pyarrow.compute as pc

        fixed = pa.types.is_fixed_size_list(values.type)
        lengths = {values.type.list_size} if fixed else {*pc.list_value_length(values).to_pylist()}
        if len(lengths) > 1:
            raise ValueError("a list of lists of different lengths is no array")
        inner = _flat(values.flatten())
        return inner.reshape(len(values), next(iter(lengths), 0), *inner.shape[1:])
    return np.asarray(values.to_numpy(zero_copy_only=False))
