"""A map-style data set of the user's own, as torch has it: `len(it)`, and `it[i]` gives an image and its label.

It is made in the driver and travels, pickled, to the workers, which index it. So this imports what they need and
nothing else.
"""

from __future__ import annotations

import inspect
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from raytrain.config.own_code import import_object, own_place
from raytrain.data.sources.manifest import Manifest
from raytrain.data.stages.options import check_options
from raytrain.errors import ConfigError, DataError, RaytrainError, named, one_line

if TYPE_CHECKING:
    from raytrain.config.data import OwnSource

LABELS = ("labels", "targets")  # where a data set may have them; torchvision's are called so
LABEL_COLUMN = "label"  # Hugging Face's data sets are asked for a column by its name
MOST_READ = 10_000  # samples of one that has not are read for their labels


@runtime_checkable
class Samples(Protocol):
    """What a source of one's own is. More that it may have:

    Attributes:
        labels (or targets): of all samples, whole numbers from 0. Without, and without `column_names` among which
            `label` is, each sample is read for its own.
        classes: names by label.
        describe: what sample `i` is called in messages.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any:
        """`(image, label)`, or a mapping with `image` and `label`. An image is an array (height, width, channels), the
        bytes of an image file, a Pillow image, or a torch tensor (channels, height, width)."""
        ...


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


def open_own(source: OwnSource, classes: tuple[str, ...]) -> Manifest:
    """
    Raises:
        DataError: it cannot be made, or is no data set of images with labels.
    """
    try:
        samples = import_object(source.kind)(**source.options)
    except RaytrainError:
        raise
    except Exception as error:  # noqa: BLE001 - a user's class may raise anything
        raise DataError(f"source {source.kind!r} cannot be made: {named(error)}{own_place(error)}") from None
    if not isinstance(samples, Samples):
        raise DataError(
            f"source {source.kind!r} makes {type(samples).__name__}, which is no map-style data set: it needs __len__ "
            "and __getitem__"
        )
    return open_samples(samples, source.kind, classes)


def open_samples(samples: Samples, name: str, classes: tuple[str, ...]) -> Manifest:
    """
    Args:
        name: of the data set, in messages.
        classes: names by label, of the training split.

    Raises:
        DataError: its samples or labels are something else than they must be.
    """
    try:
        count = len(samples)
        labels = _labels(samples, name, count)
    except RaytrainError:
        raise
    except Exception as error:  # noqa: BLE001
        raise DataError(f"source {name!r} cannot be listed: {named(error)}{own_place(error)}") from None
    own = tuple(map(str, getattr(samples, "classes", None) or ()))
    if own and count and labels.max() >= len(own):
        raise DataError(f"source {name!r} names {len(own)} classes, but has the label {labels.max()}")
    if own and classes and own != classes:
        one, other = next(((a, b) for a, b in zip(own, classes, strict=False) if a != b), (len(own), len(classes)))
        raise DataError(f"source {name!r} numbers other classes than the training data does: {one} for {other}")
    manifest = Manifest(pa.table({"label": labels}), OwnReader(samples, name), own or classes)
    if count:
        manifest.read_many([0])  # before anything is started
    return manifest


@dataclass(frozen=True)
class OwnReader:
    """Indexes the data set."""

    samples: Samples
    name: str

    remote = False  # nobody knows whether threads may share it

    def read(self, rows: pa.Table, index: int) -> np.ndarray | Exception:
        """The error of a sample that cannot be read is left to whoever counts such samples.

        Raises:
            DataError: it is something else than an image and the label that the manifest has.
        """
        place = self.describe(rows, index)
        try:
            image, label = _pair(self.samples[index], place)
            array = _array(image, place)
        except RaytrainError:
            raise
        except Exception as error:  # noqa: BLE001
            return error.with_traceback(None)
        expected = rows.column("label")[index].as_py()
        if _whole(label, place) != expected:
            raise DataError(f"{place} has the label {label}, where the labels of the data set say {expected}")
        return array

    def describe(self, rows: pa.Table, index: int) -> str:
        own = getattr(self.samples, "describe", None)
        return str(own(index)) if callable(own) else f"{self.name}[{index}]"


def _labels(samples: Samples, name: str, count: int) -> np.ndarray:
    """int64, by id."""
    found = next((value for each in LABELS if (value := getattr(samples, each, None)) is not None), None)
    if found is None and LABEL_COLUMN in (getattr(samples, "column_names", None) or ()):
        found = list(samples[LABEL_COLUMN])  # type: ignore[index]
    if found is None:
        if count > MOST_READ:
            raise DataError(
                f"source {name!r} has {count:,} samples and no `labels`: give it an attribute of that name, a whole "
                f"number a sample, since no more than {MOST_READ:,} are read only to learn theirs"
            )
        pairs = (_pair(samples[index], f"{name}[{index}]") for index in range(count))
        found = [_whole(label, f"{name}[{index}]") for index, (_, label) in enumerate(pairs)]
    labels = np.asarray(found if count else [], dtype=None if count else np.int64)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer) or (count and labels.min() < 0):
        raise DataError(
            f"the labels of source {name!r} must be {count:,} whole numbers from 0, one a sample, not "
            f"{labels.dtype} of shape {labels.shape}" + (f" down to {labels.min()}" if labels.dtype.kind == "i" else "")
        )
    return labels.astype(np.int64)


def _pair(sample: Any, place: str) -> tuple[Any, Any]:
    if isinstance(sample, Mapping) and "image" in sample and "label" in sample:
        return sample["image"], sample["label"]
    if isinstance(sample, tuple | list) and len(sample) == 2:
        return sample[0], sample[1]
    what = f"{type(sample).__name__} of {len(sample)}" if hasattr(sample, "__len__") else type(sample).__name__
    raise DataError(f"{place} must be (image, label), or a mapping with `image` and `label`, not {what}")


def _whole(label: Any, place: str) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise DataError(f"the label of {place} must be a whole number (given: {label!r})") from None


def _array(image: Any, place: str) -> np.ndarray:
    torch = sys.modules.get("torch")
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, bytes | bytearray | memoryview):
        return np.frombuffer(image, dtype=np.uint8)
    if torch is not None and isinstance(image, torch.Tensor):
        return np.asarray((image.permute(1, 2, 0) if image.ndim == 3 else image).numpy())
    if type(image).__module__.startswith("PIL."):
        return np.array(image.convert("RGB"))
    raise DataError(
        f"the image of {place} must be an array, encoded bytes, a Pillow image or a tensor, not {type(image).__name__}"
    )
