"""Valid files of every kind that comes from outside, small: what is damaged. Each is a folder's files by name."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import tarfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from fuzz_pictures import photo, pictures

ROOT = Path(__file__).parent.parent
Files = dict[str, bytes]
DRAWN = 25  # trees that hypothesis makes of a section


def jobs() -> list[Files]:
    """Of training: those of `launch/`, and what hypothesis makes of the sections."""
    named = ("digits.yaml", "digits_sagemaker.yaml", "heterogeneous.yaml", "single.yaml")
    files = [{"job.yaml": (ROOT / "launch" / name).read_bytes()} for name in named]
    return files + [{"job.yaml": yaml.safe_dump(tree, allow_unicode=True).encode()} for tree in _drawn("jobs")]


def prediction_jobs() -> list[Files]:
    files = [{"job.yaml": (ROOT / "launch" / "predict_digits.yaml").read_bytes()}]
    return files + [{"job.yaml": yaml.safe_dump(tree, allow_unicode=True).encode()} for tree in _drawn("predictions")]


@cache
def _drawn(what: str) -> list[dict[str, Any]]:
    """Trees that are valid, from the strategies that the tests have."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "config"), str(ROOT / "tests" / "record")]
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from of_models import trees

    from raytrain.config.inference import PredictionJob
    from raytrain.record.inference import InferenceRecord

    if what == "jobs":
        from test_any_job import job_trees

        strategy = job_trees()
    elif what == "records":
        from test_any_record import any_record

        strategy = any_record().map(lambda record: record.model_dump(mode="json") | {"job": record_tree()["job"]})
    else:
        strategy = trees({"predictions": PredictionJob, "prediction_records": InferenceRecord}[what])
    found: list[dict[str, Any]] = []

    @seed(0)
    @settings(
        max_examples=DRAWN,
        database=None,
        phases=(Phase.generate,),
        deadline=None,
        suppress_health_check=[*HealthCheck],
    )
    @given(strategy)
    def keep(tree: dict[str, Any]) -> None:
        found.append(tree)

    keep()
    return found


def overrides() -> list[Files]:
    job = (ROOT / "launch" / "digits_sagemaker.yaml").read_bytes()
    lines = ["training.epochs=2", "data.train.path=x", "data.stages=[decode, {resize: {size: 8}}]", "sagemaker=null"]
    lines += ["cluster.groups=[{name: a, cpus: 2}]", "model.options.depth=1", "data.normalize.mean=[0.5]", "seed=3"]
    return [{"job.yaml": job, "set.txt": f"{one}\n{other}".encode()} for one in lines for other in lines]


def resource_configs() -> list[Files]:
    group = [
        {"instance_group_name": "gpu", "instance_type": "ml.g5.xlarge", "hosts": ["algo-1"]},
        {"instance_group_name": "cpu", "instance_type": "ml.c5.xlarge", "hosts": ["algo-2", "algo-10"]},
    ]
    plain = {"current_host": "algo-1", "hosts": ["algo-1", "algo-2"], "network_interface_name": "eth0"}
    plain |= {"current_instance_type": "ml.m5.large", "current_group_name": "homogeneousCluster"}
    grouped = {**plain, "hosts": ["algo-1", "algo-2", "algo-10"], "current_group_name": "gpu", "instance_groups": group}
    beside = {"hyperparameters.json": b'{"epochs": "3", "sagemaker_program": "train.py"}'}
    beside["inputdataconfig.json"] = (
        b'{"train": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}}'
    )
    files = [{**beside, "resourceconfig.json": _json(tree)} for tree in (plain, grouped)]
    return [{f"input/config/{name}": data for name, data in each.items()} for each in files]


def _json(tree: Any) -> bytes:
    return json.dumps(tree, indent=1).encode()


