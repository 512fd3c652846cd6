"""The section `data`: sources, stages and batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

from raytrain.config.own_code import OFFERED_SOURCES, offered
from raytrain.config.section import ObjectPath, PositiveInt, Section, Share
from raytrain.errors import ConfigError


def _is_a_stage(value: Any) -> Any:
    """Which stages and options there are, the pipeline knows."""
    if isinstance(value, str) or (isinstance(value, dict) and len(value) == 1 and isinstance(next(iter(value)), str)):
        return value
    raise ValueError(f"a stage is one name, or one name with its options such as `resize: {{size: 32}}`, not {value!r}")


StageSpec = Annotated[str | dict[str, Any], BeforeValidator(_is_a_stage)]


Paths = str | tuple[str, ...]
"""A file or folder, with `*`, `**`, `?`, `[…]`, `{a,b}` and `{000..012}` as a shell has them; or several of such."""

Shape = tuple[PositiveInt | None, ...]


class BuiltIn(Section):
    """What every source of ours may say."""

    kind: str
    limit: PositiveInt | None = Field(None, description="the first so many samples alone")
    weights: str | None = Field(
        None,
        description="field with a number a sample: it comes so many times as often as one of weight 1, as drawn once",
    )


class ImageFolderSource(BuiltIn):
    """`path/<class name>/<image>`; classes are numbered in sorted order. Fields: `image`, `label`."""

    kind: Literal["image_folder"]
    path: str = Field(description="folder of the class folders")


class ImageListSource(BuiltIn):
    """A list of files: CSV, TSV or JSON lines, with a header. Every column is a field."""

    kind: Literal["image_list"]
    path: Paths = Field(description="`.csv`, `.tsv` (or `.txt` with tabs) or `.jsonl`")
    files: dict[str, str] = Field(
        {"image": "path"}, description="by field, the column with the path of its file, from `root` on"
    )
    root: str | None = Field(None, description="of the files; default: the folder of the list")
    masks: tuple[str, ...] = Field((), description="of `files`, those that are masks")
    labels: tuple[str, ...] = Field(("label",), description="columns whose text names classes")


class ParquetSource(BuiltIn):
    """Parquet files. Every column is a field."""

    kind: Literal["parquet"]
    path: Paths = Field(description="`.parquet` or `.pq`")
    columns: dict[str, str] | None = Field(None, description="by field, the column; default: all by their own names")
    shapes: dict[str, tuple[PositiveInt, ...]] = Field({}, description="of fields that are flat lists")
    masks: tuple[str, ...] = Field((), description="fields that are masks")
    labels: tuple[str, ...] = Field(("label",), description="fields whose text names classes")


class WebDatasetSource(BuiltIn):
    """Tar shards: members that share a name up to the first dot are one sample (`.jpg` and `.cls`, say)."""

    kind: Literal["webdataset"]
    path: Paths = Field(description="`.tar`")
    fields: dict[str, str] | None = Field(
        None,
        description="by field, the extension; default: the first image is `image`, `cls` is `label`",
    )
    masks: tuple[str, ...] = Field((), description="fields that are masks")


class ArraysSource(BuiltIn):
    """NumPy's arrays, a field each, with the samples along the first axis: an `.npz` file, or `.npy` files."""

    kind: Literal["arrays"]
    path: Paths = Field(description="`.npz` or `.npy`")
    masks: tuple[str, ...] = Field((), description="fields that are masks")
    labels: tuple[str, ...] = Field(("label",), description="fields whose text names classes")


class HuggingFaceSource(BuiltIn):
    """A data set of Hugging Face's `datasets`, as `save_to_disk` leaves it. Every column is a field."""

    kind: Literal["huggingface"]
    path: str = Field(description="folder that `save_to_disk` has written")
    split: str | None = Field(None, description="of several in one folder")
    columns: dict[str, str] | None = Field(None, description="by field, the column; default: all by their own names")
    masks: tuple[str, ...] = Field((), description="fields that are masks")
    labels: tuple[str, ...] = Field(("label",), description="fields whose text names classes")


class CocoSource(BuiltIn):
    """Images with annotations of COCO's form."""

    kind: Literal["coco"]
    images: str = Field(description="their folder")
    annotations: str = Field(description="the JSON file")
    task: Literal["detection", "segmentation"] = Field(
        "detection", description="`boxes` and `labels`, or `mask`, beside `image`"
    )


