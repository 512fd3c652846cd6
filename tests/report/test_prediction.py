"""What is shown of a prediction."""

from __future__ import annotations

import io
import time

from rich.console import Console

from raytrain.cluster.topology import Host
from raytrain.infer.contract import StreamShape
from raytrain.infer.desk import Work
from raytrain.infer.progress import Progress, StreamSeen
from raytrain.infer.stream import Answered
from raytrain.infer.streams.places import StreamPlace
from raytrain.record.inference import InferenceRecord, ThreeFigures
from raytrain.report.inference import Display, line, print_prediction


def progress() -> Progress:
    """40 samples of 100 in two seconds, ten of them of an earlier run."""
    place = StreamPlace(Host("gpu-1", "gpu", 2, 1), StreamShape((), 2), (0,), "cpu")
    stream = StreamSeen(place, last=Answered(30, [], 1.5, 2.0, [0.1]))
    found = Progress(100, before=10, streams=[stream])
    found.note(Work(0), 0, 30, 2)
    found.first_at, found.last_at = 0.0, 2.0
    return found


def console(width: int = 120, *, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=terminal)


def test_the_line_meanwhile():
    assert line(progress()) == "40 of 100 samples  15.0 samples/s  2 errors  streams busy 75%  0:04 left"
    assert line(Progress(100)) == "0 of 100 samples  streams are starting"


def test_what_is_done_again_counts_once():
    found = progress()
    found.note(Work(0), 0, 30, 2)
    assert (found.done, found.errors) == (30, 2)
    found.note(Work(1), -1, 1, 1)
    found.forget(Work(0))
    assert (found.done, found.errors) == (1, 1)


def test_lines_come_now_and_then_and_a_panel_in_a_terminal(monkeypatch):
    shown = console()
    with Display(shown) as display:
        display.update("listing the data of [/new]")
        display.update(progress())
        monkeypatch.setattr(display, "_line_at", time.monotonic() - 60)
        display.update(progress())
    assert shown.file.getvalue().splitlines() == ["listing the data of [/new]", line(progress())]
    shown = console(terminal=True)
    with Display(shown) as display:
        display.update(progress())
    assert "raytrain infer" in shown.file.getvalue()


def test_the_tables_at_the_end(record):
    stream = {"host": "gpu-1", "device": "cuda", "cpus": [], "threads": 2, "sizes": [0], "samples": 30, "load_s": 1.0}
    stream |= {"alone_samples_per_s": 50.0, "busy_share": 0.75, "gpu_busy_share": 0.5, "restarts": 1}
    figures = {"model": 50.0, "prepare": 20.0, "together": 15.0}
    told = InferenceRecord(
        **record.model_dump(include={"name", "started_at", "command", "versions", "environment", "cluster_attached"}),
        **record.model_dump(include={"emulated_gpus", "cpu_slots", "hosts", "hardware"}),
        status="finished",
        error=None,
        job={},
        output="out",
        model="resnet18",
        model_digest="ab",
        num_samples=100,
        samples_before=10,
        rows=98,
        errors=2,
        listed=["a.jpg: cut off"],
        wall_s=8.0,
        seconds=2.0,
        samples_per_s=15.0,
        figures=ThreeFigures(**figures, limited_by="prepare", text="preparing samples limits"),
        stages=[{"name": "decode", "num_samples": 40, "cpu_s": 4.0, "wall_s": 5.0}],
        streams=[stream],
        done_again=3,
        torch_in_preprocessing_workers=False,
    )
    shown = console()
    print_prediction(told, shown)
    text = shown.file.getvalue()
    for part in (
        "model alone  decoding and stages alone  together",
        "       50.0                       20.0      15.0",
        "preparing samples limits",
        "75%      25%       50%",
        "100.000",
        "98 rows and 2 errors of 100 samples in out",
        "out/_errors-*.parquet; the first, a.jpg: cut off",
        "10 of the samples had been finished before",
        "done again, because a process or a host was lost: 3 times",
    ):
        assert part in text, text
