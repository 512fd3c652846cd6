"""The record, the run folder, and what a person reads of them."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import jsonschema
import pytest
from conftest import progress
from rich.console import Console

from raytrain.errors import CheckpointError, ConfigError
from raytrain.record.schema import HostLoad, RunRecord, Unusual, Utilization, read_record
from raytrain.record.status import Failure, Status
from raytrain.report.live import Display, clock, epoch_line, step_line
from raytrain.report.tables import print_summary
from raytrain.run.folder import open_run_folder, process_started_at


def test_a_record_comes_back_and_fits_its_own_schema(record, tmp_path):
    record.write(tmp_path / "deep" / "record.json")
    assert read_record(tmp_path / "deep" / "record.json") == record
    jsonschema.validate(json.loads((tmp_path / "deep" / "record.json").read_text()), RunRecord.model_json_schema())
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["record.json"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read .*record.json: No such file"),
        ("{", "is not JSON, or was cut off"),
        ('{"schema_version": 99}', "has schema version 99; this raytrain reads 5: run the job again"),
        (
            '{"schema_version": 4, "stages": []}',
            "has schema version 4; this raytrain reads 5: run the job again, or read",
        ),
        ('{"schema_version": 5, "name": "x"}', "is not a run record: status: Field required"),
        ("[]", "is not a run record"),
    ],
)
def test_a_file_that_is_no_record_says_why(tmp_path, text, message):
    path = tmp_path / "record.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_record(path)


def summary_of(record):
    console = Console(width=140, file=io.StringIO())
    print_summary(record, console)
    return console.file.getvalue()


def test_the_summary_says_who_waited_for_whom(record):
    text = summary_of(record)
    assert "2.00 (20%)" in text
    assert "1.00 (10%)" in text
    assert "7.00 (70%)" in text
    [stage] = [line.split() for line in text.splitlines() if line.startswith("decode ")]
    assert stage == ["decode", "640", "5.000", "7.000", "3.20", "4.48", "400.0", "500.0"]
    assert "emulated nodes" in text
    assert "bottleneck: balanced: the ranks wait for data 20% of the time; stage 'decode' takes longest" in text
    assert (
        "left out, since they could not be prepared: 2 of 640 training samples (0.31%); the record names them" in text
    )
    assert "first step after -" in text
    assert "validation accuracy 90.00% after epoch 1" in text


@pytest.mark.parametrize("width", [80, 120])
def test_no_figure_of_the_summary_is_cut_and_missing_columns_are_named(record, width):
    [stage] = record.stages
    long = "validation/random_resized_crop_2"
    busy = Utilization(mean=12345.67, max=23456.78)
    crowded = record.model_copy(
        update={
            "stages": [stage, stage.model_copy(update={"name": long, "cpu_s": 123456.78, "num_samples": 12_811_670})],
            "ranks": [record.ranks[0].model_copy(update={"wait_s": 123456.78, "num_samples": 12_811_670})],
            "loads": [HostLoad(host="cpu-hosts-of-the-first-row-12", group="cpu", cpu_percent=busy, gpu_percent=busy)],
        }
    )
    console = Console(width=width, file=io.StringIO())
    print_summary(crowded, console)
    text = console.file.getvalue()
    assert "…" not in text
    for whole in (long, "123456.78", "12,811,670", "cpu-hosts-of-the-first-row-12", "123.46 (234.57)"):
        assert whole in text, whole
    dropped = {80: "samples, wall seconds, batch p90 wall ms, p99", 120: "samples"}[width]
    assert f"left out at a width of {width}: {dropped}; the record has them" in " ".join(text.split())


def test_the_summary_says_what_the_stages_on_the_device_took(record):
    """Of two ranks, 640 samples each, and in validation."""
    taken = {"gaussian_blur": 0.64, "validation/resize": 0.25}
    seen = {"device_stage_samples": {"gaussian_blur": 320, "validation/resize": 100}}
    record.ranks = [record.ranks[0].model_copy(update={"device_stage_s": taken, **seen}) for _ in range(2)]
    assert record.device_stage_s_per_sample == {"gaussian_blur": 0.001}
    lines = [line.split() for line in summary_of(record).splitlines()]
    assert ["gaussian_blur", "640", "2.000", "1.28"] in lines, "half of them went there"
    assert ["validation/resize", "200", "2.500", "0.50"] in lines


def test_the_summary_shares_out_a_ranks_time_with_its_gaps(record):
    """100 s of training: 2 waiting, 14 without a kernel, 84 with one; the other rank's driver does not tell."""
    assert "gaps" not in summary_of(record)
    times = {"wait_s": 2.0, "transfer_s": 5.0, "compute_s": 84.0, "gap_s": 14.0, "transfer_overlaps": True}
    rank = record.ranks[0].model_copy(update={"device": "cuda:0", **times})
    other = rank.model_copy(update={"rank": 1, "compute_s": 98.0, "gap_s": None})
    record.ranks[:] = [rank, other]
    assert (rank.train_s, other.train_s) == (100.0, 100.0)
    text = summary_of(record)
    head, *rows = [line.split() for line in text.splitlines() if "compute" in line.split() or "cuda:0" in line]
    assert head[3:7] == ["wait", "transfer", "gaps", "compute"]
    assert " ".join(rows[0][3:11]) == "2.00 (2%) 5.00 (5%) 14.00 (14%) 84.00 (84%)"
    assert " ".join(rows[1][3:10]) == "2.00 (2%) 5.00 (5%) - 98.00 (98%)"
    assert "what helps against the GPU's idling between kernels: " in text
    record.ranks[:] = [rank.model_copy(update={"gap_s": 5.0, "compute_s": 93.0})]
    assert "what helps against" not in summary_of(record)


