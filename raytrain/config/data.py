"""The section `data`: sources, stages and batches."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag

from raytrain.config.section import ObjectPath, PositiveInt, Section, Share


def _is_a_stage(value: Any) -> Any:
    """Which stages and options there are, the pipeline knows."""
    if isinstance(value, str) or (isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value)), str)):
        return value
    raise ValueError(f"a stage is one name, or one name with its options such as `resize: {{size: 32}}`, not {value!r}")


StageSpec = Annotated[str | dict[str, Any], BeforeValidator(_is_a_stage)]


class ImageFolderSource(Section):
    """`path/<class name>/<image>`; classes are numbered in sorted order."""

    kind: Literal["image_folder"]
    path: str


class ParquetSource(Section):
    """Parquet files with an image column (encoded bytes) or an array column, and an integer label column."""

    kind: Literal["parquet"]
    path: str
    image_column: str = "image"
    label_column: str = "label"
    shape: tuple[PositiveInt, ...] | None = Field(None, description="of the array column when it is a flat list")


class WebDatasetSource(Section):
    """Tar shards: members that share a name up to the first dot are one sample (`.jpg` and `.cls`, say)."""

    kind: Literal["webdataset"]
    path: str
    label_extension: str = "cls"


class SyntheticSource(Section):
    """Images of normal noise made from (seed, id), labelled `id % num_classes`."""

    kind: Literal["synthetic"]
    num_samples: PositiveInt
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((224, 224, 3), description="height, width, channels")
    num_classes: PositiveInt = 1000


class OwnSource(Section):
    """A class or function of the user's own, called with the other keys: a map-style data set."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: ObjectPath

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


def _whose(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "own" if isinstance(kind, str) and ":" in kind else "built-in"


BuiltInSource = ImageFolderSource | ParquetSource | WebDatasetSource | SyntheticSource
AnySource = BuiltInSource | OwnSource
Source = Annotated[
    Annotated[BuiltInSource, Field(discriminator="kind"), Tag("built-in")] | Annotated[OwnSource, Tag("own")],
    Discriminator(_whose),
]


class Normalize(Section):
    """Applied on the device: `(x * scale - mean) / std`, channel by channel."""

    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0,)
    std: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)


class Data(Section):
    train: Source
    validation: Source | None = None
    stages: tuple[StageSpec, ...] = Field((), description="CPU stages, in order")
    validation_stages: tuple[StageSpec, ...] | None = Field(
        None, description="default: the stages without the random ones"
    )
    batch_size: PositiveInt = Field(64, description="samples a rank and step")
    tail: Literal["share", "drop_last", "pad", "carry"] = Field(
        "share", description="what becomes of the samples of an epoch that do not fill a step of full batches"
    )
    normalize: Normalize | None = None
    max_corrupt_share: Share = Field(
        0.01,
        description="share of a split's samples that may be undecodable before the run stops; at least one, if not 0",
    )
    batches_per_task: PositiveInt | None = Field(None, description="default: chosen from the data set's size")
