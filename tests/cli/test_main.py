"""The command line apart from training."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import cv2
import pytest
from conftest import ROOT, ray_processes, run_cli

from raytrain import __version__
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.sources.open import open_manifest


@pytest.mark.process
def test_the_digits_are_real_images_split_by_class(tmp_path):
    result = run_cli("sample-data", "digits", tmp_path / "digits", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout) == {"folder": str(tmp_path / "digits"), "train": 1438, "validation": 359}
    train = open_manifest(image_folder(tmp_path / "digits" / "train"))
    validation = open_manifest(image_folder(tmp_path / "digits" / "validation"), like=train.schema)
    assert train.num_samples + validation.num_samples == 1797
    assert train.schema["label"].classes == tuple("0123456789")
    names = {p.name for p in tmp_path.rglob("*.jpg")}
    assert len(names) == 1797, "no image is in both splits"
    image = cv2.imread(str(next((tmp_path / "digits" / "train" / "0").glob("*.jpg"))))
    assert image.shape == (32, 32, 3)
    again = run_cli("sample-data", "digits", tmp_path / "digits")
    assert again.stdout.strip().endswith("1438 training and 359 validation images")
    assert open_manifest(image_folder(tmp_path / "digits" / "train")).fingerprint == train.fingerprint


@pytest.mark.process
def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    result = run_cli("sample-data", "digits", tmp_path / "file" / "x")
    assert result.returncode == 2
    assert result.stderr.strip().startswith("raytrain: cannot write ")
    assert "Traceback" not in result.stderr


def test_scikit_learn_is_asked_for_when_it_is_missing(monkeypatch, tmp_path):
    import sys

    from raytrain.data.toy import write_digits
    from raytrain.errors import ConfigError

    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ConfigError, match="sample-data digits needs scikit-learn"):
        write_digits(tmp_path)


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sample-data", "cats", "x"], "raytrain: Invalid value for 'name': Value error, 'cats' is not one of"),
        (["trian"], "raytrain: No such command 'trian'. Did you mean 'train', 'twin'?; see raytrain --help"),
        (["train"], "raytrain: Missing argument 'JOB.yaml'; see raytrain --help"),
        (["train", "/no/such.yaml"], "raytrain: cannot read the job file /no/such.yaml: no such file or directory"),
        (["train", "x.yaml", "--nodse", "a=1x1"], "raytrain: No such option: --nodse"),
    ],
)
def test_a_wrong_call_is_exit_code_2(arguments, message):
    result = run_cli(*arguments, COLUMNS="140", TERM="dumb")
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.process
def test_without_a_command_the_help_is_shown():
    result = run_cli(COLUMNS="140", TERM="dumb")
    assert result.returncode == 2
    assert "Commands" in result.stdout + result.stderr


@pytest.mark.ray
def test_ray_that_cannot_start_is_one_line(job_file):
    result = run_cli("train", job_file(), "--nodes", "a=1x1", RAY_TMPDIR="/proc/nowhere")
    assert result.returncode == 2
    assert "raytrain: Ray did not start on this machine: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.process
def test_the_script_of_a_cluster_is_the_same_command():
    result = subprocess.run(
        [sys.executable, str(ROOT / "source_dir" / "train.py"), "/no/such.yaml"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.startswith("raytrain: cannot read the job file /no/such.yaml")


def test_a_run_dir_comes_before_the_jobs(cli, job_file, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr("raytrain.report.live.shown", lambda *_, **options: asked.append((_, options)))
    monkeypatch.chdir(tmp_path)
    result = cli("train", job_file(), "--run-dir", "kept", "--resume")
    (_, _, job, _), options = asked[0]
    assert job.run_dir == "kept"
    assert (options["resume"], options["resume_word"]) == (True, "--resume")
    assert result.stdout == f"record: {tmp_path}/kept/small/record.json\n"


@pytest.mark.process
def test_the_version():
    assert run_cli("--version").stdout == f"raytrain {__version__}\n"


ALONE = """
import psutil, ray, sys
ray.init(logging_level='error')
family = [each for each in psutil.Process().parents() if 'bootstrap' in ' '.join(each.cmdline())][-1]
family = [family, *family.children(recursive=True)]
found = [c for each in family for c in each.net_connections('inet') if c.status == 'LISTEN']
print(len(ray.nodes()), sys.argv[1:], {c.laddr.ip.removeprefix('::ffff:') for c in found}, len(found) > 4)
1 / 0
"""


def bootstrap_lines(stderr: str) -> list[dict]:
    return [json.loads(line) for line in stderr.splitlines() if line.startswith("{")]


@pytest.mark.ray
def test_a_laptop_is_a_cluster_of_one_under_the_same_command(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(ALONE)
    before = ray_processes()
    result = run_cli("bootstrap", "--json", "--", program, "--json", "a b")
    assert result.returncode == 1
    assert result.stdout == "1 ['--json', 'a b'] {'127.0.0.1'} True\n", "it listens nowhere but on loopback"
    said = bootstrap_lines(result.stderr)
    assert said[-1]["message"] == "ZeroDivisionError: division by zero" and said[-1]["status"] == 1
    assert ray_processes() <= before


@pytest.mark.process
@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing argument '-- PROGRAM [ARGS]...'"),
        (["--", "gone.py"], "there is no program 'gone.py' in "),
        (["--port", "0", "--", "true"], "Invalid value for '--port'"),
        (["--efa", "maybe", "--", "true"], "Invalid value for '--efa'"),
        (["--no-such-option", "--", "true"], "No such option: --no-such-option"),
        (["--head-group", "gpu", "--", "true"], "--head-group 'gpu' is not a group of this job"),
        (["--token-file", "gone", "--", "true"], "--token-file: gone cannot be read"),
        (["--remote-write-user", "me", "--", "true"], "say how to use --remote-write"),
    ],
)
def test_a_wrong_bootstrap_is_one_line_and_in_the_failure_file(words, message, tmp_path):
    config = tmp_path / "input/config"
    config.mkdir(parents=True)
    (config / "resourceconfig.json").write_text('{"current_host": "algo-1", "hosts": ["algo-1"]}')
    result = run_cli("bootstrap", *words, SAGEMAKER_BASE_DIR=str(tmp_path))
    assert result.returncode == 2
    line = result.stderr.strip()
    assert len(line.splitlines()) == 1 and message in line
    assert f"raytrain: {(tmp_path / 'output/failure').read_text()}" == line


@pytest.mark.ray
def test_a_prometheus_that_does_not_start_does_not_end_the_job(tmp_path):
    (tmp_path / "prometheus").write_text("no program at all")
    result = run_cli("bootstrap", "--prometheus", tmp_path / "prometheus", "--", "true")
    assert result.returncode == 0
    assert "no Prometheus, the job goes on: [Errno 8] Exec format error" in result.stderr


@pytest.mark.ray
def test_a_taken_port_is_named_or_passed_by(tmp_path):
    with socket.socket() as holder:
        holder.bind(("", 0))
        holder.listen()
        port = holder.getsockname()[1]
        result = run_cli("bootstrap", "--port", port, "--", "env")  # alone, the next free one will do
    assert result.returncode == 0 and "RAY_ADDRESS=" in result.stdout
    assert f":{port}\n" not in result.stdout
    assert "RAY_AUTH_MODE=token" in result.stdout and "RAY_AUTH_TOKEN=" not in result.stdout
