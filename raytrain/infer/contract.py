"""What the parts of prediction say to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from raytrain.config.inference import Allocator, Backend, Precision
from raytrain.config.learning import Model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelFile:
    """A model as it travels to the hosts.

    Attributes:
        kind: `module` is built by name and given its state; `export` is torch.export's, `onnx` ONNX's.
        data: the file; of a module its state as `torch.save` writes it, empty for the weights it is built with.
        model: how a module is built.
        num_classes: that it is built for; None as its options say.
        arguments: names of its inputs, in order; one empty name for the only one.
        classes: names by number; empty where they have none.
        precision: that its weights are in.
        source: where it is from, for people.
        digest: SHA-256 of all of it, hexadecimal.
    """

    kind: Literal["module", "export", "onnx"]
    data: bytes = field(repr=False)
    model: Model | None = None
    num_classes: int | None = None
    arguments: tuple[str, ...] = ("",)
    classes: tuple[str, ...] = ()
    precision: Precision = "fp32"
    source: str = ""
    digest: str = ""


@dataclass(frozen=True)
class BackendOptions:
    """How a model computes.

    Attributes:
        threads: within one operation.
        device: `cpu`, or torch's name of a GPU.
        batch_size: samples that it is given at once, at most.
    """

    backend: Backend = "eager"
    precision: Precision = "fp32"
    threads: int = 1
    device: str = "cpu"
    batch_size: int = 32
    embeddings: bool = False


@dataclass(frozen=True)
class Outputs:
    """What a model says of a batch, float32 on the CPU.

    Attributes:
        output: (samples, ...).
        embeddings: (samples, features), what it has before its last layer.
    """

    output: torch.Tensor
    embeddings: torch.Tensor | None = None


class LoadedModel(Protocol):
    """A model in the process that calls it."""

    def __call__(self, *inputs: torch.Tensor) -> Outputs:
        """
        Args:
            inputs: (samples, ...) each, on the device, in the order of `ModelFile.arguments`.
        """
        ...


@dataclass(frozen=True)
class Wanted:
    """What is written of what a model says.

    Attributes:
        classes: names by number; empty where they have none.
        probabilities: of the likeliest so many classes.
        alike: outputs of all samples have one shape.
        all_named: it is a mistake if the model has more classes than names. (One that was trained may well have more.)
    """

    task: Literal["classification", "raw"] = "classification"
    classes: tuple[str, ...] = ()
    probabilities: int | Literal["all", "none"] = 5
    alike: bool = True
    all_named: bool = False


@dataclass(frozen=True)
class StreamShape:
    """The cores of one model instance.

    Attributes:
        cpus: logical CPUs that it is bound to, as the system numbers them; none for wherever the system runs it.
        threads: within one operation.
        node: NUMA node whose memory it is bound to; None where there is one only.
    """

    cpus: tuple[int, ...]
    threads: int
    node: int | None = None


@dataclass(frozen=True)
class Setting:
    """Everything that the tuner chooses: a point of its grid."""

    backend: Backend = "eager"
    precision: Precision = "fp32"
    batch_size: int = 32
    block_rows: int = 256
    streams: int = 1
    cores: int = 1
    allocator: Allocator = "default"
    tasks_per_gpu: int = 1


@dataclass(frozen=True)
class Timed:
    """What was measured of a setting.

    Attributes:
        samples_per_s: of all streams of a host together.
        latencies_s: seconds of single batches.
        wall_s: that measuring took, starting included.
    """

    samples_per_s: float
    latencies_s: Sequence[float]
    wall_s: float
    extra: dict[str, Any] = field(default_factory=dict)

    def percentile(self, share: float) -> float:
        """Seconds that so large a share of the batches took at most; the next longer one where it falls between."""
        ordered = sorted(self.latencies_s)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)]
