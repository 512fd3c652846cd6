"""The block: what went in comes out, whatever its form and however the table has travelled."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_model import Drawn, DrawnBatch, batches, dense_fields, expected_padding

from raytrain.data.samples import block, collate
from raytrain.data.samples.block import Batch, Header, Prepared, RaggedArray, batches_of, to_table
from raytrain.data.samples.collate import Pad
from raytrain.record.status import Failure

few = settings(deadline=None, max_examples=80)


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Samples of 128 bytes are pieces of their own here, and fields of 256 apart, so that small examples have some."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(collate, "PIECE_BYTES", 128)
        changed.setattr(block, "PACKED_BYTES", 256)
        yield


words = st.text(max_size=8)
seconds = st.dictionaries(words, st.floats(0, 1e6), max_size=3)
headers = st.builds(
    Header,
    st.integers(0, 2**40),
    st.integers(0, 2**40),
    seconds,
    seconds,
    st.lists(st.builds(Failure, st.integers(0, 2**60), words, words), max_size=3),
    left_out=st.lists(st.integers(0, 2**60), max_size=3),
    filtered=st.integers(0, 9),
    repeated=st.integers(0, 9),
    read_bytes=st.integers(0, 2**50),
    node=words,
    torch_imported=st.booleans(),
)


def prepared(drawn: list[tuple[DrawnBatch, Header]], together: bool) -> list[Prepared]:
    """The batches of a block; those beside others lie together, as the producer has it."""
    together = together or len(drawn) > 1
    return [Prepared(each.columns(together=together), each.key, header, each.part) for each, header in drawn]


def written_and_read(table: pa.Table) -> pa.Table:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(stream.getvalue()).read_all()


def other_row(table: pa.Table) -> pa.Table:
    """Of the same columns, with other bytes in them."""
    columns = {"header": pa.array(["[]"]), "packed": pa.array([b"\x07" * 16], pa.large_binary())}
    for name in table.column_names[2:]:
        width = table.column(name).type.byte_width
        columns[name] = pa.array([b"\x07" * width], pa.binary(width))
    return pa.table(columns)


def by_name(table: pa.Table):
    return zip(table.column_names, table.columns, strict=True)


TRAVELS = {
    "as it is": lambda table: table,
    "written and read": written_and_read,
    "written twice": lambda table: written_and_read(written_and_read(table)),
    "a slice of several rows": lambda table: (
        pa.concat_tables([other_row(table), table, other_row(table)]).combine_chunks().slice(1, 1)
    ),
    "a slice that was written": lambda table: written_and_read(
        pa.concat_tables([other_row(table), table]).combine_chunks().slice(1, 1)
    ),
    "after an empty chunk": lambda table: pa.table(
        {name: pa.chunked_array([column.chunk(0).slice(0, 0), column.chunk(0)]) for name, column in by_name(table)}
    ),
    "one chunk of several": lambda table: pa.concat_tables([other_row(table), table]).slice(1),
}


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    """No numbers that are not equal to themselves are in the way."""
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()


def check_field(name: str, drawn: Drawn, batch: Batch) -> None:
    value, count = batch.fields[name], len(batch.key)
    if isinstance(drawn.like, str | bytes):
        assert value == drawn.values and batch.forms[name] == ("text" if isinstance(drawn.like, str) else "bytes")
    elif isinstance(drawn.rule, Pad) and count:
        for each, expected in zip(("", "_mask", "_length"), expected_padding(drawn, drawn.rule), strict=True):
            assert same_bits(batch.fields[name + each], expected)
    elif drawn.rule is not None and batch.forms[name] == "ragged":
        assert isinstance(value, RaggedArray) and value.lengths.dtype == np.int64
        assert value.lengths.tolist() == [len(each) for each in drawn.values]
        flat = [each.astype(drawn.dtype) for each in drawn.values] or [
            np.empty((0, *drawn.like.shape[1:]), drawn.dtype)
        ]
        assert same_bits(value.values, np.concatenate(flat))
    elif not isinstance(drawn.rule, Pad):
        expected = [np.asarray(each).astype(drawn.dtype) for each in drawn.values]
        assert same_bits(value, np.stack(expected) if expected else np.empty((0, *drawn.like.shape), drawn.dtype))
    else:
        assert (value.dtype, value.ndim, len(value)) == (drawn.dtype, drawn.like.ndim + 1, 0)


def check(again: list[Batch], drawn: list[tuple[DrawnBatch, Header]]) -> None:
    for batch, (each, header) in zip(again, drawn, strict=True):
        assert batch.fields.keys() == batch.forms.keys() >= each.fields.keys()
        for name, field in each.fields.items():
            check_field(name, field, batch)
        assert (batch.key.dtype, batch.key.tolist()) == (np.int64, each.key.tolist())
        assert (batch.part is None) == (each.part is None)
        assert batch.part is None or batch.part.tolist() == each.part.tolist()
        assert batch.header == header


drawn_batches = st.tuples(batches(), headers)


@pytest.mark.parametrize("travels", TRAVELS)
@settings(few, max_examples=40)
@given(drawn=st.lists(drawn_batches, min_size=1, max_size=3), together=st.booleans())
def test_what_went_into_a_block_comes_out(travels, drawn, together):
    """Batches of whichever fields, beside one another."""
    table = to_table(prepared(drawn, together))
    assert table.num_rows == 1
    check(batches_of(TRAVELS[travels](table)), drawn)


@few
@given(st.integers(1, 4).flatmap(dense_fields), st.booleans())
def test_only_what_must_be_is_copied_into_a_block(field, together):
    samples, like = field.values, field.like
    batch = DrawnBatch({"x": field}, np.arange(len(samples)))
    table = to_table(prepared([(batch, Header(0, 0, {}, {}))], together))
    memory = [np.frombuffer(table.column(n).chunk(0).buffers()[1], np.uint8) for n in range(2, table.num_columns)]
    large = like.nbytes >= 128 and like.nbytes % 64 == 0
    apart = like.nbytes * len(samples) >= 256
    assert len(memory) == (0 if not apart else len(samples) if large and not together else 1)
    for number, sample in enumerate(samples):
        in_place = like.dtype.isnative and like.strides == sample.strides and min(sample.strides, default=0) >= 0
        if apart and not together and in_place and sample.ndim and (large or len(samples) == 1):
            assert np.shares_memory(memory[number], sample)
        if apart and together:
            assert not np.shares_memory(memory[0], sample)


@few
@given(st.lists(drawn_batches, min_size=1, max_size=3), st.booleans())
def test_a_block_in_one_stretch_of_memory_is_read_in_place(drawn, together):
    """Written as Ray writes it: pieces of whole cache lines lie side by side, and no batch is copied."""
    stream = pa.BufferOutputStream()
    table = to_table(prepared(drawn, together))
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    whole = stream.getvalue()
    memory = np.frombuffer(whole, np.uint8)
    for batch in batches_of(pa.ipc.open_stream(whole).read_all()):
        found = [batch.key, *([] if batch.part is None else [batch.part])]
        for value in batch.fields.values():
            if isinstance(value, RaggedArray):
                found += [value.values, value.lengths]
            elif isinstance(value, np.ndarray):
                found.append(value)
        for array in found:
            assert not array.size or (np.shares_memory(array, memory) and not array.flags.writeable)
            assert array.flags.aligned


@few
@given(drawn_batches, st.integers(1, 3))
def test_batches_of_one_block_are_independent(drawn, count):
    """A block of several holds what blocks of one would."""
    for again in batches_of(to_table(prepared([drawn] * count, True))):
        check([again], [drawn])