@cache
def record_tree() -> dict[str, Any]:
    """Of a run on SageMaker's hosts, by which it can be priced, planned and drawn."""
    job = yaml.safe_load((ROOT / "launch" / "digits_sagemaker.yaml").read_bytes())
    job["sagemaker"]["channels"] = {"digits": {"uri": "s3://bucket/digits"}}
    from raytrain.config.job import Job

    host = {"cpus": 4, "gpus": 1, "instance_type": "ml.g5.xlarge", "emulated": False, "is_head": True}
    other = {"cpus": 16, "gpus": 0, "instance_type": "ml.c5.4xlarge", "emulated": False, "is_head": False}
    stage = {"num_samples": 640, "num_batches": 10, "cpu_s": 2.0, "wall_s": 3.0}
    stage |= {"batch_wall_p90_s": 0.4, "batch_wall_p99_s": 0.5}
    totals = {"wall_s": 20.0, "samples": 640, "samples_per_s": 80.0, "wait_share": 0.1, "limited_by": "input"}
    totals |= {"bottleneck": "read", "attempts": 1}
    at_s, busy = [1.0, 2.0, 3.0], [50.0, 60.0, 70.0]
    load = {"mean": 150.0, "max": 390.0}
    rank = {
        "rank": 0,
        "device": "cuda:0",
        "wait_s": 1.0,
        "transfer_s": 0.5,
        "compute_s": 5.0,
        "transfer_overlaps": True,
    }
    rank |= {"evaluate_s": 1.0, "checkpoint_s": 0.1, "num_batches": 10, "num_samples": 640, "wire_bytes": 10**6}
    rank |= {
        "read_bytes": 10**5,
        "gap_s": 0.3,
        "device_stage_s": {"resize": 0.2},
        "device_stage_samples": {"resize": 64},
    }
    placement = {"at_s": 1.0, "on_device": ["resize"], "sometimes_on_device": [], "share": 0.0, "cpu_cores": 16}
    placement |= {"host_cores": 3, "stages": [{"name": "resize", "cpu_s": 0.001, "device_s": 0.0001}], "step_s": 0.01}
    placement |= {"interference": 0.1, "samples_per_s": 90.0, "samples_per_s_before": 80.0, "text": "resize moved"}
    host_line = {"at_s": at_s, "cpu_percent": busy, "memory_percent": busy}
    host_line |= {"received_mbit_per_s": busy, "sent_mbit_per_s": busy, "gpu_percent": busy, "gpu_memory_percent": busy}
    return {
        "schema_version": 5, "name": "digits", "status": "finished", "error": None, "command": ["raytrain", "train"],
        "started_at": "2026-01-01T00:00:00+00:00", "job": Job.from_dict(job).model_dump(mode="json"),
        "versions": {"torch": "2"}, "environment": {}, "cluster_attached": True, "emulated_gpus": False,
        "hardware": {"cpu_model": "x", "cpu_cores": 4, "memory_bytes": 2**34, "platform": "Linux", "gpus": ["A10G"]},
        "world_size": 1, "cpu_slots": 19, "num_train": 640, "num_validation": 64, "fields": {"image": "uint8"},
        "hosts": [
            {"name": "a-1", "group": "gpu", "samples_prepared": 100, **host},
            {"name": "b-1", "group": "cpu", "samples_prepared": 540, **other},
        ],
        "classes": ["0", "1"],
        "startup": dict.fromkeys(("manifest_s", "cluster_s", "trainer_s", "first_batch_ready_s"), 1.0)
        | {"first_batch_s": 2.0, "first_step_s": 3.0},
        "totals": totals,
        "ranks": [rank],
        "stages": [{"name": name, **stage} for name in ("read", "decode", "resize", "validation/read")],
        "epochs": [{"epoch": 1, "train_loss": 2.0, "validation_accuracy": None}],
        "corrupt": {"train": 1, "validation": 0, "listed": ["a.jpg: cut off"]},
        "torch_in_preprocessing_workers": False, "resumed_from": None, "checkpoint": None,
        "loads": [{"host": "a-1", "group": "gpu", "cpu_percent": load, "gpu_percent": load}],
        "progress": {"at_s": at_s, "samples_per_s": busy, "wait_share": [0.1, 0.2, 0.3]},
        "timelines": [{"host": "a-1", **host_line}],
        "placements": [placement],
    }  # fmt: skip


def records() -> list[Files]:
    own = record_tree()
    cpu = {**own, "job": {**own["job"], "sagemaker": None}, "cluster_attached": False}
    cpu["ranks"] = [{**own["ranks"][0], "device": "cpu", "transfer_overlaps": False, "gap_s": None}]
    return [{"record.json": _json(tree)} for tree in (own, own, cpu)]


def any_records() -> list[Files]:
    return records() + [{"record.json": _json(tree)} for tree in _drawn("records")]


def prediction_records() -> list[Files]:
    return [{"record.json": _json(tree)} for tree in _drawn("prediction_records")]


def profiles() -> list[Files]:
    from raytrain.cost.instances import catalog
    from raytrain.cost.profile import profile_of_record
    from raytrain.record.schema import RunRecord

    made = profile_of_record(RunRecord.model_validate(record_tree()), catalog())
    return [{"profile.json": made.model_dump_json(indent=1).encode()}]


