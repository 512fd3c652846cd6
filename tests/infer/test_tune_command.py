"""`raytrain tune`: on a simulated machine what it says, writes and draws; and once for real."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml
from patience import patient
from predicting import linear_tree
from rich.console import Console

from raytrain.cli.main import main
from raytrain.cli.tune import seconds
from raytrain.config.inference import PredictionJob
from raytrain.errors import ConfigError, DataError, Stopped
from raytrain.infer.contract import Setting, Timed
from raytrain.infer.streams.alone import Alone
from raytrain.infer.streams.topology import Core, CpuTopology
from raytrain.infer.tune import on_host
from raytrain.infer.tune.on_host import OnHost
from raytrain.infer.tune.points import Subject
from raytrain.infer.tune.search import Refused, Trial
from raytrain.infer.tune.space import Machine, stream_shapes
from raytrain.infer.tune.tuning import Whole
from raytrain.report.tuning import Display, held


class SimulatedHost:
    """In the place of OnHost: a machine of four cores, of which nothing is measured for real."""

    def __init__(self, job: PredictionJob):
        self.machine = Machine(4, 0, ("eager", "compile", "onnx", "openvino"), ("default", "glibc"))
        self.subject = Subject(
            hardware={"cpu_model": "Made up", "cpu_cores": 4, "gpus": []},
            versions={"torch": "2.9"},
            model="a" * 64,
            data="b",
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def model(self, setting: Setting, effort_s: float):
        if setting.backend == "openvino":
            return Refused("it does not load: <b>& no such thing</b>", 0.1)
        rate = 10.0 * setting.batch_size**0.5 * setting.streams * setting.cores**0.5
        rate *= {"fp32": 1.0, "bf16": 1.3, "int8": 2.0}[setting.precision]
        return Timed(rate, [setting.batch_size * setting.streams / rate], 1.0)

    def whole(self, setting: Setting) -> Whole:
        return Whole(min(self.model(setting, 1.0).samples_per_s, 150.0), 200.0, 150.0, 1.0)


@pytest.fixture
def job_file(tmp_path):
    tree = {
        "name": "digits",
        "model": {"name": "resnet18"},
        "data": {"source": {"kind": "image_folder", "path": "data"}, "stages": ["decode"]},
        "run_dir": str(tmp_path / "runs"),
    }
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process, on the simulated host: its exit code, output and what it says besides."""
    monkeypatch.setattr(on_host, "OnHost", SimulatedHost)
    monkeypatch.setattr("raytrain.report.tuning.hardware", SimpleNamespace(usable_cpus=lambda: 4, gpu_names=list))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["raytrain", "tune", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def test_it_says_every_point_the_pick_and_why(call, job_file, tmp_path):
    code, out, err = call(job_file, "--instance", "ml.c5.xlarge", "--region", "us-west-2")
    assert code == 0, err
    folder = tmp_path / "runs" / "digits"
    rows = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    works = {tuple(row["setting"].items()) for row in rows if row["what"] == "model" and not row["refused"]}
    _, _, *table = out.split("With preprocessing")[0].splitlines()
    assert len([line for line in table if " x " in line]) == len(works)
    assert [line for line in table if line.startswith("pick")] and [line for line in table if line.startswith("front")]
    assert "$ a million" in out and "prices an hour in us-west-2: ml.c5.xlarge $" in out
    assert "not possible: openvino" in out and "it does not load: <b>& no such thing</b>" in out
    assert "pick: onnx int8" in out and "with preprocessing 150 samples/s" in out
    assert "samples/s, p95" in err  # as it goes
    tuned = PredictionJob.from_yaml(folder / "tuned.yaml")
    assert (tuned.inference.backend, tuned.inference.precision) == ("onnx", "int8")
    assert out.splitlines()[-1] == f"job file: {folder / 'tuned.yaml'}"


def test_again_it_says_where_the_points_are_from(call, job_file):
    call(job_file)
    before = (job_file.parent / "runs" / "digits" / "points.jsonl").read_text()
    _, out, err = call(job_file)
    assert "are taken from there and not measured again" in err
    assert (job_file.parent / "runs" / "digits" / "points.jsonl").read_text() == before
    assert "$ a million" not in out, "no instance is named, and no price is made up"


def test_json_options_and_overrides(call, job_file, tmp_path):
    code, out, err = call(
        job_file,
        *("--json", "--budget", "2m", "--objective", "latency", "-o", tmp_path / "mine.yaml"),
        *("--set", "tune.backends=[eager]", "--set", "inference.batch_size=4"),
    )
    assert code == 0, err
    found = json.loads(out)
    assert found["objective"] == "latency" and found["instance"] is None
    assert {point["setting"]["backend"] for point in found["points"]} == {"eager"}
    assert {point["setting"]["batch_size"] for point in found["points"]} == {4}
    assert found["settings"] == len(stream_shapes(4)) * 2 * 2
    written = PredictionJob.from_yaml(tmp_path / "mine.yaml")
    assert written.tune.budget_s == 120 and written.inference.objective == "latency"
    assert written.inference.batch_size == found["pick"]["batch_size"] == 4


def test_the_page_holds_every_point_and_nothing_that_was_not_escaped(call, job_file, tmp_path):
    code, _, err = call(job_file, "--html", tmp_path / "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert "Tuning of digits" in page and "<b>&" not in page
    assert page.count("<figure") == 1 + 2 * len(engines(job_file))
    assert "x 1 core" in page and "batch size" in page
    assert '<td class="text">glibc</td>' in page, "text is set left, numbers right"


def engines(job_file) -> set[tuple[str, str]]:
    lines = (job_file.parent / "runs" / "digits" / "points.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {(row["setting"]["backend"], row["setting"]["precision"]) for row in rows if not row["refused"]}


def test_the_instance_of_the_jobs_group_is_priced(call, job_file):
    code, out, err = call(
        job_file, "--region", "us-west-2", "--set", "cluster.groups=[{name: cpu, instance_type: ml.c5.xlarge}]"
    )
    assert code == 0 and "$ a million" in out
    code, out, err = call(job_file, "--set", "cluster.groups=[{name: cpu, instance_type: ml.c5.xlarge}]")
    assert code == 0 and "$ a million" not in out
    assert "no prices: what an ml.c5.xlarge costs depends on the region; give --region" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "soon"], "--budget 'soon' must look like 90s, 10m or 1.5h"),
        (["--budget", "0"], "and be more than nothing"),
        (["--objective", "speed"], "inference.objective must be 'throughput' or 'latency'"),
        (["--instance", "ml.c5.9xlarg", "--region", "us-west-2"], "unknown instance type 'ml.c5.9xlarg'; did you mean"),
        (["--set", "tune.streams=[[8, 1]]"], "streams of 8 x 1 cores are more than the 4 physical cores of this host"),
        (["--set", "tune.batch_sizes=[]"], "tune.batch_sizes must hold 1 or more values"),
    ],
)
def test_what_is_wrong_is_one_line(call, job_file, arguments, message):
    code, out, err = call(job_file, *arguments)
    assert code == 2 and out == ""
    assert message in err and len(err.strip().splitlines()) == 1


