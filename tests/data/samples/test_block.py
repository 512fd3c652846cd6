"""The block's form in memory: what is copied, what is a view, and what keeps it alive."""

from __future__ import annotations

import gc
import json
import weakref
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from raytrain.data.samples.block import PACKED_BYTES, Batch, Header, Prepared, RaggedArray, batches_of, to_table
from raytrain.data.samples.collate import Column, columns_of, dense, ragged, without_samples
from raytrain.record.status import Failure

KIB = 1024
EMPTY = Header(0, 0, {}, {})


def prepared(samples: list[np.ndarray], first: int = 0, *, together: bool = False, collate=None, **fields) -> Prepared:
    """Of images and labels, and of more fields by name."""
    count = len(samples)
    values = {"image": samples, "label": [np.int64(50 + first + n) for n in range(count)], **fields}
    rows = [{name: each[place] for name, each in values.items()} for place in range(count)]
    columns = columns_of(rows, collate or {}, str, together=together)
    return Prepared(columns, np.arange(count) + 70 + first, Header(0, first, {}, {}))


def without(made: Prepared, number: int) -> Prepared:
    """A batch of the same fields and no samples."""
    columns = {name: without_samples(column) for name, column in made.columns.items()}
    return Prepared(columns, made.key[:0], replace(made.header, batch=number))


def flat(num_bytes: int, count: int = 2) -> list[np.ndarray]:
    """Samples of so many bytes, of one row."""
    rng = np.random.default_rng(num_bytes)
    return [rng.integers(0, 255, (1, num_bytes, 1), np.uint8) for _ in range(count)]


# --- columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_bytes", "num_pieces"),
    [(128 * KIB, 2), (128 * KIB - 64, 1), (128 * KIB + 64, 2), (128 * KIB + 65, 1), (128 * KIB + 32, 1), (8, 1)],
)
def test_samples_of_128_kib_and_whole_cache_lines_are_pieces_of_their_own(num_bytes, num_pieces):
    samples = flat(num_bytes)
    made = dense(samples)
    assert len(made.pieces) == num_pieces
    assert len(dense(samples, together=True).pieces) == 1
    assert b"".join(piece.tobytes() for piece in made.pieces) == b"".join(sample.tobytes() for sample in samples)
    assert made.nbytes == 2 * num_bytes


def test_what_need_not_be_copied_is_not():
    [small], large = flat(8, 1), flat(128 * KIB)
    assert np.shares_memory(dense([small]).pieces[0], small), "one sample is the whole batch"
    assert not np.shares_memory(dense([small], together=True).pieces[0], small)
    assert dense([small], together=True).pieces[0].shape == (1, 1, 8, 1)
    assert all(map(np.shares_memory, dense(large).pieces, large))
    copied = dense(large, together=True).pieces
    assert [piece.shape for piece in copied] == [(2, 1, 128 * KIB, 1)]
    assert without_samples(dense(large)).pieces == []


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
def test_axes_are_told_from_the_slowest_in_memory(axes):
    shape = (3, 5, 7)
    memory = np.arange(105, dtype=np.uint8).reshape([shape[axis] for axis in axes])
    sample = memory.transpose(np.argsort(axes))
    assert sample.shape == shape
    made = prepared([sample])
    image = made.columns["image"]
    assert (image.axes, image.shape, image.dtype) == (axes, shape, "uint8")
    assert np.shares_memory(image.pieces[0], memory), "in the order that it lies in"
    assert np.array_equal(batches_of(to_table([made]))[0].fields["image"][0], sample)


def test_an_image_upside_down_and_one_of_another_order_come_back():
    image = np.arange(105, dtype=np.int16).reshape(3, 5, 7)
    other = np.asfortranarray(image + 1)
    made = prepared([image[::-1], other])
    assert made.columns["image"].axes == (0, 1, 2), "a negative stride is as long as a positive one"
    again = batches_of(to_table([made]))[0].fields["image"]
    assert np.array_equal(again[0], image[::-1])
    assert np.array_equal(again[1], image + 1)
    assert again.dtype == np.int16


def test_numbers_travel_in_the_machines_byte_order_whatever_they_were():
    rows = [{"x": np.array([1.5], ">f4"), "n": np.array(7, ">i2")}, {"x": np.array([2.5], "<f4"), "n": np.int16(8)}]
    [again] = batches_of(to_table([Prepared(columns_of(rows, {}, str), np.arange(2), EMPTY)]))
    assert [again.fields[name].dtype.isnative for name in "xn"] == [True, True]
    assert again.fields["x"].tolist() == [[1.5], [2.5]]
    assert again.fields["n"].tolist() == [7, 8]


# --- the row ------------------------------------------------------------------------------------------------------