def prices() -> list[Files]:
    kinds = [{"name": "ml.new.xlarge", "vcpus": 4, "memory_gib": 16, "gpus": 1, "gpu": "A10G", "gpu_memory_gib": 24}]
    kinds += [{"name": "ml.cpu.xlarge", "vcpus": 4, "memory_gib": 8, "network_gbps": 10}]
    each = [{"region": "us-east-1", "type": kind["name"], "usd_per_hour": 1.5, "source": "ours"} for kind in kinds]
    tree = {
        "schema_version": 1,
        "sources": {"ours": {"text": "a letter", "date": "2026-01-01"}},
        "types": kinds,
        "prices": each,
    }
    return [{"prices.yaml": yaml.safe_dump(tree).encode()}, {"prices.json": _json(tree)}]


def price_list() -> list[Files]:
    attributes = {"regionCode": "us-east-1", "component": "Training", "usagetype": "USE1-Train:ml.g5.xlarge"}
    dimension = {"unit": "Hrs", "pricePerUnit": {"USD": "1.41"}}
    term = {"effectiveDate": "2026-01-01T00:00:00Z", "priceDimensions": {"x": dimension}}
    return [{"entry.json": _json({"product": {"attributes": attributes}, "terms": {"OnDemand": {"y": term}}})}]


def image_lists() -> list[Files]:
    rows = [{"path": f"{n}.jpg", "label": "ab"[n % 2], "weight": 0.5 + n, "at": "2026-01-01"} for n in range(4)]
    images = {f"{n}.jpg": pictures()["rgb.jpg"] for n in range(4)}
    file = io.StringIO()
    table = csv.DictWriter(file, [*rows[0]])
    table.writeheader()
    table.writerows(rows)
    text = file.getvalue()
    lines = "\n".join(json.dumps({**row, "boxes": [[0, 1], [2, 3]]}) for row in rows)
    listed = {"list.csv": text, "list.tsv": text.replace(",", "\t"), "list.jsonl": lines}
    return [{name: each.encode(), **images} for name, each in listed.items()]


def arrays() -> list[Files]:
    whole = {"image": np.stack([photo(seed=n) for n in range(4)]), "label": np.array([0, 1, 0, 1])}
    whole["name"] = np.array(["a", "b", "c", "d"])
    packed, plain = io.BytesIO(), io.BytesIO()
    np.savez_compressed(packed, **whole)  # type: ignore[arg-type]
    np.savez(plain, **whole)  # type: ignore[arg-type]
    single = {}
    for name, each in whole.items():
        file = io.BytesIO()
        np.save(file, each)
        single[f"{name}.npy"] = file.getvalue()
    return [{"a.npz": packed.getvalue()}, {"a.npz": plain.getvalue()}, single]


