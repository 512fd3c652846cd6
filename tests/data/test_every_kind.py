"""Every kind of source and every collation: each sample once an epoch, the same after a stop on another cluster."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from patience import patient

from raytrain.data import (
    Field,
    arrays,
    coco,
    decode,
    from_ray,
    from_torch,
    held_out,
    huggingface,
    image_folder,
    image_list,
    keep_if,
    padded,
    parquet,
    ragged,
    random_crop,
    resize,
    stage,
    synthetic,
    webdataset,
)
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.pipeline import OpenPipeline, Pipeline
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import RaggedArray, batches_of
from raytrain.train.ledger import Ledger

COUNT = 23  # a number that no batch divides
CROP = [decode(), resize((12, 12)), random_crop(8)]


def jpeg(number: int) -> bytes:
    image = np.random.default_rng(number).integers(0, 255, (14, 16, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", image)[1])


def tokens(number: int) -> list[int]:
    return list(range(number, number + 1 + number % 5))


def of_image_folder(folder: Path) -> Any:
    for number in range(COUNT):
        path = folder / "ab"[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(jpeg(number))
    return image_folder(folder)


def of_image_list(folder: Path) -> Any:
    of_image_folder(folder)
    files = sorted(folder.glob("*/*.jpg"))
    lines = [
        {"path": str(path.relative_to(folder)), "label": path.parent.name, "tokens": tokens(n)}
        for n, path in enumerate(files)
    ]
    (folder / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return image_list(folder / "list.jsonl")


def rows() -> dict[str, list[Any]]:
    return {
        "image": [jpeg(number) for number in range(COUNT)],
        "label": ["ab"[number % 2] for number in range(COUNT)],
        "tokens": [tokens(number) for number in range(COUNT)],
        "text": ["é" * number for number in range(COUNT)],
    }


def of_parquet(folder: Path) -> Any:
    pq.write_table(pa.table(rows()), folder / "rows.parquet", row_group_size=4)
    return parquet(folder)


def of_webdataset(folder: Path, packed: bool = False) -> Any:
    for shard in range(3):
        with tarfile.open(folder / (f"{shard}.tar.gz" if packed else f"{shard}.tar"), "w:gz" if packed else "w") as tar:
            for number in range(shard, COUNT, 3):
                array = io.BytesIO()
                np.save(array, np.array(tokens(number)))
                parts = {"jpg": jpeg(number), "cls": str(number % 2).encode(), "tokens.npy": array.getvalue()}
                for extension, data in parts.items():
                    member = tarfile.TarInfo(f"{number:03d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return webdataset(folder, fields={"image": "jpg", "label": "cls", "tokens": "tokens.npy"})


def of_packed_webdataset(folder: Path) -> Any:
    return of_webdataset(folder, packed=True)


def of_huggingface(folder: Path) -> Any:
    """Its form on disk, as the documentation of `save_to_disk` has it."""
    table = pa.table({**rows(), "label": [number % 2 for number in range(COUNT)]})
    names = []
    for number, part in enumerate((table[:10], table[10:])):
        names.append(f"data-{number:05d}-of-00002.arrow")
        with pa.OSFile(str(folder / names[-1]), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(part, max_chunksize=4)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    features = {"label": {"names": ["a", "b"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return huggingface(folder)


def of_arrays(folder: Path) -> Any:
    pixels = np.random.default_rng(0).integers(0, 255, (COUNT, 12, 12, 3), np.uint8)
    np.savez(folder / "all.npz", image=pixels, label=np.arange(COUNT) % 2)
    return arrays(folder / "all.npz")


def of_npy(folder: Path) -> Any:
    np.save(folder / "image.npy", np.random.default_rng(0).integers(0, 255, (COUNT, 12, 12, 3), np.uint8))
    np.save(folder / "label.npy", np.arange(COUNT) % 2)
    return arrays(folder)


def of_memory(folder: Path) -> Any:
    return arrays({"image": np.arange(COUNT * 12 * 12 * 3, dtype=np.float32).reshape(COUNT, 12, 12, 3)})


def of_coco(folder: Path) -> Any:
    annotations = []
    for number in range(COUNT):
        (folder / f"{number}.jpg").write_bytes(jpeg(number))
        annotations += [
            {"id": len(annotations), "image_id": number, "category_id": 7 + each % 2, "bbox": [each, 1, 4, 5]}
            for each in range(number % 3)
        ]
    images = [{"id": n, "file_name": f"{n}.jpg", "height": 14, "width": 16} for n in range(COUNT)]
    tree = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "a"}, {"id": 8, "name": "b"}],
    }
    (folder / "coco.json").write_text(json.dumps(tree))
    return coco(folder, folder / "coco.json")


def of_synthetic(folder: Path) -> Any:
    fields = {
        "image": Field("uint8", (12, 12, 3)),
        "tokens": Field("int32", (None,)),
        "weight": Field("bfloat16", ()),
        "name": Field("text", ()),
    }
    return synthetic(COUNT, fields=fields, longest=6)


class Own:
    labels = [number % 2 for number in range(COUNT)]
    classes = ("a", "b")

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> dict[str, Any]:
        noise = np.random.randint(0, 255, (12, 12, 3)).astype(np.uint8)  # noqa: NPY002 - as people's data sets do
        return {"image": noise, "label": index % 2, "tokens": tokens(index)}


def of_torch(folder: Path) -> Any:
    return from_torch(Own())


def of_ray(folder: Path) -> Any:
    import ray

    return from_ray(ray.data.read_parquet(str(of_parquet(folder).path)))


KINDS = {
    "image_folder": (of_image_folder, CROP),
    "image_list": (of_image_list, CROP),
    "parquet": (of_parquet, CROP),
    "webdataset": (of_webdataset, CROP),
    "packed webdataset": (of_packed_webdataset, CROP),
    "huggingface": (of_huggingface, CROP),
    "npz": (of_arrays, [random_crop(8)]),
    "npy": (of_npy, [random_crop(8)]),
    "memory": (of_memory, [random_crop(8)]),
    "coco": (of_coco, CROP),
    "synthetic": (of_synthetic, [random_crop(8)]),
    "from_torch": (of_torch, [random_crop(8)]),
}
VARY = {"image_list", "parquet", "webdataset", "packed webdataset", "huggingface", "synthetic", "from_torch"}
COLLATIONS = {
    "padded": {"collate": {"tokens": padded(-1)}},
    "ragged": {"collate": {"tokens": ragged()}},
    "buckets": {"collate": {"tokens": padded()}, "buckets": {"by": "tokens", "batches": 3}},
    "held out": {"collate": {"tokens": ragged()}, "validation": held_out(0.2)},
    "filtered": {"collate": {"tokens": padded()}},
    "several": {"collate": {"tokens": padded()}},
}


class Consumer:
    """What a run does with a stream: counts each sample as consumed, and keeps what it was."""

    def __init__(self, opened: OpenPipeline, seed: int, tail: str):
        self.spec = StreamSpec(
            opened.train.num_samples,
            0,
            opened.pipeline.batch_size,
            seed,
            epochs=2,
            tail=tail,
            groups=opened.train.groups,
            buckets=opened.buckets,
        )
        self.work = opened.pickled_splits()
        self.seen: dict[tuple[int, int, int], dict[str, Any]] = {}
        self.consumed: list[list[int]] = [[], []]

    def run(self, position: Position, world_size: int, batches: int | None = None) -> Position:
        """Consume so many batches, or all, and say where that ends."""
        plan = StreamPlan(self.spec, position, world_size)
        producer = Producer(StreamWork(plan, self.work))
        ledger, epoch = Ledger(self.spec.num_train, position.consumed, position.owed), position.epoch
        for count, (segment, number) in enumerate(plan.places().tolist()):
            part = plan.segments[segment]
            if part.epoch != epoch:
                ledger, epoch = Ledger(self.spec.num_train, owed=plan.after(segment - 1)), part.epoch
            if count == batches:
                return Position(epoch, ledger.consumed, ledger.owed)
            [batch] = batches_of(producer.block(segment, number, 1))
            self._take(batch, part.epoch, ledger)
        return Position(epoch + 1)

    def _take(self, batch: Any, epoch: int, ledger: Ledger) -> None:
        parts = np.zeros_like(batch.key) if batch.part is None else batch.part
        fresh = len(batch.key) - batch.header.repeated
        keys = batch.key[:fresh][parts[:fresh] == 0]
        ledger.add(keys)
        ledger.add(np.array(batch.header.left_out, np.int64))
        carried, ids = np.divmod(batch.key, self.spec.num_train)
        self.consumed[epoch] += [*keys.tolist(), *batch.header.left_out]
        for row, (index, part) in enumerate(zip(ids.tolist(), parts.tolist(), strict=True)):
            sample = {name: value_of(value, row, name, batch.fields) for name, value in batch.fields.items()}
            self.seen[epoch - int(carried[row]), index, part] = sample


def value_of(value: Any, row: int, name: str, fields: dict[str, Any]) -> Any:
    """Of one sample, without what pads it: how much that is depends on the others of its batch."""
    if isinstance(value, RaggedArray):
        ends = np.cumsum(value.lengths)
        return value.values[ends[row] - value.lengths[row] : ends[row]].tolist()
    if f"{name}_length" in fields:
        return value[row][: int(fields[f"{name}_length"][row])].tolist()
    if name.endswith("_mask"):
        return int(value[row].sum())
    return value[row].tolist() if isinstance(value, np.ndarray) else value[row]


def same_run(source: Any, stages: list[Any], tail: str, **options: Any) -> OpenPipeline:
    """Whole on one rank; and stopped after 4 batches, resumed on three ranks, stopped again, resumed on two."""
    opened = Pipeline(source, stages, batch_size=4, max_corrupt_share=1, tail=tail, **options).open(3)
    whole, parts = (Consumer(opened, 3, tail) for _ in range(2))
    whole.run(Position(), 1)
    at = parts.run(Position(), 1, 4)
    at = parts.run(pickle.loads(pickle.dumps(at)), 3, 1)
    parts.run(at, 2)
    num = opened.train.num_samples
    for consumer in (whole, parts):
        first, second = (sorted(epoch) for epoch in consumer.consumed)
        assert first == sorted({*first}) and second == sorted({*second}), "none twice in an epoch"
        everything = sorted([*first, *(key - num if key >= num else key + 2 * num for key in second)])
        if tail == "carry":
            assert len(first) + len(second) == 2 * num, "what one epoch leaves, the next one has"
        else:
            assert first == second == list(range(num)), everything
    assert whole.seen.keys() == parts.seen.keys()
    for place, sample in whole.seen.items():
        assert sample == parts.seen[place], place
    return opened


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tail", ["share", "carry"])
def test_each_sample_once_and_the_same_after_two_stops(kind, tail, tmp_path):
    make, stages = KINDS[kind]
    collate = (
        {"tokens": "padded"} if kind in VARY else {"boxes": "ragged", "labels": "ragged"} if kind == "coco" else {}
    )
    opened = same_run(make(tmp_path), stages, tail, collate=collate)
    assert opened.train.num_samples == COUNT


@pytest.mark.parametrize("kind", ["parquet", "synthetic", "webdataset", "from_torch"])
@pytest.mark.parametrize("how", COLLATIONS)
def test_each_sample_once_however_it_is_collated(kind, how, tmp_path):
    make, stages = KINDS[kind]
    more = {
        "filtered": [keep_if(lambda value: len(value) % 2 == 0, on="tokens")],
        "several": [stage(lambda sample: [sample, {**sample, "tokens": sample["tokens"][:1]}], on="*"), random_crop(6)],
    }
    opened = same_run(make(tmp_path), [*stages, *more.get(how, [])], "share", **COLLATIONS[how])
    assert opened.train.num_samples == (18 if how == "held out" else COUNT)


@pytest.mark.ray
def test_each_row_of_a_ray_data_set_once(tmp_path, two_nodes):
    opened = same_run(of_ray(tmp_path), CROP, "share", collate={"tokens": "padded"})
    assert (opened.train.num_samples, opened.schema["label"].classes) == (COUNT, ("a", "b"))
    assert "only if the ray.data.Dataset is deterministic" in opened.train.guarantee
    import ray

    @ray.remote
    def read(splits: bytes) -> list[Any]:
        _, work = pickle.loads(splits)
        return work["train"].manifest.read_many([0, COUNT - 1])

    here = opened.train.read_many([0, COUNT - 1])
    there = ray.get(read.remote(opened.pickled_splits()), timeout=patient(60))  # it waits for a block without an owner
    for sample, other in zip(there, here, strict=True):
        assert sample["label"] == other["label"] and np.array_equal(sample["tokens"], other["tokens"]), "in a worker"