def test_the_row_of_a_block():
    large = prepared(flat(128 * KIB))
    batches = [large, without(large, 1), prepared(flat(3 * KIB, 3), first=2)]
    table = to_table(batches)
    assert table.num_rows == 1
    assert table.column_names == ["header", "packed", "0", "1", "2"]
    assert [table.column(str(n)).type.byte_width for n in range(3)] == [128 * KIB, 128 * KIB, 9 * KIB]
    told = json.loads(table.column("header")[0].as_py())
    assert [(h["batch"], h["num_samples"], h["in_parts"]) for h in told] == [
        (0, 2, False),
        (1, 0, False),
        (2, 3, False),
    ]
    image = ["image", "dense", "uint8", [1, 128 * KIB, 1], [0, 1, 2], 2, 256 * KIB]
    assert told[0]["fields"] == [image, ["label", "dense", "int64", [], [], -1, 16]]
    packed = np.frombuffer(table.column("packed")[0].as_py(), np.int64)
    assert packed.tolist() == [50, 51, 70, 71, 52, 53, 54, 0, 72, 73, 74, 0], "16 bytes each or a multiple"
    for batch, label in zip(batches_of(table), ([50, 51], [], [52, 53, 54]), strict=True):
        assert batch.fields["label"].tolist() == label
        assert batch.key.tolist() == [number + 20 for number in label]
        assert batch.nbytes == sum(each.nbytes for each in batch.fields.values())


