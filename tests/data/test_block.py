"""The block's form in memory: what is copied, what is a view, and what keeps it alive."""

from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pyarrow as pa
import pytest

from raytrain.data.samples.block import Batch, Header, Prepared, batches_of, to_table
from raytrain.record.status import Failure

KIB = 1024


def prepared(samples: list[np.ndarray], first: int = 0, **options) -> Prepared:
    count = len(samples)
    like = samples[0] if samples else np.zeros((2, 3, 1), np.uint8)
    return Prepared.of(
        samples, like, np.arange(count) + 50 + first, np.arange(count) + 70 + first, Header(0, first, {}, {}), **options
    )


def flat(num_bytes: int, count: int = 2) -> list[np.ndarray]:
    """Samples of so many bytes, of one row."""
    rng = np.random.default_rng(num_bytes)
    return [rng.integers(0, 255, (1, num_bytes, 1), np.uint8) for _ in range(count)]


@pytest.mark.parametrize(
    ("num_bytes", "num_pieces"),
    [(128 * KIB, 2), (128 * KIB - 64, 1), (128 * KIB + 64, 2), (128 * KIB + 65, 1), (128 * KIB + 32, 1), (8, 1)],
)
def test_samples_of_128_kib_and_whole_cache_lines_are_pieces_of_their_own(num_bytes, num_pieces):
    samples = flat(num_bytes)
    made = prepared(samples)
    assert len(made.pieces) == num_pieces
    assert len(prepared(samples, together=True).pieces) == 1
    assert b"".join(piece.tobytes() for piece in made.pieces) == b"".join(sample.tobytes() for sample in samples)


def test_what_need_not_be_copied_is_not():
    [small], large = flat(8, 1), flat(128 * KIB)
    assert np.shares_memory(prepared([small]).pieces[0], small), "one sample is the whole batch"
    assert not np.shares_memory(prepared([small], together=True).pieces[0], small)
    assert prepared([small], together=True).pieces[0].shape == (1, 1, 8, 1)
    assert all(map(np.shares_memory, prepared(large).pieces, large))
    copied = prepared(large, together=True).pieces
    assert [piece.shape for piece in copied] == [(2, 1, 128 * KIB, 1)]
    assert prepared([]).pieces == prepared([], together=True).pieces == []


@pytest.mark.parametrize(
    ("order", "axes"),
    [((0, 1, 2), (0, 1, 2)), ((2, 0, 1), (2, 0, 1)), ((1, 0, 2), (1, 0, 2)), ((2, 1, 0), (2, 1, 0))],
)
def test_axes_are_told_from_the_slowest_in_memory(order, axes):
    shape = (3, 5, 7)
    memory = np.arange(105, dtype=np.uint8).reshape([shape[axis] for axis in order])
    sample = memory.transpose(np.argsort(order))
    assert sample.shape == shape
    made = prepared([sample])
    assert (made.axes, made.shape, made.dtype) == (axes, shape, "|u1")
    assert np.shares_memory(made.pieces[0], memory), "in the order that it lies in"
    assert np.array_equal(batches_of(to_table([made]))[0].image[0], sample)


def test_an_image_upside_down_and_one_of_another_order_come_back():
    image = np.arange(105, dtype=np.int16).reshape(3, 5, 7)
    other = np.asfortranarray(image + 1)
    made = prepared([image[::-1], other])
    assert made.axes == (0, 1, 2), "a negative stride is as long as a positive one"
    again = batches_of(to_table([made]))[0].image
    assert np.array_equal(again[0], image[::-1])
    assert np.array_equal(again[1], image + 1)
    assert again.dtype == np.int16