def test_the_summary_warns_of_stages_that_were_kept_from_their_cpus(record):
    assert "warning" not in summary_of(record)
    record.stages[0].wall_s = 7.68
    assert "warning: the stages took 2.4 times their CPU time" in summary_of(record)


def test_the_summary_says_how_busy_the_hosts_were(record):
    def shown(**changes):
        console = Console(width=120, file=io.StringIO())
        print_summary(record.model_copy(update=changes), console)
        return console.file.getvalue()

    assert "How busy the hosts were" not in shown()
    assert "How busy the hosts were" not in shown(loads=[HostLoad(host="cpu-1", group="cpu")])
    busy = HostLoad(
        host="this machine",
        group=None,
        cpu_percent={"mean": 152, "max": 200},
        memory_percent={"mean": 41.2, "max": 44.9},
        received_mbit_per_s={"mean": 1234.56, "max": 2000},
    )
    text = shown(loads=[busy, HostLoad(host="cpu-1", group="cpu")])
    assert "How busy the hosts were while training: mean (highest)" in text
    words = [line.replace("│", " ").split() for line in text.splitlines() if "this machine" in line or "cpu-1" in line]
    of_this = "this machine 1.52 (2.00) 2 41% (45%) - 1,234.6 (2,000.0) -"
    assert of_this.split() in words and ["cpu-1", "-", "2", "-", "-", "-", "-"] in words


def test_a_run_folder_is_never_overwritten(tmp_path):
    first = open_run_folder(str(tmp_path), "x", resume=False)
    (first.path / "record.json").write_text("{}")
    first.close()
    second = open_run_folder(str(tmp_path), "x", resume=False)
    assert (second.path / "record.json").exists(), "not before the new run is sure to start"
    second.set_aside_earlier_run()
    assert (second.set_aside / "record.json").read_text() == "{}"
    assert list(second.path.iterdir()) == [second.path / ".lock"]
    (second.path / "record.json").write_text("2")
    second.close()
    third = open_run_folder(str(tmp_path), "x", resume=False)
    third.set_aside_earlier_run()
    with pytest.raises(ConfigError, match="another raytrain process is using"):
        open_run_folder(str(tmp_path), "x", resume=False)
    assert (third.set_aside / "record.json").read_text() == "2"
    assert third.set_aside != second.set_aside
    third.close()
    third.close()


def test_a_run_that_came_to_nothing_leaves_no_folder(tmp_path):
    open_run_folder(str(tmp_path / "a" / "runs"), "x", resume=False).close()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    open_run_folder(str(tmp_path / "runs"), "x", resume=False).close()
    open_run_folder(str(tmp_path / "runs"), "mine", resume=False).close()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"], "what was there before stays"
    kept = open_run_folder(str(tmp_path / "runs"), "x", resume=False)
    kept.record.write_text("{}")
    kept.close()
    assert kept.record.exists()


def test_an_earlier_run_that_cannot_be_moved_says_so(tmp_path, monkeypatch):
    folder = open_run_folder(str(tmp_path), "x", resume=False)
    folder.record.write_text("{}")
    monkeypatch.setattr("pathlib.Path.rename", lambda *_: (_ for _ in ()).throw(PermissionError(13, "denied")))
    with pytest.raises(ConfigError, match="cannot set the earlier run in .* aside: denied"):
        folder.set_aside_earlier_run()
    folder.close()


def test_a_resumed_run_keeps_the_record_of_what_came_before(tmp_path):
    folder = open_run_folder(str(tmp_path), "x", resume=False)
    for text in ("one", "two", "three"):
        folder.keep_earlier_record()
        folder.record.write_text(text)
    texts = {path.name: path.read_text() for path in folder.path.glob("*.json")}
    assert texts == {"record.1.json": "one", "record.2.json": "two", "record.json": "three"}
    folder.close()