def test_a_field_of_less_than_4_kib_is_put_beside_others():
    for num_bytes, apart in ((PACKED_BYTES, True), (PACKED_BYTES - 16, False)):
        table = to_table([prepared(flat(num_bytes // 2))])
        assert ("0" in table.column_names) == apart


def test_nothing_in_a_block_is_pickled():
    """Text, bytes and numbers stand in it as they are, so that whoever reads it runs nothing."""
    words = ["Grüße", "日本"]
    made = prepared(
        flat(8), text=words, data=[b"\0\1", b""], x=[np.arange(2.0), np.arange(3.0)], collate={"x": ragged()}
    )
    table = to_table([made])
    assert [str(field.type) for field in table.schema] == ["string", "large_binary"]
    packed = table.column("packed")[0].as_py()
    parts = [
        b"".join(each.tobytes() for each in flat(8)),
        np.int64([50, 51]),
        "".join(words).encode(),
        np.int64([7, 6]),
    ]
    parts += [b"\0\1", np.int64([2, 0]), np.float64([0, 1, 0, 1, 2]), np.int64([2, 3]), np.int64([70, 71])]
    by_hand = [bytes(part) for part in parts]
    assert packed == b"".join(part + bytes(-len(part) % 16) for part in by_hand)


def test_numbers_lie_where_a_processor_wants_them():
    """Whatever odd number of bytes lies before them."""
    made = prepared(flat(1, 3), odd=[b"x"] * 3, z=[np.array([1j], np.complex128)] * 3)
    for batch in batches_of(written_and_read(to_table([made, made]))):
        z = batch.fields["z"]
        assert z.flags.aligned and z.tolist() == [[1j]] * 3
        assert batch.key.flags.aligned and batch.fields["label"].flags.aligned


def test_a_block_without_any_field_or_sample():
    [again] = batches_of(to_table([Prepared({}, np.arange(0), EMPTY)]))
    assert (again.fields, again.key.tolist(), again.part, again.nbytes) == ({}, [], None, 0)


def test_a_header_says_nothing_that_it_was_not_told():
    plain = Header(4, 2, {"read": 0.5}, {"read": 0.25})
    assert (plain.failures, plain.left_out, plain.filtered, plain.repeated, plain.read_bytes) == ([], [], 0, 0, 0)
    assert (plain.node, plain.torch_imported) == ("", False)
    told = Header(
        4,
        2,
        {"read": 0.5},
        {"read": 0.25},
        [Failure(9, "a.jpg", "bad")],
        [9, 11],
        filtered=1,
        repeated=3,
        read_bytes=123,
        node="0a",
        torch_imported=True,
    )
    assert batches_of(to_table([Prepared({}, np.arange(0), told)]))[0].header == told


def test_a_batch_knows_the_forms_of_its_fields_even_without_samples():
    fields = {"text": ["a"], "data": [b"a"], "x": [np.zeros(2)], "y": [np.zeros(2)]}
    made = prepared(flat(8, 1), collate={"x": ragged()}, **fields)
    forms = {"image": "dense", "label": "dense", "text": "text", "data": "bytes", "x": "ragged", "y": "dense"}
    [first, second] = batches_of(to_table([made, without(made, 1)]))
    assert first.forms == second.forms == forms
    assert (second.fields["text"], second.fields["data"]) == ([], [])
    assert isinstance(second.fields["x"], RaggedArray) and second.fields["x"].values.shape == (0,)


def test_parts_travel_where_there_are_some():
    made = prepared(flat(8, 3))
    assert batches_of(to_table([made]))[0].part is None
    [again] = batches_of(to_table([replace(made, part=np.array([0, 1, 0]))]))
    assert (again.part.dtype, again.part.tolist()) == (np.int64, [0, 1, 0])
    assert again.key.tolist() == [70, 71, 72]


# --- memory -------------------------------------------------------------------------------------------------------


def side_by_side(made: Prepared, gap: int = 0, step: int = 1) -> tuple[pa.Table, np.ndarray]:
    """A block as the object store has it: its pieces in one stretch of memory, `gap` bytes apart."""
    table = to_table([made])
    names = table.column_names[2:]
    sizes = [table.column(name).type.byte_width for name in names]
    memory = np.zeros(sum(sizes) + gap * len(sizes), np.uint8)
    whole = pa.py_buffer(memory)
    columns = {name: table.column(name) for name in ("header", "packed")}
    starts = np.cumsum([0, *(size + gap for size in sizes[::step])])[: len(sizes)][::step].tolist()
    for name, start, size in zip(names, starts, sizes, strict=True):
        memory[start : start + size] = np.frombuffer(table.column(name).chunk(0).buffers()[1], np.uint8)
        piece = pa.FixedSizeBinaryArray.from_buffers(pa.binary(size), 1, [None, whole.slice(start, size)])
        columns[name] = piece
    return pa.table(columns), memory


def written_and_read(table: pa.Table) -> pa.Table:
    stream = pa.BufferOutputStream()
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return pa.ipc.open_stream(stream.getvalue()).read_all()


@pytest.mark.parametrize("count", [2, 3])
def test_pieces_side_by_side_are_read_without_a_copy(count):
    samples = flat(128 * KIB, count)
    table, memory = side_by_side(prepared(samples))
    [batch] = batches_of(table)
    assert np.array_equal(batch.fields["image"], samples)
    assert np.shares_memory(batch.fields["image"], memory)
    assert not batch.fields["image"].flags.writeable


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("gap", "step"), [(64, 1), (0, -1)])
def test_pieces_that_lie_elsewhere_are_put_together(count, gap, step):
    samples = flat(128 * KIB, count)
    table, memory = side_by_side(prepared(samples), gap, step)
    [batch] = batches_of(table)
    assert np.array_equal(batch.fields["image"], samples)
    assert not np.shares_memory(batch.fields["image"], memory)


def test_two_large_fields_beside_small_ones_are_copied_once_and_read_in_place():
    """The block refers to what the last stage left; what lies in the object store is not copied again."""
    images = flat(128 * KIB, 3)
    depth = [np.full((128, 256), number, np.float32) for number in range(3)]
    made = prepared(images, depth=depth, text=["a", "b", "c"], weight=[np.float32(n) for n in range(3)])
    table = to_table([made])
    referred = [np.frombuffer(table.column(str(n)).chunk(0).buffers()[1], np.uint8) for n in range(6)]
    assert all(map(np.shares_memory, referred, [*images, *depth]))
    assert "6" not in table.column_names
    stored, memory = side_by_side(made)
    [batch] = batches_of(stored)
    for name, expected in (("image", images), ("depth", depth)):
        assert np.shares_memory(batch.fields[name], memory)
        assert np.array_equal(batch.fields[name], expected)
    assert (batch.fields["text"], batch.fields["weight"].tolist()) == (["a", "b", "c"], [0, 1, 2])


def test_large_samples_that_a_stage_left_channels_first_are_not_copied():
    samples = [np.random.default_rng(n).random((3, 64, 256), np.float32).transpose(1, 2, 0) for n in range(4)]
    table = to_table([prepared(samples)])
    addresses = [table.column(str(n)).chunk(0).buffers()[1].address for n in range(4)]
    assert addresses == [sample.__array_interface__["data"][0] for sample in samples]


def test_a_block_that_was_written_and_read_comes_back():
    [again] = batches_of(written_and_read(to_table([prepared(flat(6, 3))])))
    assert np.array_equal(again.fields["image"], flat(6, 3))
    assert (again.fields["label"].tolist(), again.key.tolist()) == ([50, 51, 52], [70, 71, 72])


def test_a_view_keeps_the_blocks_memory_and_only_as_long_as_it_is_there():
    table, memory = side_by_side(prepared(flat(128 * KIB)))
    alive = weakref.ref(memory)
    [batch] = batches_of(table)
    assert isinstance(batch, Batch)
    del table, memory
    gc.collect()
    assert alive() is not None
    del batch
    gc.collect()
    assert alive() is None


def test_a_column_of_a_prepared_batch_tells_its_size():
    made = prepared(flat(8, 3))
    assert made.nbytes == 3 * 8 + 3 * 8
    assert Column("dense", "uint8", (8,), (0,), []).nbytes == 0
