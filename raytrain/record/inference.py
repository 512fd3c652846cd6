"""The record of a prediction: one versioned JSON a run, as `record.schema` has it of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from raytrain.errors import ConfigError
from raytrain.record.part import Part, Record
from raytrain.record.plain_json import from_json
from raytrain.record.schema import Hardware, HostFacts

INFERENCE_VERSION: Final = 1


class InferenceStage(Part):
    """A stage of the tasks that prepare, over `num_samples`; `read` comes first."""

    name: str
    num_samples: int
    cpu_s: float
    wall_s: float

    @property
    def cpu_s_per_sample(self) -> float:
        return self.cpu_s / max(self.num_samples, 1)


class StreamFigures(Part):
    """A model instance.

    Attributes:
        cpus: that it was bound to; none where it was not.
        sizes: size classes that it took.
        alone_samples_per_s: of the model by itself, with a batch that lay there.
        busy_share: of its time, in which it computed; the rest it waited for blocks.
        gpu_busy_share: in which its GPU ran a kernel, whoever's, as the driver has it.
        restarts: after its process died.
    """

    host: str
    device: str
    cpus: list[int]
    threads: int
    sizes: list[int]
    samples: int
    load_s: float | None
    alone_samples_per_s: float | None
    busy_share: float | None
    gpu_busy_share: float | None
    restarts: int


class ThreeFigures(Part):
    """Samples a second, side by side.

    Attributes:
        model: all streams by themselves, measured before they began.
        prepare: what the CPUs that prepare could deliver, by the CPU time of the stages.
        together: what was reached, from the first stream that was ready to the last sample.
        text: which of them limits, and what to change.
    """

    model: float | None
    prepare: float | None
    together: float | None
    limited_by: Literal["model", "prepare", "neither", "unknown"]
    text: str


class InferenceRecord(Record):
    """Everything about one prediction.

    Attributes:
        output: folder of the predictions.
        model: where it is from; `model_digest` is SHA-256.
        rows, errors: of all of the data; of them, `samples_before` an earlier run had finished.
        listed: the first 100 errors of this run.
        seconds: of predicting; `wall_s` of all.
    """

    kind: Literal["inference"] = "inference"
    schema_version: Literal[1] = INFERENCE_VERSION
    name: str
    status: Literal["finished", "stopped", "failed"]
    error: str | None
    started_at: str
    command: list[str]
    job: dict[str, Any]
    versions: dict[str, str]
    hardware: Hardware
    environment: dict[str, str]
    cluster_attached: bool
    emulated_gpus: bool
    cpu_slots: int
    hosts: list[HostFacts]
    output: str
    model: str
    model_digest: str
    num_samples: int
    samples_before: int
    rows: int
    errors: int
    listed: list[str]
    wall_s: float
    seconds: float | None
    samples_per_s: float | None
    figures: ThreeFigures
    stages: list[InferenceStage]
    streams: list[StreamFigures]
    done_again: int
    torch_in_preprocessing_workers: bool


def read_inference_record(path: Path) -> InferenceRecord:
    """
    Raises:
        ConfigError: it cannot be read, or is no record of a prediction.
    """
    try:
        return InferenceRecord.model_validate(from_json(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "all of it"
        raise ConfigError(f"{path} is not the record of a prediction: {where}: {first['msg']}") from None
    except ValueError:
        raise ConfigError(f"{path} is not JSON, or was cut off") from None
