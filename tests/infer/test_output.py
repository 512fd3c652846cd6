"""The folder of predictions: what stands there is whole, is this job's, and has each id once."""

from __future__ import annotations

import json
import re
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet
import pytest

from raytrain.errors import ConfigError, PredictionError
from raytrain.infer.blocks import Block, shards_of
from raytrain.infer.desk import Piece, Work
from raytrain.infer.output.folder import About, OutputFolder
from raytrain.infer.output.gather import Gathering
from raytrain.record.status import Failure

SHARDS = shards_of(10, 4)
ABOUT = About("job", {"model": "abc", "data.stages": ["decode", {"resize": {"size": 8}}]}, 10, 3)
FAILED = Failure(5, "a.jpg", "cut off")


def ids(*numbers: int) -> pa.Table:
    return pa.table({"id": pa.array(numbers, pa.int64())})


def test_a_shard_that_is_whole_is_not_done_again(tmp_path):
    folder = OutputFolder(str(tmp_path / "out"))
    assert folder.begin(ABOUT, SHARDS) == {}
    folder.write(0, ids(0, 1, 2, 3), [])
    folder.write(1, ids(4, 6, 7), [FAILED])
    folder.write(2, ids(8), [])  # of which a row is missing
    done = OutputFolder(str(tmp_path / "out")).begin(ABOUT, SHARDS)
    assert {number: (each.rows, each.errors) for number, each in done.items()} == {0: (4, 0), 1: (3, 1)}
    table = pyarrow.parquet.read_table(tmp_path / "out" / "_errors-00001.parquet")
    assert table.to_pylist() == [{"id": 5, "where": "a.jpg", "stage": "decode", "reason": "cut off"}]
    folder.write(1, ids(4, 5, 6, 7), [])
    assert not (tmp_path / "out" / "_errors-00001.parquet").exists(), "those of a shard that was cut off"
    assert not list((tmp_path / "out").glob(".*")), "no draft is left"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    OutputFolder(str(tmp_path)).begin(ABOUT, SHARDS)
    other = About("job", {**ABOUT.made_by, "model": "def"}, 10, 3)
    with pytest.raises(ConfigError, match=r"holds the predictions of another job \(model\); give output.path another"):
        OutputFolder(str(tmp_path)).begin(other, SHARDS)
    (tmp_path / "_predictions.json").write_text("{")
    with pytest.raises(ConfigError, match=r"_predictions.json cannot be read: .*; give output.path another folder"):
        OutputFolder(str(tmp_path)).begin(ABOUT, SHARDS)
    for text, why in [
        ("[]", "all of it: Input should be"),
        ('{"made_by": 3}', "is of no run: "),
        (json.dumps({**asdict(ABOUT), "made_by": None}), "is of no run: made_by: "),
        (json.dumps({**asdict(ABOUT), "more": 1}), "is of no run: more: "),
        ("[" * 100_000, "cannot be read: "),
    ]:
        (tmp_path / "_predictions.json").write_text(text)
        with pytest.raises(
            ConfigError, match=rf"_predictions.json .*{re.escape(why)}.*; give output.path another folder"
        ):
            OutputFolder(str(tmp_path)).begin(ABOUT, SHARDS)
    (tmp_path / "_predictions.json").unlink()
    (tmp_path / "own.parquet").touch()
    with pytest.raises(ConfigError, match="holds Parquet files and no _predictions.json"):
        OutputFolder(str(tmp_path)).begin(ABOUT, SHARDS)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="output.path: cannot use .*/file"):
        OutputFolder(str(tmp_path / "file")).begin(ABOUT, SHARDS)


def test_a_run_that_wrote_no_shard_leaves_the_folder_to_any_other(tmp_path):
    other = About("job", {**ABOUT.made_by, "model": "def"}, 10, 3)
    folder = OutputFolder(str(tmp_path))
    folder.begin(other, SHARDS)
    with pytest.raises(PredictionError, match="the model failed"), folder.left_as_found():
        raise PredictionError("the model failed")
    assert not list(tmp_path.iterdir())
    folder.begin(ABOUT, SHARDS)
    with pytest.raises(PredictionError), folder.left_as_found():
        folder.write(0, ids(0, 1, 2, 3), [])
        raise PredictionError("the model failed")
    with pytest.raises(ConfigError, match="holds the predictions of another job"):
        folder.begin(other, SHARDS)
    assert len(folder.begin(ABOUT, SHARDS)) == 1


def test_what_cannot_be_written_or_read_is_said(tmp_path):
    folder = OutputFolder(str(tmp_path / "out"))
    folder.begin(ABOUT, SHARDS)
    (tmp_path / "out" / "part-00000.parquet").write_text("no Parquet")
    with pytest.raises(PredictionError, match=r"cannot read .*part-00000.parquet"):
        folder.begin(ABOUT, SHARDS)
    (tmp_path / "out" / ".part-00001.parquet.part").mkdir()
    with pytest.raises(PredictionError, match=r"cannot write .*part-00001.parquet: .*; what was finished before"):
        folder.write(1, ids(4), [])
    (tmp_path / "out" / "_errors-00002.parquet").mkdir()
    with pytest.raises(PredictionError, match=r"cannot remove .*_errors-00002.parquet, of a shard done anew"):
        folder.write(2, ids(8, 9), [])


