"""compare, plan and report on the command line; diagnose, and the runs that compare starts, are in study/."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import yaml
from money import profile, run_on

from raytrain.cli.main import main
from raytrain.config.job import Job
from raytrain.cost.instances import catalog
from raytrain.errors import ConfigError, TrainingError
from raytrain.study import trials
from raytrain.study.profile_file import with_accelerators
from raytrain.study.trials import Trials, nodes_of

SINGLE = {"ml.g5.xlarge": ("gpu", 1, 1)}
BOTH = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.4xlarge": ("cpu", 1, 0)}


@pytest.fixture
def call(monkeypatch, capsys):
    """The command line in this process: its exit code, what it prints and what it says besides."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["raytrain", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def records(record, tmp_path):
    """Files of two runs, the second 1.943 times as fast."""
    paths = []
    for name, hosts, rate in (("single", SINGLE, 32.0), ("both", BOTH, 32.0 * 1.943)):
        paths.append(tmp_path / f"{name}.json")
        run_on(record, name, hosts, samples_per_s=rate).write(paths[-1])
    return paths


@pytest.fixture
def profile_file(tmp_path, job_tree):
    path = tmp_path / "profile.json"
    profile(job=job_tree).write(path)
    return path


def test_two_records_as_a_table(call, records):
    code, out, _ = call("compare", *records, "--region", "us-east-1")
    assert code == 0
    lines = {line.split("│")[1].strip(): line for line in out.splitlines() if "│" in line}
    assert [cell.strip() for cell in lines["price efficiency"].split("│")[2:4]] == ["+0%", "+23%"]
    assert [cell.strip() for cell in lines["price per hour"].split("│")[2:4]] == ["$1.408", "$2.224"]
    assert [cell.strip() for cell in lines["break-even speed-up"].split("│")[2:4]] == ["1.00x", "1.58x"]
    assert "(predicted)" in out
    assert "prices an hour in us-east-1: ml.c5.4xlarge $0.816, ml.g5.xlarge $1.408 (unrelated hand-kept tables" in out


def test_two_records_for_a_program(call, records):
    code, out, _ = call("compare", *records, "--region", "us-east-1", "--json")
    columns = json.loads(out)["columns"]
    assert code == 0
    assert [column["samples_per_s"] for column in columns[:2]] == [32.0, 32.0 * 1.943]
    assert columns[2]["predicted"]


