"""The exceptions that a user can meet. Each message says what was wrong, where, and what to do."""

from __future__ import annotations

import difflib
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

MOST_IDS = 16  # that a message lists
DESCRIBED = 3
MOST_CHARACTERS = 3000  # of a message
LONGEST_NAME = 200  # that another is likened to
HIDDEN = "***"
_IN_URL = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z0-9+.-]++://)[^/\s@'\"]++@")
_IN_QUERY = re.compile(
    r"([?&][\w.-]*(?:token|signature|secret|password|api_?key|credential|\bsig|\bauth)[\w.-]*=)[^&\s#'\"]+",
    re.IGNORECASE,
)


class RaytrainError(Exception):
    """Base of every error that is the user's to mend; the command line prints it and exits with `exit_code`."""

    exit_code = 2

    def __str__(self) -> str:
        """One line that can be shown: what a message repeats of a file may hold anything, and be of any length."""
        said = super().__str__()
        if len(said) > 20 * MOST_CHARACTERS:  # of which the ends alone are shown
            said = said[: 10 * MOST_CHARACTERS] + said[-10 * MOST_CHARACTERS :]
        said = without_credentials(said)
        if not said.isprintable():
            said = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in said)
        if len(said) > MOST_CHARACTERS:
            said = f"{said[: MOST_CHARACTERS // 2]} … {said[-MOST_CHARACTERS // 3 :]}"
        return said

    def told(self) -> str:
        """The message, and the notes that came with it."""
        return "\n".join([str(self), *getattr(self, "__notes__", [])])

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows in place of a traceback."""
        return [f"{type(self).__name__}: {self.told()}"]


class ConfigError(RaytrainError):
    """The job description, an option or a name is wrong."""


class DataError(RaytrainError):
    """The data set is missing, empty, unreadable or too corrupt to train on."""


class ClusterError(RaytrainError):
    """The Ray cluster cannot be reached, or cannot hold the job."""


class CloudError(RaytrainError):
    """AWS cannot be reached, refuses, or lacks what was asked for."""


class CloudUnreachable(CloudError):
    """AWS cannot be reached, throttles or fails by itself: what was asked may have been done or not, and can be asked
    again."""


class CheckpointError(RaytrainError):
    """There is no usable checkpoint, or it belongs to another data set."""


class TrainingError(RaytrainError):
    """The training loop failed; the cause is in the message."""

    exit_code = 1


class PredictionError(RaytrainError):
    """A model, or a process that runs it, failed, or predictions cannot be written; the cause is in the message."""

    exit_code = 1


class LossError(TrainingError):
    """A loss is no finite number.

    Attributes:
        ids: of the samples that made it.
    """

    def __init__(self, message: str, ids: Sequence[int]):
        super().__init__(message)
        self.ids = tuple(ids)

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.args[0], self.ids))

    @classmethod
    def of(cls, loss: float, step: int, epoch: int, ids: Sequence[int]) -> LossError:
        """`step` counts from 1 over the whole run, `epoch` from 0."""
        some = ", ".join(map(str, ids[:MOST_IDS])) + (f" and {len(ids) - MOST_IDS} more" if len(ids) > MOST_IDS else "")
        return cls(
            f"the loss is {loss} at step {step} (epoch {epoch + 1}) of samples {some}; a lower learning rate, "
            "training.clip_norm or precision bf16 may prevent it, training.on_nan: skip leaves such steps out",
            ids,
        )

    def located(self, describe: Callable[[int], str]) -> LossError:
        """With where the first few of the samples lie."""
        more = "; …" if len(self.ids) > DESCRIBED else ""
        return LossError(f"{self} ({'; '.join(map(describe, self.ids[:DESCRIBED]))}{more})", self.ids)


class Stopped(RaytrainError):
    """The run was asked to stop (Ctrl-C, SIGTERM); `exit_code` is 128 + the signal's number."""

    def __init__(self, message: str, signal_number: int = 2):
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.args[0], self.exit_code - 128))


def show_uncaught_errors_briefly() -> None:
    """An error of ours that nobody catches is shown without raytrain's own frames; one that ended the loop, or a stop,
    without any, since what the script's call of `fit` looks like is no news."""
    before = sys.excepthook
    if getattr(before, "brief", False):
        return

    def show(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
        if not isinstance(error, RaytrainError):
            before(kind, error, frames)
        elif isinstance(error, TrainingError | Stopped):
            sys.stderr.write(f"raytrain: {error.told()}\n")
        else:
            found = traceback.TracebackException(kind, error, frames)
            here = Path(__file__).parent
            shown = [frame for frame in found.stack if not Path(frame.filename).is_relative_to(here)]
            found.stack = traceback.StackSummary.from_list(shown)
            sys.stderr.write("".join(found.format()))

    show.brief = True  # type: ignore[attr-defined]
    sys.excepthook = show


def without_credentials(text: str) -> str:
    """Text whose URLs show neither user and password nor tokens and signatures: `s3://***@bucket`, `?token=***`."""
    if "://" not in text:
        return text
    return _IN_QUERY.sub(rf"\1{HIDDEN}", _IN_URL.sub(rf"\1{HIDDEN}@", text))


def one_line(error: BaseException, limit: int | None = None) -> str:
    """An error's message on one line, cut to `limit` characters; others' messages may have many."""
    return " ".join(str(error).split())[:limit]


def named(error: BaseException) -> str:
    """An error with its type, on one line."""
    return f"{type(error).__name__}: {one_line(error, 500)}"


def looked_for(path: str | Path) -> str:
    """Where a relative path of this host leads, for a message that it is not there; an empty string for any other."""
    if "://" in str(path) or Path(path).is_absolute():
        return ""
    return f" (looked for {Path(path).absolute()}; relative paths start where raytrain is started)"


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint such as `; did you mean 'resize'?`, or an empty string when nothing is near."""
    if len(name) > LONGEST_NAME:  # compared with the square of its length
        return ""
    matches = difflib.get_close_matches(name, [each for each in known if len(each) <= LONGEST_NAME], n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