def test_the_row_of_a_block():
    batches = [prepared(flat(128 * KIB)), prepared([], first=1), prepared(flat(6, 3), first=2)]
    table = to_table(batches)
    assert table.num_rows == 1
    assert table.column_names == ["header", "numbers", "0", "1", "2"]
    assert [table.column(str(n)).type.byte_width for n in range(3)] == [128 * KIB, 128 * KIB, 18]
    told = json.loads(table.column("header")[0].as_py())
    assert [(h["batch"], h["pieces"], h["num_samples"]) for h in told] == [(0, 2, 2), (1, 0, 0), (2, 1, 3)]
    numbers = np.frombuffer(table.column("numbers")[0].as_py(), np.int64)
    assert numbers.tolist() == [50, 51, 70, 71, 52, 53, 54, 72, 73, 74]
    for batch, label in zip(batches_of(table), ([50, 51], [], [52, 53, 54]), strict=True):
        assert batch.label.tolist() == label
        assert batch.key.tolist() == [number + 20 for number in label]


def test_numbers_are_int64_whatever_they_were():
    made = Prepared.of(
        flat(4),
        flat(4)[0],
        np.array([1, -2], np.int16),
        np.array([9, 3], np.int32),
        Header(0, 0, {}, {}),
        together=True,
    )
    [again] = batches_of(to_table([made]))
    assert (again.label.dtype, again.key.dtype) == (np.int64, np.int64)
    assert (again.label.tolist(), again.key.tolist()) == ([1, -2], [9, 3])


def test_a_header_says_nothing_that_it_was_not_told():
    plain = Header(4, 2, {"read": 0.5}, {"read": 0.25})
    assert (plain.failures, plain.repeated, plain.read_bytes) == ([], 0, 0)
    assert (plain.node, plain.torch_imported) == ("", False)
    told = Header(
        4,
        2,
        {"read": 0.5},
        {"read": 0.25},
        [Failure(9, "a.jpg", "bad")],
        repeated=3,
        read_bytes=123,
        node="0a",
        torch_imported=True,
    )
    made = Prepared.of([], np.zeros((1, 1, 1)), np.arange(0), np.arange(0), told)
    assert batches_of(to_table([made]))[0].header == told


def side_by_side(samples: list[np.ndarray], gap: int = 0, step: int = 1) -> tuple[pa.Table, np.ndarray]:
    """A block as the object store has it: its pieces in one stretch of memory, `gap` bytes apart."""
    table, size = to_table([prepared(samples)]), samples[0].nbytes
    memory = np.zeros(len(samples) * (size + gap), np.uint8)
    whole = pa.py_buffer(memory)
    columns = {name: table.column(name) for name in ("header", "numbers")}
    for number, place in enumerate(range(len(samples))[::step]):
        start = place * (size + gap)
        memory[start : start + size] = samples[number].reshape(-1)
        piece = whole.slice(start, size)
        columns[str(number)] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), 1, [None, piece])
    return pa.table(columns), memory


@pytest.mark.parametrize("count", [2, 3])
def test_pieces_side_by_side_are_read_without_a_copy(count):
    samples = flat(128 * KIB, count)
    table, memory = side_by_side(samples)
    [batch] = batches_of(table)
    assert np.array_equal(batch.image, samples)
    assert np.shares_memory(batch.image, memory)
    assert not batch.image.flags.writeable


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("gap", "step"), [(64, 1), (0, -1)])
def test_pieces_that_lie_elsewhere_are_put_together(count, gap, step):
    samples = flat(128 * KIB, count)
    table, memory = side_by_side(samples, gap, step)
    [batch] = batches_of(table)
    assert np.array_equal(batch.image, samples)
    assert not np.shares_memory(batch.image, memory)


def test_a_block_that_was_written_and_read_comes_back():
    stream = pa.BufferOutputStream()
    table = to_table([prepared(flat(6, 3))])
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    [again] = batches_of(pa.ipc.open_stream(stream.getvalue()).read_all())
    assert np.array_equal(again.image, flat(6, 3))
    assert (again.label.tolist(), again.key.tolist()) == ([50, 51, 52], [70, 71, 72])


def test_a_view_keeps_the_blocks_memory_and_only_as_long_as_it_is_there():
    table, memory = side_by_side(flat(128 * KIB))
    alive = weakref.ref(memory)
    [batch] = batches_of(table)
    assert isinstance(batch, Batch)
    del table, memory
    gc.collect()
    assert alive() is not None
    del batch
    gc.collect()
    assert alive() is None
