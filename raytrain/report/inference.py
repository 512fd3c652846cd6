"""What a person sees of a prediction: a live line or panel, and the tables at its end."""

from __future__ import annotations

import time

from rich.console import Console
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raytrain.config.inference import PredictionJob
from raytrain.errors import RaytrainError, show_uncaught_errors_briefly
from raytrain.infer import predict as running
from raytrain.infer.progress import Progress
from raytrain.record.inference import InferenceRecord
from raytrain.report.fitting import Column, number, show_fitted
from raytrain.report.live import LINE_EVERY_S, clock
from raytrain.report.terminal import LiveDisplay

REMEDY = "the record has them"


def shown(
    job: PredictionJob,
    console: Console,
    *,
    nodes: str | None = None,
    address: str | None = None,
    started_at: float | None = None,
) -> InferenceRecord:
    """`predict`, with a live display and the tables at the end.

    Raises:
        RaytrainError: what went wrong, or Stopped after Ctrl-C or SIGTERM.
    """
    with Display(console) as display:
        try:
            record = running.predict(job, nodes=nodes, address=address, watch=display.update, started_at=started_at)
        except RaytrainError as error:
            show_uncaught_errors_briefly()
            raise error.with_traceback(None) from None
    print_prediction(record, console)
    return record


class Display(LiveDisplay):
    """Shows how a prediction stands."""

    def __init__(self, console: Console):
        super().__init__(console)
        self._line_at = time.monotonic()

    def update(self, told: str | Progress) -> None:
        """Called with what is being done, or with how far it is."""
        if isinstance(told, str):
            self._console.print(told, highlight=False, markup=False, soft_wrap=True)
        elif self._live is not None:
            self._live.update(_panel(told), refresh=True)
        elif time.monotonic() - self._line_at >= LINE_EVERY_S:
            self._line_at = time.monotonic()
            self._console.print(line(told), highlight=False)


def line(progress: Progress) -> str:
    """`1,234 of 5,000 samples  812.4 samples/s  3 errors  streams busy 97%  0:21 left`"""
    done, rate = progress.before + progress.done, progress.samples_per_s
    shares = [each.busy_share for each in progress.streams if each.busy_share is not None]
    parts = [
        f"{done:,} of {progress.total:,} samples",
        f"{rate:,.1f} samples/s" if rate else "",
        f"{progress.errors:,} errors" if progress.errors else "",
        f"streams busy {sum(shares) / len(shares):.0%}" if shares else "streams are starting",
        f"{clock((progress.total - done) / rate)} left" if rate else "",
    ]
    return "  ".join(part for part in parts if part)


def _panel(progress: Progress) -> Panel:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_row(line(progress))
    grid.add_row(ProgressBar(total=progress.total, completed=progress.before + progress.done))
    if progress.lost:
        grid.add_row(f"done again, because a process or a host was lost: {progress.lost:,}")
    return Panel(grid, title="raytrain infer", title_align="left")


def print_prediction(record: InferenceRecord, console: Console) -> None:
    """One table per question: which part limits, what the streams did, and what the stages cost."""
    _figures(record, console)
    if record.streams:
        _streams(record, console)
    if record.stages:
        _stages(record, console)
    for told in _facts(record):
        console.print(Text(told))


def _figures(record: InferenceRecord, console: Console) -> None:
    figures = record.figures
    columns = [Column("model alone"), Column("decoding and stages alone"), Column("together")]
    row = [_rate(each) for each in (figures.model, figures.prepare, figures.together)]
    show_fitted("Samples a second", columns, [row], console, REMEDY)
    console.print(Text(figures.text))


def _streams(record: InferenceRecord, console: Console) -> None:
    with_gpu = any(each.gpu_busy_share is not None for each in record.streams)
    columns = [
        Column("stream"),
        Column("host", 2, right=False),
        Column("device", 1, right=False),
        Column("threads", 3),
        Column("samples"),
        Column("alone, samples/s"),
        Column("computing"),
        Column("waiting"),
        *([Column("GPU busy")] if with_gpu else []),
        Column("restarts", 4),
    ]
    rows = [
        [
            str(place),
            each.host,
            each.device,
            str(each.threads),
            f"{each.samples:,}",
            _rate(each.alone_samples_per_s),
            _share(each.busy_share),
            _share(None if each.busy_share is None else 1 - each.busy_share),
            *([_share(each.gpu_busy_share)] if with_gpu else []),
            str(each.restarts),
        ]
        for place, each in enumerate(record.streams)
    ]
    show_fitted("What the streams did (shares of their time)", columns, rows, console, REMEDY)


def _stages(record: InferenceRecord, console: Console) -> None:
    columns = [Column("stage", right=False), Column("samples", 1), Column("CPU ms a sample"), Column("CPU seconds")]
    rows = [
        [each.name, f"{each.num_samples:,}", f"{each.cpu_s_per_sample * 1e3:.3f}", f"{each.cpu_s:.2f}"]
        for each in record.stages
    ]
    show_fitted("What the CPU stages cost", columns, rows, console, REMEDY)


def _facts(record: InferenceRecord) -> list[str]:
    lines = [f"{record.rows:,} rows and {record.errors:,} errors of {record.num_samples:,} samples in {record.output}"]
    if record.errors:
        first = f"; the first, {record.listed[0]}" if record.listed else ""
        lines.append(f"the errors are in {record.output}/_errors-*.parquet{first}")
    if record.samples_before:
        lines.append(f"{record.samples_before:,} of the samples had been finished before")
    if record.done_again:
        lines.append(f"work that was done again, because a process or a host was lost: {record.done_again:,} times")
    lines.append(f"{record.wall_s:.1f} s in all")
    return lines


def _rate(value: float | None) -> str:
    return "-" if value is None else number(value, 1)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
