"""The block: what went in comes out, whatever its form and however the table has travelled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.data import block
from raytrain.data.samples.block import Failure, Header, Prepared, batches_of, to_table

few = settings(deadline=None, max_examples=80)
DTYPES = ("|u1", "|i1", "|b1", "<i2", ">i2", "<u4", "<i8", "<f2", "<f4", ">f4", "<f8", "<c8")


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Samples of 128 bytes are pieces of their own here, so that small examples have some."""
    with pytest.MonkeyPatch.context() as changed:
        changed.setattr(block, "PIECE_BYTES", 128)
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
    repeated=st.integers(0, 9),
    read_bytes=st.integers(0, 2**50),
    node=words,
    torch_imported=st.booleans(),
)


@st.composite
def laid_out(draw, shape, dtype, count) -> list[np.ndarray]:
    """Samples whose axes lie in memory in any order, forwards or backwards, each as it likes."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    samples = []
    for _ in range(count):
        order = draw(st.permutations(range(len(shape))))
        bytes_needed = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = rng.integers(0, 2 if dtype == "|b1" else 100, bytes_needed, np.uint8)
        memory = raw.view(dtype).reshape([shape[axis] for axis in order])
        sample = memory.transpose(np.argsort(order))
        samples.append(sample[::-1] if shape and draw(st.booleans()) else sample)
    return samples


@st.composite
def batches(draw) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, Header, np.ndarray]:
    """Samples, labels, keys, header, and what the samples are like."""
    shape = draw(
        st.sampled_from([(), (1,), (64,), (3, 5), (2, 3, 1), (8, 8, 2), (4, 16, 4), (2, 2, 2, 16), (0, 3), (4, 4, 3)])
    )
    dtype = draw(st.sampled_from(DTYPES))
    count = draw(st.integers(0, 4))
    samples = draw(laid_out(shape, dtype, count))
    numbers = st.lists(st.integers(-(2**63), 2**63 - 1), min_size=count, max_size=count)
    label, keys = (np.array(draw(numbers), np.int64) for _ in range(2))
    return samples, label, keys, draw(headers), samples[0] if samples else np.empty(shape, dtype)


def prepared(given_batches, together: bool) -> list[Prepared]:
    """The batches of a block; those beside others lie together, as the producer has it."""
    return [
        Prepared.of(samples, like, label, keys, header, together=together or len(given_batches) > 1)
        for samples, label, keys, header, like in given_batches
    ]


def written_and_read(table: pa.Table) -> pa.Table:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(stream.getvalue()).read_all()


def other_row(table: pa.Table) -> pa.Table:
    """Of the same columns, with other bytes in them."""
    columns = {"header": pa.array(["[]"]), "numbers": pa.array([b"\x07" * 16], pa.large_binary())}
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


def check(again, given_batches) -> None:
    for batch, (samples, label, keys, header, like) in zip(again, given_batches, strict=True):
        assert batch.image.dtype == like.dtype.newbyteorder("="), "as torch takes it"
        assert batch.image.shape == (len(samples), *like.shape)
        for one, other in zip(batch.image, samples, strict=True):
            here = np.ascontiguousarray(one).astype(like.dtype)
            assert here.tobytes() == np.ascontiguousarray(other).tobytes()
        assert (batch.label.dtype, batch.key.dtype) == (np.int64, np.int64)
        assert batch.label.tolist() == label.tolist() and batch.key.tolist() == keys.tolist()
        assert batch.header == header


@pytest.mark.parametrize("travels", TRAVELS)
@settings(few, max_examples=40)
@given(given_batches=st.lists(batches(), min_size=1, max_size=3), together=st.booleans())
def test_what_went_into_a_block_comes_out(travels, given_batches, together):
    table = to_table(prepared(given_batches, together))
    assert table.num_rows == 1
    check(batches_of(TRAVELS[travels](table)), given_batches)


@few
@given(batches(), st.booleans())
def test_only_what_must_be_is_copied_into_a_block(batch, together):
    samples, *_, like = batch
    [made] = prepared([batch], together)
    table = to_table([made])
    memory = [
        np.frombuffer(table.column(n).chunk(0).buffers()[1] or b"", np.uint8) for n in range(2, table.num_columns)
    ]
    large = like.nbytes >= 128 and like.nbytes % 64 == 0
    assert len(memory) == (0 if not samples else len(samples) if large and not together else 1)
    native = like.dtype.isnative
    in_place = [native and like.strides == each.strides and min(each.strides, default=0) >= 0 for each in samples]
    for number, sample in enumerate(samples):
        if not together and (large or len(samples) == 1) and in_place[number] and sample.nbytes:
            assert np.shares_memory(memory[number], sample)
        if together and sample.nbytes:
            assert not np.shares_memory(memory[0], sample)


@few
@given(st.lists(batches(), min_size=1, max_size=3), st.booleans())
def test_a_block_in_one_stretch_of_memory_is_read_in_place(given_batches, together):
    """Written as Ray writes it: pieces of whole cache lines lie side by side, and no batch is copied."""
    stream = pa.BufferOutputStream()
    table = to_table(prepared(given_batches, together))
    with pa.ipc.new_stream(stream, table.schema, options=pa.ipc.IpcWriteOptions()) as writer:
        writer.write_table(table)
    whole = stream.getvalue()
    memory = np.frombuffer(whole, np.uint8)
    for batch in batches_of(pa.ipc.open_stream(whole).read_all()):
        assert not batch.image.flags.writeable or not batch.image.size
        assert not batch.label.flags.writeable and not batch.key.flags.writeable
        for array in (batch.image, batch.label, batch.key):
            assert not array.size or np.shares_memory(array, memory)


@few
@given(batches(), st.integers(1, 3))
def test_batches_of_one_block_are_independent(batch, count):
    """A block of several holds what blocks of one would."""
    samples, label, keys, header, like = batch
    several = [(samples, label + 0, keys + 0, replace(header, batch=number), like) for number in range(count)]
    for number, again in enumerate(batches_of(to_table(prepared(several, True)))):
        check([again], several[number : number + 1])
