"""Every measurement as a line of a file, so that nothing is measured twice."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from raytrain.cluster import hardware
from raytrain.config.section import Section
from raytrain.errors import ConfigError
from raytrain.infer.contract import Setting, Timed
from raytrain.infer.tune.search import Measured, Refused
from raytrain.record.plain_json import from_json

FILE = "points.jsonl"
PERCENTILES = (0.5, 0.95, 0.99)
PACKAGES = ("onnx", "onnxruntime", "openvino")  # beside those that every record has

NotNegative = Annotated[float, Field(ge=0)]
What = Literal["model", "whole"]
"""The model alone, or the whole path: read, prepare, predict, write."""


class Subject(Section):
    """What is measured, and on what: points of another one say nothing of it.

    Attributes:
        model: digest.
        data: of the source, the stages, how many samples, and what else the job says of how it runs.
    """

    hardware: dict[str, Any]
    versions: dict[str, str]
    model: str
    data: str


class Point(Section):
    """One measurement.

    Attributes:
        effort_s: that it was to take, starting not included; of the whole path 0, since its samples say how long.
        p50_s, p95_s, p99_s: of a batch as it is given; of the whole path None, as blocks wait for each other there.
        model_samples_per_s, prepare_samples_per_s: of the whole path, its parts each by itself.
        refused: why there are no figures.
        wall_s: starting included.
        at: ISO 8601.
    """

    what: What
    setting: Setting
    effort_s: float
    samples_per_s: NotNegative | None = None
    p50_s: NotNegative | None = None
    p95_s: NotNegative | None = None
    p99_s: NotNegative | None = None
    model_samples_per_s: NotNegative | None = None
    prepare_samples_per_s: NotNegative | None = None
    refused: str | None = None
    wall_s: float = Field(ge=0)
    at: str
    subject: Subject

    @property
    def measured(self) -> Measured:
        """As the search has it; percentiles stand for the latencies."""
        if not self.samples_per_s or not self.p95_s:
            return Refused(self.refused or "no figures", self.wall_s)
        return Timed(self.samples_per_s, [self.p95_s], self.wall_s)


def point_of(setting: Setting, effort_s: float, measured: Measured, subject: Subject) -> Point:
    """Of the model alone, measured now."""
    figures: dict[str, Any]
    if isinstance(measured, Refused):
        figures = {"refused": measured.reason}
    else:
        p50_s, p95_s, p99_s = map(measured.percentile, PERCENTILES)
        figures = {"samples_per_s": measured.samples_per_s, "p50_s": p50_s, "p95_s": p95_s, "p99_s": p99_s}
    return Point(
        what="model", setting=setting, effort_s=effort_s, wall_s=measured.wall_s, at=now(), subject=subject, **figures
    )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_machine() -> tuple[dict[str, Any], dict[str, str]]:
    """Its hardware and its versions, as points have them."""
    machine = {
        "cpu_model": hardware.cpu_model(),
        "cpu_cores": hardware.usable_cpus(),
        "memory_bytes": hardware.memory_bytes(),
        "gpus": hardware.gpu_names(),
    }
    return machine, hardware.versions(PACKAGES)


class Points:
    """The file of a run's points. `read` first; points are appended, each whole before the next is measured.

    Attributes:
        others: points of the file that are of other hardware, versions, model or data.
        unreadable: lines of it that are none.
    """

    def __init__(self, path: Path, subject: Subject):
        self.path, self.subject = path, subject
        self.others = self.unreadable = 0
        self._known: dict[tuple[What, Setting], list[Point]] = {}
        self._broken_end = False

    def read(self) -> None:
        """
        Raises:
            ConfigError: the file cannot be read.
        """
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        except OSError as error:
            raise ConfigError(f"cannot read the points in {self.path}: {error.strerror}") from None
        self._broken_end = bool(text) and not text.endswith("\n")  # it was killed while it wrote
        for line in filter(None, text.split("\n")):
            try:
                point = Point.model_validate(from_json(line))
            except (ValueError, ValidationError):
                self.unreadable += 1
                continue
            if point.what == "whole" and point.refused is not None:
                continue  # Ray may start the next time
            if point.subject == self.subject:
                self._known.setdefault((point.what, point.setting), []).append(point)
            else:
                self.others += 1

    @property
    def known(self) -> int:
        """How many there are that need not be measured again."""
        return sum(map(len, self._known.values()))

    def take(self, what: What, setting: Setting) -> Point | None:
        """The next one of a setting, in the order in which they were measured; each once."""
        found = self._known.get((what, setting))
        return found.pop(0) if found else None

    def add(self, point: Point) -> None:
        """
        Raises:
            ConfigError: it cannot be written.
        """
        line = point.model_dump_json()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(("\n" if self._broken_end else "") + line + "\n")
        except OSError as error:
            raise ConfigError(f"cannot write the points to {self.path}: {error.strerror}") from None
        self._broken_end = False

    def said(self) -> Iterable[str]:
        """What came of reading, a line each."""
        if self.known:
            yield f"{self.known} points of {self.path} are taken from there and not measured again"
        if self.others:
            yield f"{self.others} points of {self.path} are left alone: of other hardware, versions, model or data"
        if self.unreadable:
            yield f"{self.unreadable} lines of {self.path} cannot be read and are left alone"
