"""The folder of predictions: a Parquet file a shard, one of its errors where it has some, and `_predictions.json`.

What stands there under its name is whole. A local file is renamed when it is written, an object is put at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet
from pydantic import ConfigDict, TypeAdapter, ValidationError

from raytrain.data.sources.files import filesystem_of
from raytrain.errors import ConfigError, PredictionError, one_line
from raytrain.infer.blocks import Shard
from raytrain.record.holding import hold
from raytrain.record.status import Failure

ABOUT = "_predictions.json"
VERSION = 1
ERRORS = pa.schema([("id", pa.int64()), ("where", pa.string()), ("stage", pa.string()), ("reason", pa.string())])
NEITHER = "decode"  # the stage of a sample that could not be read or decoded
AFRESH = "give output.path another folder, or move this one away"


@dataclass(frozen=True)
class About:
    """What `_predictions.json` says.

    Attributes:
        made_by: what the predictions depend on, by key; of another, they would be others.
        samples: of the data.
        finished: all shards are there; `rows` and `errors` are of all of them then.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str
    made_by: dict[str, Any]
    samples: int
    shards: int
    finished: bool = False
    rows: int = 0
    errors: int = 0
    version: int = VERSION


@dataclass(frozen=True)
class Counts:
    """Of a shard that is done."""

    rows: int
    errors: int


class OutputFolder:
    """
    Args:
        path: local, or of a remote file system, `s3://…`.

    Raises:
        DataError: there is no such file system.
    """

    def __init__(self, path: str):
        self.path = path
        self._files, self._root = filesystem_of(path)
        self._is_local = isinstance(self._files, pyarrow.fs.LocalFileSystem)

    def begin(self, about: About, shards: Sequence[Shard]) -> dict[int, Counts]:
        """Take the folder for these predictions. Returns the shards that are done already, by number.

        Raises:
            ConfigError: there are other things in it, or it cannot be made or listed.
            PredictionError: what is in it cannot be read, or nothing written.
        """
        names = self._names()
        before = self.about() if ABOUT in names else None
        if before is None and any(name.endswith(".parquet") for name in names):
            raise ConfigError(f"{self.path} holds Parquet files and no {ABOUT}, so that they are no run's; {AFRESH}")
        if before is not None:
            _check_same(self.path, before.made_by, about.made_by)
        done = {}
        for shard in shards:
            if part_name(shard.number) in names:
                counts = self._counts(shard.number, errors_name(shard.number) in names)
                if counts.rows + counts.errors == len(shard):
                    done[shard.number] = counts
        if before is None:
            self._put(ABOUT, _told(about))
        return done

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A local folder is one process's at a time; of a remote one nobody can say.

        Raises:
            ConfigError: another process writes predictions there.
        """
        with contextlib.ExitStack() as stack:
            if self._is_local:
                self._names()  # makes it
                try:
                    stack.enter_context(hold(Path(self._root), "give output.path another folder"))
                except OSError as error:
                    raise ConfigError(f"output.path: cannot use {self.path}: {error.strerror}") from None
            yield

    @contextlib.contextmanager
    def left_as_found(self) -> Iterator[None]:
        """Another job may take the folder if no shard is there in the end: a mistake is mended and tried again."""
        try:
            yield
        finally:
            with contextlib.suppress(ConfigError, PredictionError):
                if not any(name.endswith(".parquet") for name in self._names()):
                    self._remove(ABOUT)

    def about(self) -> About:
        """
        Raises:
            ConfigError: the folder is no run's.
        """
        try:
            with self._files.open_input_stream(f"{self._root}/{ABOUT}") as file:
                tree = json.loads(file.read())
            return TypeAdapter(About).validate_python(tree)
        except ValidationError as error:
            first = error.errors()[0]
            why = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
            raise ConfigError(f"{self.path}/{ABOUT} is of no run: {why}; {AFRESH}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.path}/{ABOUT} cannot be read: {one_line(error, 200)}; {AFRESH}") from None

    def write(self, shard: int, rows: pa.Table, errors: Sequence[Failure]) -> None:
        """A shard; it is done when this returns.

        Raises:
            PredictionError: it cannot be written.
        """
        failed = errors_name(shard)
        if errors:
            rest = [(each.id, each.where, each.stage or NEITHER, each.reason) for each in errors]
            columns = dict(zip(ERRORS.names, map(list, zip(*rest, strict=True)), strict=True))
            self._put(failed, _parquet(pa.table(columns, schema=ERRORS)))
        else:
            self._remove(failed)  # of a shard that was cut off
        self._put(part_name(shard), _parquet(rows))

    def finish(self, about: About) -> None:
        """
        Raises:
            PredictionError: it cannot be written.
        """
        self._put(ABOUT, _told(about))

    def _counts(self, shard: int, has_errors: bool) -> Counts:
        return Counts(self._rows(part_name(shard)), self._rows(errors_name(shard)) if has_errors else 0)

    def _rows(self, name: str) -> int:
        try:
            return int(pyarrow.parquet.read_metadata(f"{self._root}/{name}", filesystem=self._files).num_rows)
        except Exception as error:  # noqa: BLE001 - of a damaged file pyarrow raises anything
            raise PredictionError(f"cannot read {self.path}/{name}: {one_line(error, 200)}; {AFRESH}") from None

    def _names(self) -> set[str]:
        try:
            if self._is_local:
                self._files.create_dir(self._root, recursive=True)
            found = self._files.get_file_info(pyarrow.fs.FileSelector(self._root, allow_not_found=True))
        except OSError as error:
            raise ConfigError(f"output.path: cannot use {self.path}: {one_line(error, 200)}") from None
        return {each.base_name for each in found}

    def _put(self, name: str, data: Any) -> None:
        path, draft = f"{self._root}/{name}", f"{self._root}/.{name}.part"
        try:
            with self._files.open_output_stream(draft if self._is_local else path) as file:
                file.write(data)
            if self._is_local:
                self._files.move(draft, path)
        except OSError as error:
            with contextlib.suppress(PredictionError):  # a disk that is full has no room for half a file
                self._remove(f".{name}.part")
            raise PredictionError(
                f"cannot write {self.path}/{name}: {one_line(error, 200)}; what was finished before is kept"
            ) from None

    def _remove(self, name: str) -> None:
        path = f"{self._root}/{name}"
        try:
            if self._files.get_file_info(path).type != pyarrow.fs.FileType.NotFound:
                self._files.delete_file(path)
        except OSError as error:
            raise PredictionError(
                f"cannot remove {self.path}/{name}, of a shard done anew: {one_line(error)}"
            ) from None


def part_name(shard: int) -> str:
    """Of a shard's predictions."""
    return f"part-{shard:05d}.parquet"


def errors_name(shard: int) -> str:
    """Of its samples that have none."""
    return f"_errors-{shard:05d}.parquet"


def _told(about: About) -> bytes:
    return (json.dumps(asdict(about), indent=1) + "\n").encode()


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue()


def _check_same(path: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: the predictions would be others.
    """
    plain = json.loads(json.dumps(now))
    unlike = [key for key in {**before, **plain} if before.get(key) != plain.get(key)]
    if unlike:
        raise ConfigError(f"{path} holds the predictions of another job ({', '.join(unlike)}); {AFRESH}")