def test_a_run_folder_belongs_to_one_process(tmp_path):
    held = open_run_folder(str(tmp_path), "x", resume=False)
    with pytest.raises(ConfigError, match="another raytrain process is using"):
        open_run_folder(str(tmp_path), "x", resume=False)
    held.close()


def test_a_run_folder_that_cannot_be_made_or_resumed_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot use the run folder .* choose another run_dir"):
        open_run_folder(str(tmp_path / "file"), "x", resume=False)
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from; start without --resume"):
        open_run_folder(str(tmp_path), "x", resume=True)
    (tmp_path / "x" / "checkpoints").mkdir(parents=True)
    open_run_folder(str(tmp_path), "x", resume=True).close()
    with pytest.raises(CheckpointError, match="has no checkpoint to resume from; start without resume=True"):
        open_run_folder(str(tmp_path), "y", resume=True, afresh="start without resume=True")
    with pytest.raises(ConfigError, match="run_dir must be a folder of this host, or one that is mounted here, not"):
        open_run_folder("s3://bucket/runs", "x", resume=False)


def test_a_run_folder_is_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for run_dir, path in (("runs", tmp_path / "runs/x"), ("~/runs", tmp_path / "home/runs/x")):
        folder = open_run_folder(run_dir, "x", resume=False)
        assert folder.path == path
        folder.close()


def test_the_start_of_the_process_is_in_the_past():
    import time

    assert 0 < time.time() - process_started_at() < 86_400


FIRST = {"epoch": 1, "loss": 0.5, "validation_accuracy": 0.9, "seconds": 2.0, "samples_per_s": 700.0}
PROGRESS = progress(total_steps=69, history=[FIRST], loss=0.25, samples_per_s=812.44, wait_share=0.012)
STATUS = Status({0: PROGRESS}, num_ready=3, attempts=2, failures=[("train", Failure(1, "a.jpg", "cut off"))])


def test_lines_and_times():
    assert step_line(PROGRESS, 21.9) == ("epoch 2/3  step 30/69  812.4 samples/s  loss 0.2500  waiting 1.2%  0:21 left")
    assert epoch_line(FIRST, 3) == ("epoch 1/3  loss 0.5000  validation accuracy 0.9000  2.0 s  700.0 samples/s")
    with_rate = {**FIRST, "steps": 23, "learning_rate": 1e-5}
    assert "rate" not in epoch_line(with_rate, 3), "it is for the record and the page"
    assert clock(3723) == "1:02:03"


@pytest.mark.parametrize("terminal", [True, False])
def test_the_display_shows_each_epoch_once(terminal):
    console = Console(width=120, force_terminal=terminal, file=io.StringIO())
    last = SimpleNamespace(epochs=3, history=[{"epoch": 3, "loss": 0.1, "seconds": 1, "samples_per_s": 1}])
    with Display(console) as display:
        display.update("2 nodes are up")
        display.update(Status())
        for _ in range(3):
            display.update(replace(STATUS, stopping=True))
        display.update(replace(STATUS, results={0: last}))
    text = console.file.getvalue()
    assert text.count("2 nodes are up") == 1
    assert text.count("epoch 1/3  loss 0.5000") == 1
    assert text.count("epoch 3/3  loss 0.1000") == 1
    if terminal:
        assert "3 batches ready  1 samples left out  attempt 2  stopping: writing a checkpoint" in text


def test_images_that_the_devices_decoder_did_not_take_are_said(record):
    record.ranks = [record.ranks[0].model_copy(update={"decoded_on_device": 600})] * 2
    assert "decode` on" not in summary_of(record)
    record.ranks = [record.ranks[0].model_copy(update={"decoded_on_host": 40})] * 2
    told = (
        "`decode` on the device: 80 of 1,280 images and masks were decoded by the ranks' CPUs, since its decoder takes"
    )
    assert f"{told} usual JPEG files alone" in " ".join(summary_of(record).split())


def test_what_went_another_way_than_usual_is_said(record):
    record.unusual = Unusual(dropped=3, skipped_steps=2, skipped_samples=1234)
    text = summary_of(record)
    assert "3 samples dropped (data.tail: drop_last); 2 updates left out, with their 1,234 samples" in text
    record.unusual = Unusual()
    record.corrupt.train, record.corrupt.validation = 0, 1
    text = summary_of(record)
    assert "dropped" not in text
    assert "could not be prepared: 1 of 64 validation samples (1.56%); the record names them" in text
