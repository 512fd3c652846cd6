"""What reads each kind of file that comes from outside, as a command would, and how often it is tried.

A reader returns a word for what came of it: `read`, or another that is right as well. What it raises is judged by
`fuzz.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_seeds as seeds
from fuzz_data import DECODED_BYTES, NONE, READ, kept_manifest, kept_seeds, picture, picture_files, source

from raytrain.errors import RaytrainError


@dataclass(frozen=True)
class Target:
    """
    Attributes:
        share: of all cases, in parts.
        seeds: valid folders of files.
        read: of a folder that the current directory is too.
        of: files that are damaged; empty for any.
        named: a message names the file, the option or the key by one of these.
        sure: the first seeds that must be read.
        torch: is imported beforehand.
        most_bytes: that a case may add to what its process has, at its peak.
    """

    share: int
    seeds: Callable[[], list[seeds.Files]]
    read: Callable[[Path], str]
    of: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    sure: int = 1
    torch: bool = False
    most_bytes: int = 384 << 20


def _job(folder: Path) -> str:
    from raytrain.config.job import Job
    from raytrain.data.pipeline import Pipeline

    job = Job.from_yaml(folder / "job.yaml", _sets(folder))
    assert Job.model_validate_json(job.model_dump_json()) == job and isinstance(job.imports, tuple)
    if job.data is not None:
        Pipeline.from_config(job.data)
    return READ


def _sets(folder: Path) -> list[str]:
    path = folder / "set.txt"
    return path.read_bytes().decode("utf-8", "surrogateescape").split("\n") if path.exists() else []


def _prediction_job(folder: Path) -> str:
    from raytrain.config.inference import PredictionJob
    from raytrain.data.stages.registry import parse_stage
    from raytrain.infer.of_run import completed

    job = PredictionJob.from_yaml(folder / "job.yaml", _sets(folder))
    job.model_dump_json()
    for each in job.data.stages or ():
        parse_stage(each)
    completed(job)
    return READ


def command(*words: str) -> str:
    """A command in this process, as `raytrain` runs it; its own errors are handed on."""
    import typer.testing

    from raytrain.cli.main import app

    result = typer.testing.CliRunner().invoke(app, [*words], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception.with_traceback(result.exception.__traceback__)
    if result.exit_code not in (0, 2):
        raise AssertionError(f"exit code {result.exit_code}: {result.output[-300:]}")
    if result.exit_code == 2 and "Traceback" in result.output:
        raise AssertionError(result.output[-300:])
    return READ if result.exit_code == 0 else "refused by the command line"


def _train_command(folder: Path) -> str:
    """Of a job that no cluster is started for: its data are not there."""
    return command("train", "job.yaml", "--set", "data.train={kind: image_folder, path: nowhere}")


def _resource_config(folder: Path) -> str:
    from raytrain.bootstrap.roster import from_resource_config
    from raytrain.cluster.environment import read_resource_config, write_failure

    os.environ["SAGEMAKER_BASE_DIR"] = str(folder)
    found = read_resource_config()
    write_failure("x")
    if found is None:
        return NONE
    roster = from_resource_config(found[0])
    assert roster.head in roster.members and roster.me in roster.members
    return READ


def _record(folder: Path) -> str:
    from raytrain.run.folder import read_run

    record = read_run(folder)
    record.model_dump_json()
    assert record.left_out is not None and record.device_stage_s_per_sample is not None
    return READ


def _compare_command(folder: Path) -> str:
    return command("compare", "record.json", "record.json", "--region", "us-east-1", "--unlike", *_seldom_json(folder))


def _seldom_json(folder: Path) -> list[str]:
    path = folder / "record.json"
    return ["--json"] if path.exists() and path.stat().st_size % 2 else []


def _report_command(folder: Path) -> str:
    return command("report", ".", "--region", "us-east-1")


def _plan_record_command(folder: Path) -> str:
    return command("plan", "record.json", "--region", "us-east-1", "--families", "g5,c5", "-o", "planned.yaml")


def _plan_command(folder: Path) -> str:
    return command("plan", "profile.json", "--region", "us-east-1", "--families", "g5,c5", "--html", "plan.html")


def _prediction_record(folder: Path) -> str:
    from raytrain.record.inference import read_inference_record

    read_inference_record(folder / "record.json")
    return READ


def _prices(folder: Path) -> str:
    from raytrain.cost.instances import catalog

    [path] = folder.glob("prices.*") if any(folder.glob("prices.*")) else [folder / "prices.yaml"]
    known = catalog(path)
    for kind in known.types:
        for region in known.regions:
            with contextlib.suppress(RaytrainError):
                assert known.source(known.price(kind, region)).text is not None
    if path.stat().st_size % 8:
        return READ
    return command("prices", "show", "--prices", str(path), "--all", *(["--json"] if path.suffix == ".json" else []))


def _price_list(folder: Path) -> str:
    from raytrain.sagemaker.pricing import rate_of

    text = (folder / "entry.json").read_text(encoding="utf-8", errors="replace") if any(folder.iterdir()) else ""
    return READ if rate_of(text, {"regionCode": "us-east-1", "component": "Training"}) else NONE


def _checkpoint(folder: Path) -> str:
    import torch

    from raytrain.run.rank import position_of
    from raytrain.train.checkpoints import checkpoint, shelf
    from raytrain.train.contract import Restored

    found = shelf.latest(folder)
    best = shelf.best(folder)
    if found is None:
        return NONE
    facts, state = checkpoint.load(best or found)
    position_of(Restored(facts, state))
    checkpoint.set_rng_state(state["rng"][0])
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    things = [module, torch.optim.AdamW(module.parameters())]
    readers = [lambda n=n: checkpoint.load_object(found, n) for n in range(len(things))]
    checkpoint.restore(things, readers, 0, 1)
    checkpoint.write_model(found, folder / "model.pt")
    return READ


def _weights(folder: Path) -> str:
    import torch

    from raytrain.train.learning.state import fit, read_state

    [path] = [*folder.iterdir()] or [folder / "w.pt"]
    fit(torch.nn.Linear(4, 4), read_state(path.read_bytes() if path.exists() else b"", str(path)), str(path), "linear")
    return READ


def _program(folder: Path) -> str:
    from raytrain.infer.backends.program_file import check_program

    path = folder / "model.pt2"
    check_program(path.read_bytes() if path.exists() else b"", str(path))
    return READ


def _points(folder: Path) -> str:
    from raytrain.infer.contract import Setting
    from raytrain.infer.tune.points import Points, Subject

    subject = Subject(hardware={"cores": 2}, versions={"torch": "2"}, model="m", data="d")
    points = Points(folder / "points.jsonl", subject)
    points.read()
    for line in points.said():
        assert len(line.splitlines()) == 1
    for size in (1, 2, 4, 32):
        while (point := points.take("model", Setting(batch_size=size))) is not None:
            measured = point.measured
            assert measured.wall_s >= 0
            if hasattr(measured, "percentile"):
                assert 0 < measured.samples_per_s < float("inf") and 0 < measured.percentile(0.95) < float("inf")
    return "some lines left alone" if points.unreadable else READ


def _output(folder: Path) -> str:
    from raytrain.infer.blocks import shards_of
    from raytrain.infer.output.folder import About, OutputFolder

    about = About("digits", {"model": "m", "data": [1, 2]}, 4, 1)
    done = OutputFolder(str(folder)).begin(about, shards_of(4, 4))
    return READ if done else "done anew"


def _text(folder: Path) -> str:
    """What one types or puts into the environment."""
    from raytrain.cluster.environment import read_token, stop_grace_s
    from raytrain.config.cluster import parse_nodes
    from raytrain.data.sources.files import list_files

    [path] = [*folder.iterdir()] or [folder / "nodes.txt"]
    data = path.read_bytes() if path.exists() else b""
    text = data.replace(b"\0", b"").decode("utf-8", "surrogateescape")
    if path.stem == "nodes":
        parse_nodes(text)
    elif path.stem == "accelerator":
        (folder / "profile.json").write_bytes(seeds.profiles()[0]["profile.json"])
        return command("plan", "profile.json", "--region", "us-east-1", "--families", "g5,c5", "--accelerator", text)
    elif path.stem in ("instances", "families"):
        (folder / "record.json").write_bytes(seeds.records()[0]["record.json"])
        more = ["--instances", text] if path.stem == "instances" else []
        what = ["compare", "record.json", *more] if more else ["plan", "record.json", "--families", text]
        return command(*what, "--region", "us-east-1")
    elif path.stem == "braces":
        list_files(text)
    elif path.stem == "token":
        read_token(path)
    else:
        os.environ["RAYTRAIN_STOP_GRACE_S"] = text
        stop_grace_s()
    return READ


TARGETS = {
    "job": Target(100, seeds.jobs, _job, named=("job.yaml", "data.", "stage ", "--set", "gaussian_blur", "to_dtype")),
    "prediction_job": Target(
        60,
        seeds.prediction_jobs,
        _prediction_job,
        named=("job.yaml", "model.", "stage", "gaussian_blur", "to_dtype"),
        sure=0,
    ),
    "overrides": Target(
        60,
        seeds.overrides,
        _job,
        ("set.txt",),
        ("--set", "job.yaml", "data.", "stage", "gaussian_blur", "to_dtype"),
        sure=0,
    ),
    "train_command": Target(3, seeds.jobs, _train_command, sure=0, torch=True),
    "resource_config": Target(60, seeds.resource_configs, _resource_config, named=("resourceconfig.json",)),
    "record": Target(120, seeds.any_records, _record, named=("record.json",)),
    "prediction_record": Target(20, seeds.prediction_records, _prediction_record, named=("record.json",)),
    "compare_command": Target(12, seeds.records, _compare_command),
    "report_command": Target(16, seeds.records, _report_command),
    "plan_record_command": Target(10, seeds.records, _plan_record_command, torch=True),
    "plan_command": Target(16, seeds.profiles, _plan_command, torch=True),
    "prices": Target(50, seeds.prices, _prices),
    "price_list": Target(30, seeds.price_list, _price_list),
    "image_list": Target(60, seeds.image_lists, source, most_bytes=DECODED_BYTES),
    "arrays": Target(50, seeds.arrays, source),
    "tar_shards": Target(60, seeds.shards, source, most_bytes=DECODED_BYTES),
    "parquet": Target(60, seeds.tables, source, most_bytes=DECODED_BYTES),
    "coco": Target(50, seeds.coco, source, most_bytes=DECODED_BYTES),
    "hugging_face": Target(40, seeds.arrow_files, source, most_bytes=DECODED_BYTES),
    "pictures": Target(130, picture_files, picture, most_bytes=DECODED_BYTES),
    "checkpoint": Target(50, seeds.checkpoints, _checkpoint, torch=True),
    "weights": Target(40, seeds.weights, _weights, torch=True),
    "program": Target(20, seeds.programs, _program, torch=True),
    "tuner_points": Target(30, seeds.points, _points),
    "output_folder": Target(30, seeds.outputs, _output),
    "kept_manifest": Target(20, kept_seeds, kept_manifest, ("kept/a.arrow",)),
    "words": Target(40, seeds.texts, _text),
}