def test_one_process_at_a_time(call, job_file, tmp_path):
    folder = tmp_path / "runs" / "digits"
    with held(folder):
        code, _, err = call(job_file)
    assert code == 2 and "another raytrain process is using" in err
    (tmp_path / "file").write_text("")
    code, _, err = call(job_file, "--set", f"run_dir={tmp_path / 'file'}")
    assert code == 2 and "cannot use the run folder" in err


def test_budgets():
    assert [seconds(text) for text in ("90", "90s", "10m", "1.5h", " 2m ")] == [90, 90, 600, 5400, 120]
    with pytest.raises(ConfigError, match="must look like"):
        seconds("10 minutes")


# --- for real ---


def synthetic(tmp_path, **changes) -> dict:
    return {
        "name": "real",
        "model": {"name": "vit_tiny_patch16_224", "options": {"img_size": 32, "depth": 1, "num_classes": 4}},
        "data": {"source": {"kind": "synthetic", "num_samples": 48, "shape": [32, 32, 3], "num_classes": 4}},
        "inference": {"device": "cpu"},
        "run_dir": str(tmp_path / "runs"),
        **changes,
    }


@pytest.mark.process
def test_measuring_the_model_alone(tmp_path, monkeypatch):
    with OnHost(PredictionJob.from_dict(synthetic(tmp_path, tune={"samples": 20}))) as host:
        assert host.machine.cores >= 1 and "onnx" in host.machine.backends
        timed = host.model(Setting("eager", "fp32", 4, streams=1, cores=1), 0.2)
        assert timed.samples_per_s > 0 and timed.wall_s > 0.2
        mean_s = sum(timed.latencies_s) / len(timed.latencies_s)
        assert mean_s == pytest.approx(4 / timed.samples_per_s, rel=0.3)
        quantized = host.model(Setting("onnx", "int8", 16, streams=1, cores=1), 0.2)
        assert quantized.samples_per_s > 0
        refused = host.model(Setting("eager", "int8", 4), 0.2)
        assert isinstance(refused, Refused) and "int8 is for the back ends onnx and openvino" in refused.reason
        many = host.model(Setting("eager", "fp32", 4, streams=1000, cores=1), 0.2)
        assert isinstance(many, Refused) and "1000 streams" in many.reason
        assert host.subject == host.subject and len(host.subject.model) == 64
        interrupted_and_failed(host, monkeypatch)


