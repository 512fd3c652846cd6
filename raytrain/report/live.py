"""What a person sees while a run goes on: a panel in a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from raytrain.config.job import Job
from raytrain.errors import RaytrainError, show_uncaught_errors_briefly
from raytrain.record.schema import RunRecord
from raytrain.report.tables import print_summary
from raytrain.report.terminal import terminal
from raytrain.run import driver as _job

LINE_EVERY_S = 10.0
NOT_IN_A_LINE = {"epoch", "loss", "seconds", "steps", "samples_per_s", "learning_rate"}  # or elsewhere in it


def fit(
    train_loop: Callable[[Any], None] | None = None,
    pipeline: Any = None,
    job: Job | None = None,
    *,
    console: Console | None = None,
    **options: Any,
) -> RunRecord:
    """`raytrain.run.driver.run` with a live display and, at the end, the tables.

    Args:
        train_loop, pipeline, job: as in `raytrain.run.driver.run`.
        console: where to show; standard error by default.
        options: `nodes`, `address`, `resume`, `started_at`, `resume_word` of `raytrain.run.driver.run`.
    """
    console = console or terminal()
    with Display(console) as display:
        try:
            record = _job.run(train_loop, pipeline, job, watch=display.update, **options)
        except RaytrainError as error:
            # where a loop failed is in its notes; how this process came to hear of it helps nobody
            show_uncaught_errors_briefly()
            raise error.with_traceback(None) from None
    print_summary(record, console)
    return record


class Display:
    """Shows the feed's status."""

    def __init__(self, console: Console):
        self._console = console
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._line_at = time.monotonic()
        self._epochs_shown = 0
        self._step_shown = -1
        self._started: tuple[float, int] | None = None

    def __enter__(self) -> Display:
        self._console.print("starting: listing the data, starting Ray")
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, status: dict[str, Any]) -> None:
        """Called with the figures of the moment."""
        if "phase" in status:
            self._console.print(status["phase"], highlight=False, soft_wrap=True)  # a path stays whole
            return
        figures = status.get("progress", {}).get(0, {})
        result = status.get("results", {}).get(0)
        if not result and "step" not in figures:
            return
        finished = (result or figures)["history"]
        for epoch in finished:
            if epoch["epoch"] > self._epochs_shown:
                self._epochs_shown = epoch["epoch"]
                self._console.print(epoch_line(epoch, (result or figures)["epochs"]), highlight=False)
        if result or (finished and finished[-1]["epoch"] >= figures["epoch"]):
            return  # the last line printed is newer than these figures
        left = self._time_left(figures)
        if self._live is not None:
            self._live.update(self._panel(status, figures, left), refresh=True)
        elif time.monotonic() - self._line_at >= LINE_EVERY_S and figures["step"] != self._step_shown:
            self._line_at, self._step_shown = time.monotonic(), figures["step"]
            self._console.print(step_line(figures, left), highlight=False)

    def _time_left(self, figures: dict[str, Any]) -> float | None:
        now = time.monotonic()
        if self._started is None:
            self._started = (now, figures["step"])
        began, first = self._started
        done = figures["step"] - first
        return (now - began) / done * (figures["total_steps"] - figures["step"]) if done > 0 else None

    def _panel(self, status: dict[str, Any], figures: dict[str, Any], left: float | None) -> Panel:
        grid = Table.grid(padding=(0, 2), expand=True)
        grid.add_row(step_line(figures, left))
        grid.add_row(ProgressBar(total=figures["total_steps"], completed=figures["step"]))
        notes = [f"{status['num_ready']} batches ready"]
        if status["failures"]:
            notes.append(f"{len(status['failures'])} samples left out")
        if status["attempts"] > 1:
            notes.append(f"attempt {status['attempts']}")
        if status.get("stopping"):
            notes.append("stopping: writing a checkpoint")
        grid.add_row("  ".join(notes))
        return Panel(grid, title="raytrain", title_align="left")


def step_line(figures: dict[str, Any], left_s: float | None) -> str:
    """`epoch 3/30  step 52/690  812.4 samples/s  loss 0.4101  waiting 1.2%  0:21 left`"""
    loss, rate = figures.get("loss"), figures.get("samples_per_s")
    parts = [
        f"epoch {figures['epoch']}/{figures['epochs']}",
        f"step {figures['step']}/{figures['total_steps']}",
        f"{rate:.1f} samples/s" if rate is not None else "",
        f"loss {loss:.4f}" if loss is not None else "",
        f"waiting {figures.get('wait_share', 0.0):.1%}",
        f"{clock(left_s)} left" if left_s is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def epoch_line(epoch: dict[str, float | None], num_epochs: int) -> str:
    """One finished epoch."""
    parts = [f"epoch {epoch['epoch']:.0f}/{num_epochs}"]
    for name in ["loss", *sorted(set(epoch) - NOT_IN_A_LINE)]:
        parts.append(f"{name.replace('_', ' ')} {'-' if epoch[name] is None else format(epoch[name], '.4f')}")
    parts.append(f"{epoch['seconds']:.1f} s")
    parts.append(f"{epoch['samples_per_s']:.1f} samples/s")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