def test_a_plan_with_its_job_file_and_page(call, profile_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job, page = tmp_path / "planned.yaml", tmp_path / "plan.html"
    code, out, err = call("plan", profile_file, "--region", "us-east-1", "-o", job, "--html", page, "--pick", "2")
    assert code == 0, err
    assert out.startswith("CPU hosts pay: 1 x ml.g5.2xlarge + 1 x ml.c5.4xlarge costs $7.20 for the job, ")
    assert "The best 5 of" in out
    assert "assumed: a vCPU of g5, m5 prepares as much as one of c5 did" in out
    groups = Job.from_yaml(job).cluster.groups
    assert [(group.name, group.instance_type, group.hosts) for group in groups] == [
        ("gpu", "ml.g5.2xlarge", 2),
        ("cpu", "ml.c5.4xlarge", 2),
    ]
    assert Job.from_yaml(job).sagemaker.region == "us-east-1"
    assert page.stat().st_size < 1_000_000


def test_a_plan_for_a_program(call, profile_file):
    code, out, _ = call(
        "plan", profile_file, "--region", "us-east-1", "--families", "g5,c5", "--max-price", "3", "--json"
    )
    found = json.loads(out)
    assert code == 0
    assert found["best"][0]["usd"] <= found["best"][1]["usd"]
    assert all(each["usd_per_hour"] <= 3 and each["efficient"] for each in found["front"])
    assert found["verdict"].startswith("CPU hosts pay: ")


def test_a_plan_with_stages_on_the_device(call, tmp_path, job_tree):
    """docs/costs.md, by hand: 0.97 / (1/1200 + 0.00004 s) at $1.408 an hour, where three vCPUs prepare 1667."""
    from raytrain.cost.profile import Figure, StageCost

    there = {"device_s_per_sample": {"A10G": Figure.once(0.00004)}, "wire_bytes_per_sample": Figure.once(150_528)}
    blur = StageCost(name="gaussian_blur", cpu_share=0.9, **there)
    profile(job=job_tree, stages=(blur,)).write(tmp_path / "p.json")
    page = tmp_path / "plan.html"
    code, out, err = call("plan", tmp_path / "p.json", "--region", "us-east-1", "--json", "--html", page)
    assert code == 0, err
    found = json.loads(out)
    best = found["best"][0]
    assert (best["shape"], best["on_device"]) == ("1 x ml.g5.xlarge", {"gaussian_blur": 1.0})
    assert best["samples_per_s"] == pytest.approx(0.97 / (1 / 1200 + 0.00004))
    assert best["usd_per_million_samples"] == pytest.approx(0.352, abs=5e-4)
    taken = "takes gaussian_blur on the device of 1 x ml.g5.xlarge: +0 hosts, -5% device time, $0.352 against $0.556"
    assert taken in found["verdict"]
    assert found["ways"]["on the device"] == best and not found["ways"]["all on CPUs, no CPU hosts"]["on_device"]
    text = page.read_text()
    assert "Where stages may run" in text and "all on CPUs, a larger sibling" in text and ">gaussian_blur<" in text


def test_a_plan_that_cpu_hosts_are_no_part_of(call, tmp_path, job_tree):
    from raytrain.cost.profile import Figure

    light = profile(job=job_tree, cpu_s_per_sample={"c5": Figure.once(0.004)}, num_samples=1000)
    light.write(tmp_path / "p.json")
    code, out, _ = call("plan", tmp_path / "p.json", "--region", "us-east-1", "--max-gpu-hosts", "1")
    assert code == 0
    assert "CPU hosts do not pay: 1 x ml.g5." in out
    code, out, _ = call("plan", tmp_path / "p.json", "--region", "us-east-1", "--max-cpu-hosts", "0")
    assert "only shapes without CPU hosts are within the limits" in out


def test_a_records_own_profile_is_planned(call, records):
    code, out, _ = call("plan", records[0], "--region", "us-east-1", "--json")
    assert code == 0
    assert json.loads(out)["shapes"] > 1000


def test_a_gpu_that_was_not_measured_can_be_given():
    with_l4 = with_accelerators(profile(), ["L4=0.002"], catalog())
    assert {name: figure.value for name, figure in with_l4.accelerator_s_per_sample.items()} == {
        "A10G": 1 / 1200,
        "L4": 0.002,
    }


def test_bad_input_is_one_line(call, records, profile_file, tmp_path):
    (tmp_path / "cut.json").write_text(records[0].read_text()[:300])
    (tmp_path / "old.json").write_text('{"schema_version": 1}')
    (tmp_path / "twisted.json").write_text(profile_file.read_text().replace('"num_samples": ', '"num_samples": -'))
    (tmp_path / "list.json").write_text("[]")
    east = ("--region", "us-east-1")
    for arguments, message in [
        (["compare", tmp_path / "cut.json"], "is not JSON, or was cut off"),
        (["compare", tmp_path / "old.json"], "has schema version 1; this raytrain reads 5"),
        (["compare", tmp_path / "none.json"], "cannot read"),
        (["compare", *records, "--region", "mars-1"], "there are no prices of region 'mars-1' here"),
        (["compare", records[0], *east, "--instances", "gpu"], "--instances 'gpu' must look like gpu=ml.g5.xlarge"),
        (["compare", records[0], "--on", "moon"], "--on 'moon' must be one of nodes, twin, sagemaker"),
        (["compare", records[0], "--scale", "2"], "--scale 2 must be above 0 and at most 1"),
        (["plan", tmp_path / "cut.json", *east], "is not JSON, or was cut off"),
        (["plan", tmp_path / "none.json", *east], "cannot read"),
        (["plan", tmp_path / "none.yaml", *east], "cannot read the job file"),
        (["plan", tmp_path / "list.json", *east], "is not a run record"),
        (["plan", tmp_path / "twisted.json", *east], "is not a profile: num_samples: Input should be greater than 0"),
        (["plan", profile_file], "the job names no region; give --region"),
        (["plan", profile_file, *east, "--pick", "999999"], "--pick 999999: there are"),
        (["plan", profile_file, *east, "--accelerator", "A11=3"], "--accelerator: unknown GPU 'A11'; did you mean"),
        (
            ["plan", profile_file, *east, "--accelerator", "T4=fast"],
            "--accelerator 'T4=fast' must look like A10G=0.0008",
        ),
        (["plan", profile_file, *east, "--accelerator", "T4=0"], "--accelerator 'T4=0' must look like"),
        (["plan", profile_file, *east, "--accelerator", "T4=-1"], "--accelerator 'T4=-1' must look like"),
        (["plan", profile_file, *east, "-o", tmp_path / "no" / "x.yaml"], "the job file cannot be written to"),
        (["plan", profile_file, *east, "--html", tmp_path / "cut.json" / "x"], "the page cannot be written to"),
        (["report", tmp_path], "has no record.json: give the folder of a run that has ended, or its record"),
        (["report", tmp_path / "old.json"], "has schema version 1; this raytrain reads 5"),
    ]:
        code, _, err = call(*arguments)
        assert code == 2, arguments
        assert message in err.strip().splitlines()[-1], err
        assert "Traceback" not in err


def test_a_page_of_the_folder_of_a_run(call, records, tmp_path):
    """It is that of the record in it."""
    (tmp_path / "runs" / "single").mkdir(parents=True)
    records[0].rename(tmp_path / "runs" / "single" / "record.json")
    code, out, err = call("report", tmp_path / "runs" / "single", records[1], "-o", tmp_path / "r.html")
    assert (code, out) == (0, f"page: {tmp_path / 'r.html'}\n"), err
    assert "<title>single and both</title>" in (tmp_path / "r.html").read_text()


def test_what_draws_pages_is_asked_for_when_it_is_missing(call, records, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    code, _, err = call("report", *records, "--region", "us-east-1", "-o", tmp_path / "r.html")
    assert code == 2
    assert "pages need jinja2: pip install 'raytrain[report]'" in err


def test_a_jobs_groups_as_emulated_nodes(job_tree):
    job_tree["cluster"] = {
        "groups": [
            {"name": "gpu", "instance_type": "ml.g5.xlarge"},
            {"name": "cpu", "instance_type": "ml.c5.4xlarge", "hosts": 2},
            {"name": "own", "cpus": 3, "gpus": 1},
        ]
    }
    job = Job.from_dict(job_tree)
    assert nodes_of(job, catalog(), None) == "gpu=1x4x1,cpu=2x16,own=1x3x1"
    assert nodes_of(job, catalog(), 0.125) == "gpu=1x1x1,cpu=2x2,own=1x1x1"
    assert nodes_of(Job.from_dict({**job_tree, "cluster": {}}), catalog(), None) is None


@pytest.mark.parametrize(
    ("on", "commands"),
    [
        ("nodes", ["train JOB --set seed=3 --json --nodes cpu=1x1"]),
        (
            "twin",
            [
                "twin JOB --set seed=3 --scale 0.5 --channel a=b --prices P --folder F --json",
                "record toy-1 --folder F --out F/record.json --json",
            ],
        ),
        (
            "sagemaker",
            [
                "launch JOB --set seed=3 --prices P --yes --wait --json",
                "record toy-1 --prices P --region us-east-1 --json",
            ],
        ),
    ],
)
def test_job_files_run_as_a_user_would_run_them(on, commands, monkeypatch, job_file, record):
    """What is typed; that the commands themselves do it is other tests' business."""
    typed = []

    def run(arguments):
        folder = arguments[arguments.index("--folder") + 1] if "--folder" in arguments else "F"
        typed.append(" ".join(arguments).replace(str(path), "JOB").replace(folder, "F"))
        ended = json.dumps({"TrainingJobName": "toy-1"})
        return {"twin": ended, "launch": f"log\n{ended}\n"}.get(arguments[0], record.model_dump_json(indent=1))

    path = job_file(cluster={"groups": [{"name": "cpu", "cpus": 2}]}, sagemaker={"region": "us-east-1"})
    monkeypatch.setattr(trials, "_run", run)
    assert Trials(on, catalog(), ["seed=3"], 0.5, Path("P"), ("a=b",)).record(path) == record
    assert Trials(on, catalog(), []).region([Path("r.json"), path]) == "us-east-1"
    assert typed == commands


@pytest.mark.process
def test_a_run_that_fails_ends_the_comparison(tmp_path, job_tree):
    job_tree["data"]["train"]["path"] = str(tmp_path / "nothing")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job_tree))
    with pytest.raises(TrainingError, match="raytrain train .* ended with exit code 2; nothing compared"):
        Trials("nodes", catalog(), []).record(tmp_path / "job.yaml")