def interrupted_and_failed(host: OnHost, monkeypatch) -> None:
    """The whole path: a prediction that fails is a result, one that was stopped ends all; its job is a sample's."""
    jobs = []

    def raising(error):
        def predict(job):
            jobs.append(job)
            raise error

        return predict

    monkeypatch.setattr("raytrain.infer.predict.predict", raising(DataError("no sample can be read")))
    setting = Setting("onnx", "int8", 4, 64, 1, 1)
    assert host.whole(setting).reason == "no sample can be read"
    [job] = jobs
    assert job.data.source.limit == 20 < job.data.source.num_samples
    assert (job.inference.backend, job.inference.block.rows, job.inference.streams.count) == ("onnx", 64, 1)
    assert not job.run_dir.startswith(host.job.run_dir)
    monkeypatch.setattr("raytrain.infer.predict.predict", raising(Stopped("stopped")))
    with pytest.raises(Stopped):
        host.whole(setting)


@pytest.mark.ray
def test_tuning_for_real(tmp_path):
    """Two batch sizes, the model alone and the whole path; then the tuned job is one that predicts."""
    path = tmp_path / "job.yaml"
    tune = {"backends": ["eager"], "precisions": ["fp32"], "batch_sizes": [1, 8], "streams": [[1, 1]]}
    tune |= {"allocators": ["default"], "budget_s": patient(20), "samples": 32}
    path.write_text(yaml.safe_dump(synthetic(tmp_path, tune=tune)))
    command = [sys.executable, "-m", "raytrain", "tune", str(path), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=patient(200))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert found["tried"] == found["settings"] == 2 and found["pick"]["streams"]["count"] == 1
    assert all(point["samples_per_s"] > 0 for point in found["points"])
    whole = [point for point in found["whole"] if point["refused"] is None]
    assert whole, found["whole"]
    for point in whole:
        assert point["samples_per_s"] > 0 and point["model_samples_per_s"] > 0 and point["prepare_samples_per_s"] > 0
    assert PredictionJob.from_yaml(found["job_file"]).inference.batch_size == found["pick"]["batch_size"]
    assert not (tmp_path / "runs" / "real" / "predictions").exists(), "a sample's predictions are not the job's"


def test_a_bar_on_a_terminal_and_lines_elsewhere():
    trials = [
        Trial(Setting(), 1.0, Timed(123.4, [0.05], 2.0)),
        Trial(Setting(batch_size=1), 1.0, Refused("out of [memory]")),
    ]
    for is_terminal in (True, False):
        console = Console(force_terminal=is_terminal, file=io.StringIO(), width=100)
        with Display(console, 20, on_gpu=False) as display:
            display.update("eager fp32: the model alone")
            for trial in trials:
                display.update(trial)
        shown = console.file.getvalue()
        assert "eager fp32, batches of 32, 1 x 1 cores: 123.4 samples/s, p95 50.0 ms" in shown
        assert "not possible: out of [memory]" in shown
        assert ("2 of at most 20 settings" in shown) == is_terminal


def test_the_model_alone_has_the_threads_and_nodes_of_the_job(tmp_path, monkeypatch):
    """On four cores of two hardware threads, in two nodes."""
    tree = linear_tree(tmp_path, "threads", 8)
    tree["inference"] |= {"objective": "latency", "streams": {"threads_per_core": 2, "huge_pages": True}}
    cores = CpuTopology(tuple(Core((n, n + 4), n // 2) for n in range(4)))
    monkeypatch.setattr(on_host, "read_topology", lambda: cores)
    asked = []
    monkeypatch.setattr(Alone, "measure", lambda self, *given, **_: asked.append(given[-2:]) or Timed(1.0, [1.0], 1.0))
    with OnHost(PredictionJob.from_dict(tree)) as host:
        assert host.model(Setting(streams=2, cores=1, allocator="glibc"), 1.0) == Timed(1.0, [1.0], 1.0)
    subject = host.subject
    tree["inference"]["batch_size"] = 2
    assert OnHost(PredictionJob.from_dict(tree)).subject == subject, "which settings say"
    tree["inference"]["streams"]["threads_per_core"] = 1
    assert OnHost(PredictionJob.from_dict(tree)).subject != subject
    [(shapes, streams)] = asked
    assert [(shape.cpus, shape.node) for shape in shapes] == [((0, 4), 0), ((2, 6), 1)]
    assert (streams.allocator, streams.huge_pages, streams.threads_per_core) == ("glibc", True, 2)
