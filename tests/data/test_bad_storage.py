"""Storage that fails, cuts off or dawdles on some of its reads, through an epoch: what passes costs no sample, what
does not is named, and the others are what they would have been."""

from __future__ import annotations

from collections import Counter
from io import BytesIO
from pathlib import Path, PurePath

import fsspec.implementations.local
import numpy as np
import pyarrow as pa
import pyarrow.fs
import pytest
from conftest import write_images

from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import Pipeline
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import batches_of
from raytrain.data.sources import files, manifest
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.stages.geometry import resize
from raytrain.data.stages.images import decode

NUM, SLOW_S = 200, 0.02  # of which 1 % is two samples
KINDS = ("passes", "gone", "cut off", "slow")
FAULTS: dict[str, str] = {}
READS: Counter[str] = Counter()


class Storage(pyarrow.fs.FSSpecHandler):
    """Files of this machine, as a service would have them that has its bad days."""

    def open_input_stream(self, path):
        name = PurePath(path).name
        READS[name] += 1
        kind = FAULTS.get(name)
        if kind == "gone" or (kind == "passes" and READS[name] < 4):
            raise OSError("When reading information for key: AWS Error SLOW_DOWN during GetObject operation")
        if kind == "cut off":
            return pa.PythonFile(BytesIO(Path(path).read_bytes()[:300]), mode="r")
        if kind == "slow":
            manifest.time.sleep(SLOW_S)
        return super().open_input_stream(path)


@pytest.fixture
def epoch(tmp_path, monkeypatch):
    """Reads an epoch: images by id, and why others were left out."""
    folder = write_images(tmp_path / "images", {"cat": NUM})
    remote = pyarrow.fs.PyFileSystem(Storage(fsspec.implementations.local.LocalFileSystem()))
    monkeypatch.setattr(files, "filesystem_of", lambda path: (remote, path))
    READS.clear()

    def read():
        opened = Pipeline(image_folder(str(folder)), [decode(), resize(8)], batch_size=16).open(0)
        plan = StreamPlan(StreamSpec(NUM, 0, 16, 0, epochs=1), Position(), 1)
        producer = Producer(StreamWork(plan, opened.pickled_splits()))
        images, failures = {}, {}
        for number in range(-(-NUM // 16)):
            [batch] = batches_of(producer.block(0, number, 1))
            images |= dict(zip(batch.key.tolist(), np.array(batch.fields["image"]), strict=True))
            failures |= {each.id: each for each in batch.header.failures}
        return images, failures

    yield read
    FAULTS.clear()


def test_one_read_in_a_hundred_fails_is_cut_off_or_dawdles(epoch, monkeypatch):
    whole, none = epoch()
    assert {*whole} == {*range(NUM)} and not none
    waits = []
    monkeypatch.setattr(manifest.time, "sleep", waits.append)
    drawn = np.random.default_rng(7).permutation(NUM)[: 2 * len(KINDS)].reshape(len(KINDS), 2)
    FAULTS.update(
        {f"{number:03d}.jpg": kind for kind, ids in zip(KINDS, drawn.tolist(), strict=True) for number in ids}
    )
    READS.clear()
    images, failures = epoch()
    of = dict(zip(KINDS, map(set, drawn.tolist()), strict=True))
    assert {*failures} == of["gone"] | of["cut off"], "each once, and no other"
    assert {*images} == {*range(NUM)} - {*failures}
    for number, image in images.items():
        assert (image == whole[number]).all()
    for number in of["gone"]:
        assert f"{number:03d}.jpg" in failures[number].where
        assert "cannot read it, after 7 tries in 31.5 s: When reading information for key" in failures[number].reason
    assert all(failures[number].reason == "ValueError: not a decodable image" for number in of["cut off"])
    expected = {"passes": 4, "gone": 7, "cut off": 1, "slow": 1}
    assert {kind: {READS[f"{n:03d}.jpg"] for n in ids} for kind, ids in of.items()} == {
        kind: {count} for kind, count in expected.items()
    }
    assert sum(READS.values()) == NUM + 2 * (3 + 6)
    assert waits.count(SLOW_S) == 2 and len(waits) - 2 == 2 * (3 + 6)
