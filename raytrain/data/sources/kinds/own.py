"""A map-style data set of the user's own, as torch has it: `len(it)`, and `it[i]` gives a sample.

It is made in the driver and travels, pickled, to the workers, which index it. So this imports what they need and
nothing else.
"""

from __future__ import annotations

import inspect
import operator
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from raytrain.config.own_code import import_object, own_place
from raytrain.data.samples.fields import IMAGE, Field, Kind, Sample, Schema, field_of
from raytrain.data.samples.values import kind_of, of_image, of_mask, plain
from raytrain.data.sources.labels import LABEL, check_alike, classes_of, label_field
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.registry import InProgram
from raytrain.data.stages.options import check_options
from raytrain.errors import ConfigError, DataError, RaytrainError, named, one_line

if TYPE_CHECKING:
    from raytrain.config.data import OwnSource

LABELS = ("labels", "targets")  # where a data set may have them; torchvision's are called so
PAIR = (IMAGE, LABEL)
FIRST_TRIES = 64  # samples, until one can be read


@runtime_checkable
class MapDataset(Protocol):
    """What a source of one's own is. More that it may have:

    Attributes:
        labels (or targets): of all samples, whole numbers from 0; the field `label`. A Hugging Face data set's column
            of that name is taken for them.
        classes: names by label.
        describe: what sample `i` is called in messages.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """A mapping of fields, or a pair, which is `image` and `label`. A field is an array, a tensor, a number, a list
        of numbers, bytes, text, or a Pillow image. An `image` with three axes is (height, width, channels), as a tensor
        (channels, height, width)."""
        ...


@dataclass(frozen=True)
class FromTorch(InProgram):
    """A map-style data set, and how its samples become fields.

    Attributes:
        fields: names of what a tuple holds.
        masks: fields that are masks.
        images: fields that are images, beside `image`.
        name: in messages, where a job file gave it one; else that of its class.
    """

    dataset: Any
    fields: tuple[str, ...] = PAIR
    images: tuple[str, ...] = (IMAGE,)
    masks: tuple[str, ...] = ()
    name: str = ""

    kind = "from_torch"

    @property
    def told(self) -> str:
        return self.name or type(self.dataset).__name__


def from_torch(
    dataset: Any, *, fields: Sequence[str] = PAIR, images: Sequence[str] = (), masks: Sequence[str] = ()
) -> FromTorch:
    """Any map-style `torch.utils.data.Dataset`. `__getitem__` runs on the CPU hosts; what it draws from the random
    numbers of Python, NumPy and torch is seeded for each sample.

    Args:
        dataset: with `__len__` and `__getitem__`.
        fields: names of what a sample holds where it is a tuple; a mapping's keys are its fields.
        images: fields that are images beside `image`: arrays (height, width, channels), tensors (channels, height,
            width), or bytes of image files.
        masks: fields that are masks, (height, width).

    Raises:
        ConfigError: it is no such data set, or two fields have one name.
    """
    if not isinstance(dataset, MapDataset):
        kind = "an iterable data set, which has no ids" if hasattr(dataset, "__iter__") else type(dataset).__name__
        raise ConfigError(f"from_torch takes a map-style data set, with __len__ and __getitem__, not {kind}")
    names = tuple(fields)
    if len({*names}) != len(names) or not names:
        raise ConfigError(f"from_torch: fields must be different names (given: {', '.join(names) or 'none'})")
    return FromTorch(dataset, names, (IMAGE, *images), tuple(masks))


def factory_of(source: OwnSource, key: str) -> Callable[..., Any]:
    """The class or function that a job file names under `key`, if it takes the options beside it.

    Raises:
        ConfigError: it cannot be imported, is something else, or does not take them.
    """
    factory: Callable[..., Any] = import_object(source.kind, f"{key}.kind")
    if not callable(factory):
        raise ConfigError(f"{key}.kind: {source.kind!r} must be a class or function, not {type(factory).__name__}")
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # a builtin without a signature
        return factory
    check_options(f"{key}: source {source.kind!r}", list(signature.parameters.values()), source.options)
    try:
        signature.bind(**source.options)
    except TypeError as error:
        raise ConfigError(f"{key}: source {source.kind!r} is called with its options: {one_line(error)}") from None
    return factory


def made_by(source: OwnSource) -> Any:
    """What the class or function of a job file gives: a data set, or the description of a source.

    Raises:
        DataError: it cannot be made.
    """
    try:
        return import_object(source.kind)(**source.options)
    except RaytrainError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's class may raise anything
        raise DataError(f"source {source.kind!r} cannot be made: {named(error)}{own_place(error)}") from None


def open_from_torch(source: FromTorch, like: Schema | None, seed: int) -> Manifest:
    """
    Raises:
        DataError: its samples or labels are something else than they must be.
    """
    dataset, name = source.dataset, source.told
    if not isinstance(dataset, MapDataset):
        raise DataError(
            f"source {name!r} makes {type(dataset).__name__}, which is no map-style data set: it needs __len__ "
            "and __getitem__"
        )
    try:
        count = len(dataset)
        labels = _labels(dataset, name, count)
    except RaytrainError:
        raise
    except Exception as error:  # noqa: BLE001
        raise DataError(f"source {name!r} cannot be listed: {named(error)}{own_place(error)}") from None
    classes = _classes(dataset, name, labels, classes_of(like, LABEL))
    rows: dict[str, Any] = {"number": np.arange(count, dtype=np.int64)}
    if labels is not None:
        rows[LABEL] = labels
    reader = OwnReader(source)
    manifest = Manifest(pa.table(rows), reader, Schema(), (LABEL,) if labels is not None else ())
    if not count:
        return manifest
    fields = reader.fields(manifest.rows)  # before anything is started
    if LABEL in fields and (labels is not None or classes):
        fields[LABEL] = replace(fields[LABEL], classes=classes)
    if labels is not None:
        fields.setdefault(LABEL, label_field(classes))
    return replace(manifest, schema=Schema(fields))


@dataclass(frozen=True)
class OwnReader:
    """Indexes the data set: column `number`."""

    source: FromTorch

    remote = False  # nobody knows whether threads may share it

    def read(self, rows: pa.Table, index: int) -> Sample | Exception:
        """The error of a sample that cannot be read is left to whoever counts such samples.

        Raises:
            DataError: it is something else than the fields that it should be.
        """
        place = self.describe(rows, index)
        try:
            given = self._given(rows.column("number")[index].as_py(), place)
            sample = {name: self._value(value, name, place) for name, value in given.items()}
        except RaytrainError:
            raise
        except Exception as error:  # noqa: BLE001
            return error.with_traceback(None)
        if LABEL in rows.column_names and LABEL in sample:
            expected = rows.column(LABEL)[index].as_py()
            if _whole(sample[LABEL], place) != expected:
                raise DataError(
                    f"{place} has the label {sample[LABEL]}, where the labels of the data set say {expected}"
                )
        return sample

    def seed_with(self, rng: np.random.Generator) -> None:
        """The random numbers that a data set draws from, before a sample is read."""
        seed = int(rng.integers(2**32))
        random.seed(seed)
        np.random.seed(seed)
        if (torch := sys.modules.get("torch")) is not None:
            torch.manual_seed(seed)

    def fields(self, rows: pa.Table) -> dict[str, Field]:
        """Of the first sample that can be read.

        Raises:
            DataError: see `read`; or none of the first can be read.
        """
        last: Exception | None = None
        for index in range(min(rows.num_rows, FIRST_TRIES)):
            place = self.describe(rows, index)
            sample = self.read(rows, index)
            if isinstance(sample, Exception):
                last = sample
                continue
            given = self._given(rows.column("number")[index].as_py(), place)
            kinds = {name: self._kind(given[name], name) for name in sample}
            return {name: _of_any_length(field_of(value, name, kinds[name])) for name, value in sample.items()}
        if last is None:
            return {}
        tried = min(rows.num_rows, FIRST_TRIES)
        raise DataError(f"source {self.source.told!r}: none of its first {tried} samples can be read: {named(last)}")

    def describe(self, rows: pa.Table, index: int) -> str:
        number = rows.column("number")[index].as_py()
        own = getattr(self.source.dataset, "describe", None)
        return str(own(number)) if callable(own) else f"{self.source.told}[{number}]"

    def _given(self, number: int, place: str) -> Mapping[str, Any]:
        sample = self.source.dataset[number]
        if isinstance(sample, Mapping):
            return sample
        names = self.source.fields
        if not isinstance(sample, tuple | list):
            if len(names) == 1:
                return {names[0]: sample}
            raise DataError(
                f"{place} is {type(sample).__name__}, not ({', '.join(names)}) or a mapping with its fields"
            )
        if len(sample) != len(names):
            raise DataError(
                f"{place} holds {len(sample)} values, not ({', '.join(names)}); name them with from_torch(…, fields=…)"
            )
        return dict(zip(names, sample, strict=True))

    def _kind(self, value: Any, name: str) -> Kind:
        if name in self.source.masks:
            return "mask"
        return kind_of(value, IMAGE if name in self.source.images else name)

    def _value(self, value: Any, name: str, place: str) -> Any:
        if name in self.source.masks:
            value = of_mask(value)
        elif name in self.source.images:
            value = of_image(value)
        found = plain(value, f"field `{name}` of {place}")
        # what lies in the data set's own memory must be the same in the next epoch, whatever a stage does to it
        return found.copy() if isinstance(found, np.ndarray) and found.base is not None else found


def _of_any_length(what: Field) -> Field:
    """One sample tells how many axes there are, not how long they are."""
    return what if not what.shape else replace(what, shape=(None,) * len(what.shape))


def _classes(dataset: MapDataset, name: str, labels: np.ndarray | None, training: tuple[str, ...]) -> tuple[str, ...]:
    own = tuple(map(str, getattr(dataset, "classes", None) or ()))
    if own and labels is not None and len(labels) and labels.max() >= len(own):
        raise DataError(f"source {name!r} names {len(own)} classes, but has the label {labels.max()}")
    check_alike(own, training, f"source {name!r}")
    return own or training


def _labels(dataset: MapDataset, name: str, count: int) -> np.ndarray | None:
    """int64, by id; None where the data set does not say."""
    found = next((value for each in LABELS if (value := getattr(dataset, each, None)) is not None), None)
    if found is None and LABEL in (getattr(dataset, "column_names", None) or ()):
        found = list(dataset[LABEL])  # type: ignore[index]
    if found is None:
        return None
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(found, torch.Tensor):
        found = found.numpy()
    labels = np.asarray(found if count else [], dtype=None if count else np.int64)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or (count and labels.min() < 0):
        raise DataError(
            f"the labels of source {name!r} must be {count:,} whole numbers from 0, one a sample, not "
            f"{labels.dtype} of shape {labels.shape}" + (f" down to {labels.min()}" if labels.dtype.kind == "i" else "")
        )
    return labels.astype(np.int64)


def _whole(label: Any, place: str) -> int:
    try:
        return operator.index(label.item() if hasattr(label, "item") else label)
    except (TypeError, ValueError):
        raise DataError(f"the label of {place} must be a whole number, not {label!r}") from None