def shards() -> list[Files]:
    array = io.BytesIO()
    np.save(array, np.arange(4))
    found = []
    kinds = [("a.tar", "w", tarfile.USTAR_FORMAT), ("a.tar", "w", tarfile.GNU_FORMAT)]
    for name, mode, form in [*kinds, ("a.tar.gz", "w:gz", tarfile.PAX_FORMAT)]:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode, format=form) as tar:  # type: ignore[call-overload]
            for n in range(3):
                parts = {
                    "jpg": pictures()["rgb.jpg"],
                    "cls": b"%d" % (n % 2),
                    "json": b"[1, 2]",
                    "npy": array.getvalue(),
                }
                for extension, data in {**parts, "txt": b"words"}.items():
                    info = tarfile.TarInfo(f"sample{n}{'é' * 60 if form == tarfile.PAX_FORMAT else ''}.{extension}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        found.append({name: file.getvalue()})
    return found


def tables() -> list[Files]:
    columns = {
        "image": [pictures()["rgb.jpg"], pictures()["rgb.png"]] * 2,
        "label": ["a", "b", "a", "b"],
        "tokens": pa.array([[1, 2], [3], [], [4, 5, 6]], pa.list_(pa.int32())),
        "share": [0.5, 1.5, None, 2.5],
        "box": pa.array([[1.0, 2.0, 3.0, 4.0]] * 4, pa.list_(pa.float32(), 4)),
    }
    found = []
    for options in ({}, {"compression": "none", "use_dictionary": False}, {"compression": "zstd", "row_group_size": 2}):
        sink = io.BytesIO()
        pq.write_table(pa.table(columns), sink, **options)
        found.append({"a.parquet": sink.getvalue()})
    return found


def coco() -> list[Files]:
    thing = {"id": 4, "image_id": 0, "category_id": 7, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    outline = {**thing, "id": 5, "segmentation": [[1, 1, 9, 1, 9, 9, 1, 9]]}
    runs = {**thing, "id": 6, "segmentation": {"size": [24, 32], "counts": [10, 20, 738]}}
    packed = {**thing, "id": 7, "segmentation": {"size": [24, 32], "counts": "PPYo1"}}
    image = {"id": 0, "file_name": "0.jpg", "height": 24, "width": 32}
    tree = {"images": [image], "annotations": [outline, runs, packed], "categories": [{"id": 7, "name": "a"}]}
    return [{"coco.json": _json(tree), "0.jpg": pictures()["rgb.jpg"]}]


def arrow_files() -> list[Files]:
    table = pa.table(
        {"text": ["a", "b"], "label": [0, 1], "image": [{"bytes": pictures()["rgb.jpg"], "path": "x"}] * 2}
    )
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    info = {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}}
    state = {"_data_files": [{"filename": "0.arrow"}], "_indices_data_files": None}
    return [{"0.arrow": sink.getvalue(), "dataset_info.json": _json(info), "state.json": _json(state)}]


def checkpoints() -> list[Files]:
    import torch

    from raytrain.train.checkpoints import checkpoint
    from raytrain.train.checkpoints.shelf import Facts, describe

    facts = Facts(
        1, 10, 10, 640, 0, "f" * 16, 0, 1, history=[{"epoch": 1}], classes=["a"], metric="max accuracy", score=0.5
    )
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = {"consumed": torch.zeros(8, dtype=torch.uint8), "modules": [0], "rng": [checkpoint.rng_state()]}
    files = {"state.pt": state, "object_0.pt": module.state_dict(), "object_1.pt": optimizer.state_dict()}
    packed = {name: checkpoint.pack(each).tobytes() for name, each in files.items()}
    told = describe(facts, {name: hashlib.sha256(data).hexdigest() for name, data in packed.items()})
    return [{f"a/checkpoint_1/{name}": data for name, data in {**packed, "checkpoint.json": told.encode()}.items()}]


def weights() -> list[Files]:
    import safetensors.torch
    import torch

    state = torch.nn.Linear(4, 4).state_dict()
    found: list[Files] = []
    for old in (True, False):
        file = io.BytesIO()
        torch.save({"state_dict": state, "epoch": 3}, file, _use_new_zipfile_serialization=old)
        found.append({"w.pt" if old else "w.pth": file.getvalue()})
    return [*found, {"w.safetensors": safetensors.torch.save(state)}]


def programs() -> list[Files]:
    import torch

    file = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(4, 2), (torch.ones(1, 4),)), file)
    return [{"model.pt2": file.getvalue()}]


def points() -> list[Files]:
    from raytrain.infer.contract import Setting
    from raytrain.infer.tune.points import Point, Subject

    subject = Subject(hardware={"cores": 2}, versions={"torch": "2"}, model="m", data="d")
    about: dict[str, Any] = {"what": "model", "effort_s": 1.0, "at": "now", "subject": subject}
    timed = {"p50_s": 0.1, "p95_s": 0.2, "p99_s": 0.3, "wall_s": 2.0}
    each = [Point(setting=Setting(batch_size=n), samples_per_s=9.0 * n, **timed, **about) for n in (1, 2, 4)]
    each.append(Point(setting=Setting(), refused="no", wall_s=0.0, **about))
    return [{"points.jsonl": "\n".join(point.model_dump_json() for point in each).encode() + b"\n"}]


def outputs() -> list[Files]:
    from raytrain.infer.output.folder import ABOUT, ERRORS, About

    def parquet(table: pa.Table) -> bytes:
        sink = io.BytesIO()
        pq.write_table(table, sink)
        return sink.getvalue()

    about = About("digits", {"model": "m", "data": [1, 2]}, 4, 1)
    errors = pa.table({"id": [3], "where": ["x"], "stage": ["decode"], "reason": ["y"]}, schema=ERRORS)
    files = {"part-00000.parquet": parquet(pa.table({"id": [0, 1, 2]})), "_errors-00000.parquet": parquet(errors)}
    return [{ABOUT: _json(asdict(about)), **files}]


def texts() -> list[Files]:
    each = {
        "nodes": "gpu=1x2x1,cpu=2x1",
        "accelerator": "A10G=0.0008",
        "instances": "gpu=ml.g5.xlarge,cpu=ml.c5.4xlarge",
        "families": "g5,c5",
        "braces": "s/{000..012}/{a,b}.tar",
        "token": "0123456789abcdef0123456789abcdef",
        "grace": "30",
    }
    return [{f"{name}.txt": text.encode()} for name, text in each.items()]