class FieldOf(Section):
    """A field of a synthetic source."""

    dtype: str = Field("float32", description="a name of NumPy's, `bfloat16`, `text` or `bytes`; int64 with `classes`")
    shape: Shape = Field((), description="null for an axis whose length varies")
    kind: Literal["", "image", "mask", "boxes"] = Field(
        "", description="what geometry does to it; a field `image` with three axes is an image"
    )
    classes: PositiveInt | None = Field(None, description="whole numbers below it")


class SyntheticSource(BuiltIn):
    """Noise made from (seed, id). Without `fields`: `image`, normal float32, and `label`, `id % num_classes`."""

    kind: Literal["synthetic"]
    num_samples: PositiveInt = Field(description="how many")
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] = Field((224, 224, 3), description="height, width, channels")
    num_classes: PositiveInt = Field(1000, description="labels are `id % num_classes`")
    fields: dict[str, FieldOf] | None = Field(None, description="in place of `image` and `label`")
    longest: PositiveInt = Field(64, description="length of an axis that varies")


class HeldOut(Section):
    """For `validation`: a share of the training data, drawn by `seed`, which is then not trained on."""

    kind: Literal["held_out"]
    share: float = Field(gt=0, lt=1, description="of the training data's samples, rounded")
    seed: int = Field(0, description="of the draw; that of the job has no part in it")


def _path_of(kind: Any) -> Any:
    return offered(OFFERED_SOURCES).get(kind, kind) if isinstance(kind, str) and ":" not in kind else kind


class OwnSource(Section):
    """A class or function of the user's own, called with the other keys: a map-style data set. Its `kind` is where it
    is, or the name that an installed package gives it (`[project.entry-points."raytrain.sources"]`)."""

    model_config = ConfigDict(frozen=True, extra="allow")

    kind: Annotated[ObjectPath, BeforeValidator(_path_of)]

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


SOURCES: dict[str, type[BuiltIn]] = {
    get_args(each.model_fields["kind"].annotation)[0]: each for each in BuiltIn.__subclasses__()
}
"""By kind, the sections above."""