def test_a_profile_whose_job_is_none_gives_no_job_file(call, tmp_path):
    profile(job={"training": {"epochs": 0}}).write(tmp_path / "p.json")
    code, _, err = call("plan", tmp_path / "p.json", "--region", "us-east-1", "-o", tmp_path / "x.yaml")
    assert code == 2
    assert "the job of toy" in err
    with pytest.raises(ConfigError, match="unknown GPU"):
        with_accelerators(profile(), ["=1"], catalog())


# -- compare asks before it trains -------------------------------------------


class Terminal(io.StringIO):
    """Somebody who types an answer."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def trained(monkeypatch, record):
    """The command lines that would have trained; each ends with a record of 64 samples/s after 3 s of start-up."""
    typed = []
    ended = run_on(record, "small", SINGLE, first_step_s=3.0)

    def run(arguments):
        typed.append([word if "raytrain-compare-" not in word else "run_dir=TMP" for word in arguments])
        return ended.model_dump_json()

    monkeypatch.setattr(trials, "_run", run)
    return typed


def answered(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", Terminal(text))


EAST = ("--region", "us-east-1")


def test_without_a_terminal_nothing_trains(call, trained, job_file, monkeypatch, records):
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    code, out, err = call("compare", job_file(), *EAST)
    assert (code, out, trained) == (2, "", [])
    [line] = err.strip().splitlines()
    assert "this would train, which may take long, and nobody is asked: small (" in line
    assert "2 epochs, on emulated nodes of this machine (one node, which is all of it); give --yes" in line
    code, _, _ = call("compare", *records, *EAST)
    assert (code, trained) == (0, []), "records train nothing"


def test_yes_trains_without_a_question(call, trained, job_file, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    path = job_file()
    code, out, err = call("compare", path, path, *EAST, "-y")
    assert code == 0, err
    assert trained == [["train", str(path), "--json"]] * 2
    assert err.count("2 epochs") == 2
    assert "price per hour" in out


def test_at_a_terminal_it_says_how_long_and_asks(call, trained, job_file, monkeypatch):
    """200,000 epochs of 640 samples at 64 a second and 3 s of start-up: 23 days."""
    path = job_file(training__epochs=200_000)
    answered(monkeypatch, "y\n")
    code, _, err = call("compare", path, *EAST, "--set", "seed=3")
    assert code == 0, err
    said = " ".join(err.split())
    assert "one after the other: small (" in said
    assert "small: roughly 23 days without validation, at the 64 samples/s of a probe of 3 steps of 8" in said
    assert "run them?" in err
    sizes = ["data.batch_size=8", "data.global_batch_size=null"]
    probe = ["training.steps=3", "training.epochs=null", "run_dir=TMP", *sizes, "data.validation=null"]
    sets = [word for each in ("seed=3", *probe) for word in ("--set", each)]
    assert trained == [["train", str(path), *sets, "--json"], ["train", str(path), "--set", "seed=3", "--json"]]


@pytest.mark.parametrize("answer", ["n\n", "\n", ""])
def test_who_does_not_agree_has_nothing_trained(call, trained, job_file, monkeypatch, answer):
    answered(monkeypatch, answer)
    code, out, err = call("compare", job_file(), *EAST)
    assert (code, out.strip()) == (130, "")
    assert "nothing was trained to the end; --yes trains without asking" in err
    assert len(trained) == 1, "the probe"


def test_a_place_that_costs_money_is_not_probed(trained, job_file):
    """Two hours at most of a $1.408 host and two of $0.816; of one alone, with 50 minutes of a warm pool."""
    groups = [
        {"name": "gpu", "instance_type": "ml.g5.xlarge"},
        {"name": "cpu", "instance_type": "ml.c5.4xlarge", "hosts": 2},
    ]
    sagemaker = {"region": "us-east-1", "max_run_s": 7200}
    path = job_file(cluster={"groups": groups}, sagemaker=sagemaker, training={"steps": 1000})
    there = Trials("sagemaker", catalog(), [])
    assert there.intended(path) == (f"small ({path}): 1,000 steps, 16,000 samples, on SageMaker (gpu=1x4x1,cpu=2x16)")
    assert there.duration(path) == ("small: how long is not known before; SageMaker ends it after 2 h, at most $6.08")
    alone = "cluster.groups=[{name: g, instance_type: ml.g5.xlarge}]"
    pool = Trials("sagemaker", catalog(), ["sagemaker.keep_alive_s=3000", alone])
    assert pool.duration(path).endswith("after 2 h and keeps its hosts for 50 min more, at most $3.99")
    elsewhere = Trials("sagemaker", catalog(), ["sagemaker.region=mars-1"])
    assert elsewhere.duration(path).endswith("ends it after 2 h, and what that costs is not known either")
    nowhere = Trials("sagemaker", catalog(), ["sagemaker=null", "cluster={}"])
    assert nowhere.duration(path).endswith("ends it after 24 h, and what that costs is not known either")
    assert Trials("twin", catalog(), []).duration(path) == "small: how long is not known before"
    assert trained == []


def test_how_many_samples_a_job_trains_on(job_file):
    def intended(**changes):
        return Trials("nodes", catalog(), []).intended(job_file(**changes))

    noise = {"kind": "synthetic", "num_samples": 100, "shape": [8, 8, 3], "num_classes": 3}
    assert ": 7 epochs, 700 samples, on" in intended(data__train=noise, training={"epochs": 7})
    two = {"groups": [{"name": "gpu", "hosts": 2, "cpus": 4, "gpus": 3}]}
    assert ": 10 steps, 960 samples, on" in intended(cluster=two, training={"steps": 10}), "six ranks of 16"
    assert ": 7 epochs, on" in intended(training={"epochs": 7}), "only the folder knows"
    assert ": 10 steps, 160 samples, on" in intended(training={"steps": 10}), "one rank, without a GPU"


def test_a_probes_start_up_is_part_of_how_long_it_takes(trained, job_file):
    """640 samples at 64 a second, and three seconds."""
    assert "small: roughly 13 s without" in Trials("nodes", catalog(), []).duration(job_file(training={"epochs": 1}))


DURATIONS = [(0.5, "0.5 s"), (40, "40 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h")]


@pytest.mark.parametrize(("seconds", "text"), [*DURATIONS, (12_000, "3.3 h"), (2e6, "23 days")])
def test_a_rough_duration(seconds, text):
    assert trials.lasting(seconds) == text
