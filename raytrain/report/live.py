"""What a person sees while a run goes on: a panel in a terminal, a line an epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from raytrain.config.job import Job
from raytrain.errors import RaytrainError, show_uncaught_errors_briefly
from raytrain.record.schema import RunRecord
from raytrain.record.status import RankProgress, Status
from raytrain.report.tables import print_summary
from raytrain.report.terminal import LiveDisplay, terminal
from raytrain.run import driver
from raytrain.run.hosted import folder_of

if TYPE_CHECKING:
    from raytrain.data.pipeline import Pipeline
    from raytrain.train.context import TrainContext

LINE_EVERY_S = 10.0
STALLED_S, STALLED_STEPS = 15.0, 5  # without a batch done, and so many times what a batch takes: that is told
NOT_IN_A_LINE = {"epoch", "loss", "seconds", "steps", "samples_per_s", "learning_rate"}  # or elsewhere in it


def fit(
    train_loop: Callable[[TrainContext], None] | None = None,
    pipeline: Pipeline | None = None,
    job: Job | None = None,
    *,
    nodes: str | None = None,
    address: str | None = None,
    resume: bool = False,
    console: Console | None = None,
    started_at: float | None = None,
    resume_word: str = "resume=True",
) -> RunRecord:
    """Run a job to its end, with a live display and, at the end, the tables and where the record is.

    Args:
        train_loop, pipeline, job, nodes, address, resume, started_at, resume_word: as in `raytrain.run.driver.run`.
        console: where to show; standard error by default.

    Raises:
        RaytrainError: what went wrong, or Stopped after Ctrl-C or SIGTERM.
    """
    options: dict[str, Any] = {"nodes": nodes, "address": address, "resume": resume}
    options |= {"started_at": started_at, "resume_word": resume_word}
    console = console or terminal()
    record = shown(train_loop, pipeline, job, console, **options)
    assert job is not None, "the run would have refused"
    console.print(f"record: {folder_of(job).record}", highlight=False, soft_wrap=True)
    return record


def shown(
    train_loop: Callable[[TrainContext], None] | None,
    pipeline: Pipeline | None,
    job: Job | None,
    console: Console,
    **options: Any,
) -> RunRecord:
    """`fit`, but for the last line."""
    with Display(console) as display:
        try:
            record = driver.run(train_loop, pipeline, cast(Job, job), watch=display.update, **options)
        except RaytrainError as error:
            # where a loop failed is in its notes; how this process came to hear of it helps nobody
            show_uncaught_errors_briefly()
            raise error.with_traceback(None) from None
    print_summary(record, console)
    return record


class Display(LiveDisplay):
    """Shows how a run stands."""

    def __init__(self, console: Console):
        super().__init__(console)
        self._line_at = time.monotonic()
        self._epochs_shown = 0
        self._step_shown = -1
        self._started: tuple[float, int] | None = None
        self._moved = Moved()

    def __enter__(self) -> Display:
        self._console.print("starting: listing the data, starting Ray")
        return super().__enter__()

    def update(self, told: str | Status) -> None:
        """Called with what is being done, or with how the run stands."""
        if isinstance(told, str):
            self._console.print(told, highlight=False, soft_wrap=True)  # a path stays whole
            return
        progress, result = told.progress.get(0), told.results.get(0)
        latest = result or progress
        if latest is None:
            return
        for epoch in latest.history:
            if epoch["epoch"] > self._epochs_shown:
                self._epochs_shown = epoch["epoch"]
                self._console.print(epoch_line(epoch, latest.epochs), highlight=False)
        if result or progress is None or (latest.history and latest.history[-1]["epoch"] >= progress.epoch):
            return  # the last line printed is newer than this progress
        left, stalled = self._time_left(progress), self._moved.stalled(told, time.monotonic())
        if self._live is not None:
            self._live.update(_panel(told, progress, left, stalled), refresh=True)
        elif stalled is None and time.monotonic() - self._line_at >= LINE_EVERY_S and progress.step != self._step_shown:
            self._line_at, self._step_shown = time.monotonic(), progress.step
            self._console.print(step_line(progress, left), highlight=False)
        elif stalled is not None and self._moved.is_due():
            self._console.print(step_line(progress, None, stalled), highlight=False)

    def _time_left(self, progress: RankProgress) -> float | None:
        now = time.monotonic()
        if self._started is None:
            self._started = (now, progress.step)
        began, first = self._started
        done = progress.step - first
        return (now - began) / done * (progress.total_steps - progress.step) if done > 0 else None


class Moved:
    """Whether the ranks still do batches, of training or of validation."""

    def __init__(self) -> None:
        self._at, self._last, self._batch_s = 0.0, (-1, -1.0), 0.0
        self._stalled_s, self._told_s = 0.0, 0.0

    def stalled(self, status: Status, now_s: float) -> str | None:
        """What they wait for, in a few words, once they have done nothing for long.

        Args:
            now_s: by a clock that only goes forward.
        """
        done = status.attempts, sum(status.positions.values()) / max(len(status.positions), 1)
        if done != self._last:
            batches = done[1] - self._last[1]
            if self._last[0] == done[0] and batches > 0:
                self._batch_s = max((now_s - self._at) / batches, 0.9 * self._batch_s)
            self._at, self._last, self._told_s = now_s, done, 0.0
        self._stalled_s = now_s - self._at
        if self._stalled_s < max(STALLED_S, STALLED_STEPS * self._batch_s) or status.stopping:
            return None
        why = f"{status.num_ready} are ready: the training loop is busy" if status.num_ready else "none is ready"
        return f"no batch for {clock(self._stalled_s)}, {why}"

    def is_due(self) -> bool:
        """Whether it is time for another line about it: after twice as long each time."""
        if self._stalled_s < 2 * self._told_s:
            return False
        self._told_s = self._stalled_s
        return True


def _panel(status: Status, progress: RankProgress, left_s: float | None, stalled: str | None) -> Panel:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_row(step_line(progress, left_s, stalled))
    grid.add_row(ProgressBar(total=progress.total_steps, completed=progress.step))
    notes = [f"{status.num_ready} batches ready"]
    if status.failures:
        notes.append(f"{len(status.failures)} samples left out")
    if status.attempts > 1:
        notes.append(f"attempt {status.attempts}")
    if status.stopping:
        notes.append("stopping: writing a checkpoint")
    grid.add_row("  ".join(notes))
    return Panel(grid, title="raytrain", title_align="left")


def step_line(progress: RankProgress, left_s: float | None, stalled: str | None = None) -> str:
    """`epoch 3/30  step 52/690  812.4 samples/s  loss 0.4101  waiting 1.2%  0:21 left`; no rate while nothing goes on.

    Args:
        stalled: why, in that case.
    """
    loss, rate = progress.loss, progress.samples_per_s
    if stalled is not None:
        return f"epoch {progress.epoch}/{progress.epochs}  step {progress.step}/{progress.total_steps}  {stalled}"
    parts = [
        f"epoch {progress.epoch}/{progress.epochs}",
        f"step {progress.step}/{progress.total_steps}",
        f"{rate:.1f} samples/s" if rate is not None else "",
        f"loss {loss:.4f}" if loss is not None else "",
        f"waiting {progress.wait_share:.1%}",
        f"{clock(left_s)} left" if left_s is not None else "",
    ]
    return "  ".join(part for part in parts if part)


def epoch_line(epoch: dict[str, float | None], num_epochs: int) -> str:
    """One finished epoch."""
    parts = [f"epoch {epoch['epoch']:.0f}/{num_epochs}"]
    for name in ["loss", *sorted(set(epoch) - NOT_IN_A_LINE)]:
        parts.append(f"{name.replace('_', ' ')} {_figure(epoch[name])}")
    parts.append(f"{epoch['seconds']:.1f} s")
    parts.append(f"{epoch['samples_per_s']:.1f} samples/s")
    return "  ".join(parts)


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.4f}"


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"