def _whose(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    if not isinstance(kind, str) or kind in SOURCES or kind in get_args(HeldOut.model_fields["kind"].annotation):
        return "built-in"
    return "own" if ":" in kind or kind in offered(OFFERED_SOURCES) else "built-in"


if TYPE_CHECKING:
    BuiltInSource = BuiltIn
else:
    BuiltInSource = Union[tuple(SOURCES.values())]  # noqa: UP007 - of as many as there are
AnySource = BuiltIn | OwnSource
Source = Annotated[
    Annotated[BuiltInSource, Field(discriminator="kind"), Tag("built-in")] | Annotated[OwnSource, Tag("own")],
    Discriminator(_whose),
]
ForValidation = Annotated[
    Annotated[BuiltInSource | HeldOut, Field(discriminator="kind"), Tag("built-in")] | Annotated[OwnSource, Tag("own")],
    Discriminator(_whose),
]


def _is_no_factor(value: float) -> float:
    """torchvision scales 0 to 255 down, never up."""
    if not 0 < value <= 1:
        raise ValueError("scale multiplies: 0.00392 (1 / 255) for values from 0 to 255, 1 to leave them as they are")
    return value


class Normalize(Section):
    """Applied on the device: `(x * scale - mean) / std`, channel by channel."""

    scale: Annotated[float, AfterValidator(_is_no_factor), Field(gt=0, le=1)] = Field(
        1 / 255, description="multiplies first, above 0 and at most 1; 1 / 255 brings 0 to 255 to 0 to 1"
    )
    mean: tuple[float, ...] = Field((0.0,), description="subtracted then; one number, or one a channel")
    std: tuple[Annotated[float, Field(gt=0)], ...] = Field((1.0,), description="divides last; likewise")


class Arrival(Section):
    """What becomes of a field on the device. Without: an image is float32 and (channels, height, width), and has
    `normalize`; everything else is as it was sent."""

    dtype: str | None = Field(None, description="that it is converted to; default: float32 of an image, else as sent")
    channels_first: bool | None = Field(None, description="default: of an image, yes")
    normalize: Normalize | None = None


class Padded(Section):
    """Values of different lengths are filled up to the longest of their batch."""

    value: float = Field(0, description="that fills")
    axes: tuple[int, ...] = Field((0,), description="whose lengths vary, from 0; the others must agree")
    multiple_of: PositiveInt = Field(1, description="the length is rounded up to one, so that there are fewer shapes")
    most: PositiveInt | None = Field(None, description="what is longer along the first of the axes is cut off")


class Collate(Section):
    """`padded` with its options, or `ragged`."""

    padded: Padded | None = None
    ragged: bool = Field(False, description="values lie behind one another, with their lengths beside them")


def _is_a_collation(value: Any) -> Any:
    if isinstance(value, dict) and [*value.values()] == [None]:  # `padded:` and nothing behind it
        value = next(iter(value))
    if value in ("padded", "ragged"):
        return {value: {} if value == "padded" else True}
    if isinstance(value, dict):
        said = {key: given for key, given in value.items() if given is not None and given is not False}
        if len(said) == 1 and next(iter(said)) in ("padded", "ragged"):
            return said
    raise ValueError(f"`padded`, `padded: {{value: 0}}` with its options, or `ragged`, not {value!r}")


Collations = dict[str, Annotated[Collate, BeforeValidator(_is_a_collation)]]
"""By field."""


class Buckets(Section):
    """Batches of samples of like length."""

    by: str = Field(description="field whose length is meant, along its first axis, or in characters")
    batches: PositiveInt = Field(32, description="so many are drawn together and then sorted")


ONE_SIZE = (
    "give `batch_size`, of a rank, or `global_batch_size`, of all ranks together: exactly one of them, the other null"
)


def check_shared(global_batch_size: int, ranks: int) -> None:
    """
    Raises:
        ConfigError: so many ranks cannot share a step evenly.
    """
    if global_batch_size % ranks:
        below = global_batch_size - global_batch_size % ranks
        near = " or ".join(f"{each:,}" for each in (below, below + ranks) if each)
        raise ConfigError(
            f"data.global_batch_size={global_batch_size} cannot be shared evenly by {ranks} ranks; make it {near}, or "
            "take another number of ranks"
        )


class Data(Section):
    """Where samples come from, what is done to them, and what a batch is."""

    train: Source = Field(description="where samples come from")
    validation: ForValidation | None = Field(
        None, description="of other samples, or `held_out`; without it there is no evaluation"
    )
    stages: tuple[StageSpec, ...] = Field((), description="in order")
    validation_stages: tuple[StageSpec, ...] | None = Field(
        None, description="default: the stages without the random ones"
    )
    batch_size: PositiveInt | None = Field(64, description="samples of the source a rank and step")
    global_batch_size: PositiveInt | None = Field(
        None,
        description="in place of `batch_size`, samples of a step of all ranks together, which share it evenly; steps "
        "then have the same samples in the same order on any number of ranks",
    )
    tail: Literal["share", "drop_last", "pad", "carry"] = Field(
        "share", description="what becomes of the samples of an epoch that do not fill a step of full batches"
    )
    collate: Collations = Field({}, description="what becomes of fields whose shape varies")
    buckets: Buckets | None = None
    normalize: Normalize | None = Field(
        None, description="of all images, on the device: `(x * scale - mean) / std`, channel by channel"
    )
    fields: dict[str, Arrival] = Field({}, description="what becomes of single fields on the device")
    max_corrupt_share: Share = Field(
        0.01,
        description="share of a split's samples that may be undecodable before the run stops; at least one, if not 0",
    )
    stage_timeout_s: Annotated[float, Field(gt=0)] | None = Field(
        300.0,
        description="that a stage, or reading, may be at one sample before its worker is ended; null: for ever",
    )
    allow_nan: bool = Field(
        False,
        description="a sample whose arrays are NaN in places behind a stage, and not before, is not left out for it",
    )
    batches_per_task: PositiveInt | None = Field(None, description="default: chosen from the data set's size")

    @model_validator(mode="before")
    @classmethod
    def _instead(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("global_batch_size") is not None and "batch_size" not in given:
            return {**given, "batch_size": None}
        return given

    @model_validator(mode="after")
    def _one_size(self) -> Data:
        if (self.batch_size is None) == (self.global_batch_size is None):
            raise ValueError(ONE_SIZE)
        return self

    def step_samples(self, world_size: int) -> int:
        """Samples of a step of so many ranks together."""
        return self.global_batch_size or (self.batch_size or 0) * world_size