def test_no_half_file_is_left(tmp_path):
    folder = OutputFolder(str(tmp_path))
    folder.begin(ABOUT, SHARDS)
    (tmp_path / "part-00001.parquet").mkdir()  # so that the draft is written and cannot take its place
    with pytest.raises(PredictionError, match=r"cannot write .*part-00001.parquet"):
        folder.write(1, ids(4), [])
    assert not list(tmp_path.glob(".*"))


def test_what_a_finished_folder_says(tmp_path):
    folder = OutputFolder(str(tmp_path))
    folder.begin(ABOUT, SHARDS)
    folder.finish(About(**{**ABOUT.__dict__, "finished": True, "rows": 9, "errors": 1}))
    assert json.loads((tmp_path / "_predictions.json").read_text())["rows"] == 9
    assert folder.about().finished


@pytest.fixture
def gathering() -> Gathering:
    """Of one shard, ids 4 to 7, in two blocks."""
    return Gathering([Block(0, 1, range(4, 6)), Block(1, 1, range(6, 8))], SHARDS)


def test_rows_lie_by_id_with_their_fields_beside_them(gathering):
    for number in (1, 0):
        first = 4 + 2 * number
        kept = pa.table({"id": [first, first + 1], "name": [f"n{first}", f"n{first + 1}"]})
        gathering.prepared(Work(number), kept, [FAILED] if number == 0 else [])
    later = pa.table({"id": [7], "prediction": ["b"]}), pa.table({"id": [6], "prediction": ["a"]})
    gathering.predicted(Piece(Work(1), 0), later[0], [])
    gathering.predicted(Piece(Work(1), 1), later[1], [])
    gathering.predicted(Piece(Work(0), 0), pa.table({"id": [4], "prediction": ["c"]}), [])
    found = gathering.complete(1)
    assert found.rows.to_pydict() == {"id": [4, 6, 7], "name": ["n4", "n6", "n7"], "prediction": ["c", "a", "b"]}
    assert found.failures == [FAILED]


def test_what_was_done_twice_counts_once(gathering):
    gathering.prepared(Work(0), ids(4, 5), [])
    gathering.predicted(Piece(Work(0)), ids(4, 5), [])
    gathering.prepared(Work(0), ids(4, 5), [])
    gathering.prepared(Work(1), ids(6, 7), [])
    gathering.forget(Work(1))  # taken apart
    gathering.prepared(Work(1, 0), ids(6), [])
    gathering.predicted(Piece(Work(1, 0)), ids(6), [])
    gathering.given_up(Work(1, 1), Failure(7, "row 7", "its process died each time", "process"))
    found = gathering.complete(1)
    assert found.rows.column("id").to_pylist() == [4, 5, 6]
    assert [each.id for each in found.failures] == [7]


def test_a_shard_without_any_row_has_the_columns_of_others(gathering):
    many = Gathering([Block(0, 0, range(4)), Block(1, 1, range(4, 8))], SHARDS)
    many.prepared(Work(0), ids(0, 1, 2, 3), [])
    many.predicted(Piece(Work(0)), pa.table({"id": [0, 1, 2, 3], "prediction": [1, 1, 0, 2]}), [])
    assert many.complete(0).rows.num_rows == 4
    many.prepared(Work(1), ids(), [Failure(index, "x", "y") for index in range(4, 8)])
    found = many.complete(1)
    assert found.rows.column_names == ["id", "prediction"] and len(found.failures) == 4


def test_a_field_of_two_types_is_said(gathering):
    for number, values in ((0, ["a", "b"]), (1, [1, 2])):
        first = 4 + 2 * number
        gathering.prepared(Work(number), pa.table({"id": [first, first + 1], "name": values}), [])
        gathering.predicted(Piece(Work(number)), ids(first, first + 1), [])
    with pytest.raises(PredictionError, match="of one type in some blocks and of another in others: .*; leave it out"):
        gathering.complete(1)


def test_a_shard_that_lacks_an_id_is_never_written(gathering):
    gathering.prepared(Work(0), ids(4, 5), [])
    gathering.predicted(Piece(Work(0)), ids(4, 5), [])
    with pytest.raises(AssertionError, match="a row for each id of shard 1"):
        gathering.complete(1)


def test_two_jobs_do_not_write_into_one_folder_at_once(tmp_path):
    path, told = str(tmp_path / "out"), "another raytrain process is using .*/out; .* give output.path another"
    folder = OutputFolder(path)
    with folder.held():
        folder.begin(ABOUT, SHARDS)
        with pytest.raises(ConfigError, match=told), OutputFolder(path).held():
            raise AssertionError
    with folder.held():
        folder.write(0, ids(0, 1, 2, 3), [])
    assert pyarrow.parquet.read_table(path).num_rows == 4, "the lock is no part of the data"
    (tmp_path / "file").touch()
    a_file = OutputFolder(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="output.path: cannot use .*/file"), a_file.held():
        raise AssertionError
