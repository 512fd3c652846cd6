"""Encoded images that are decoded where the training runs: JPEG by the device, nvJPEG on a GPU, and what that does not
take by what the CPU stage uses."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from raytrain.data.order import Split
from raytrain.data.samples.block import RaggedArray
from raytrain.data.samples.fields import Kind
from raytrain.data.stages.draws import both_sides
from raytrain.data.stages.encoded.canvas import is_too_large
from raytrain.data.stages.encoded.jpeg import JpegHead, jpeg_head
from raytrain.data.stages.images import decode_field
from raytrain.data.stages.settling import DevicePart
from raytrain.data.stages.stage import Stage
from raytrain.device.forms.tensors import stacked
from raytrain.errors import DataError, named

DecodeJpegs = Callable[[list[torch.Tensor], torch.device], list[torch.Tensor]]
"""Of uint8 (bytes,) on the host, (3, height, width) on the device; a RuntimeError where one cannot be decoded."""

NO_DECODER = ("not compiled with", "image extension")  # in what torchvision says without nvJPEG, or its own libraries


@dataclass
class Decoded:
    """What became of a batch's encoded fields.

    Attributes:
        fields: by name, of the samples to keep: (samples, height, width, ...) where the sizes agree, else a list of
            tensors.
        errors: why a sample is no image, by its place in the batch.
        keep: places of the others, but for those that a stage has made of the same sample.
        stage_s: seconds, by the name of the stage.
        on_device, on_host: images and masks decoded by the device's decoder, and by the CPU stage's.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    errors: dict[int, Exception] = field(default_factory=dict)
    keep: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    stage_s: dict[str, float] = field(default_factory=dict)
    on_device: int = 0
    on_host: int = 0


class Decoding:
    """
    Args:
        parts: of each split, the stages that may run on the device.
        decode_jpegs: the device's decoder.
    """

    def __init__(
        self, parts: Mapping[Split, DevicePart], device: torch.device, decode_jpegs: DecodeJpegs | None = None
    ):
        self._parts, self._device = parts, device
        self._decode_jpegs = decode_jpegs or torchvisions_decoder

    def names(self, split: Split) -> frozenset[str]:
        """The fields that are encoded when they arrive."""
        part = self._parts.get(split)
        return frozenset(part.decoded if part else ())

    def decoded(self, split: Split, encoded: Mapping[str, RaggedArray], key: np.ndarray) -> Decoded:
        """
        Args:
            encoded: the files of each field, uint8.
            key: (samples,) of the samples.

        Raises:
            DataError: the device has no decoder, or not the memory; or masks are of different types.
        """
        try:
            return self._decoded(split, encoded, key)
        except torch.OutOfMemoryError as error:
            raise DataError(
                f"the device has not the memory for a batch's images as `decode` leaves them ({error}); leave it to "
                "the CPU, or make data.batch_size smaller"
            ) from None

    def _decoded(self, split: Split, encoded: Mapping[str, RaggedArray], key: np.ndarray) -> Decoded:
        made, images = Decoded(), dict[str, list[torch.Tensor | None]]()
        for stage in self._parts[split].at():
            if stage.decodes:
                began = time.perf_counter()
                for name, kind in zip(stage.on or (), stage.on_kinds, strict=True):
                    images[name] = self._images(_files(encoded[name]), kind, made)
                if self._device.type == "cuda":
                    torch.cuda.current_stream(self._device).synchronize()
                made.stage_s[stage.name] = time.perf_counter() - began
        made.keep = np.flatnonzero(~np.isin(key, key[sorted(made.errors)]))
        for name, each in images.items():
            whole = [image for place in made.keep.tolist() if (image := each[place]) is not None]
            if len(dtypes := {image.dtype for image in whole}) > 1:
                told = " and ".join(sorted(str(each).removeprefix("torch.") for each in dtypes))
                raise DataError(f"field `{name}` is decoded to different types: {told}; store its masks in one depth")
            made.fields[name] = stacked(whole)
        return made

    def _images(self, files: Sequence[torch.Tensor], kind: Kind, made: Decoded) -> list[torch.Tensor | None]:
        """(height, width, 3), upright, or a mask (height, width); None of what has an error."""
        found: list[torch.Tensor | None] = [None] * len(files)
        heads = {}
        if kind == "image":
            heads = {place: head for place, data in enumerate(files) if (head := _usual(data)) is not None}
        pixels = self._by_device([files[place] for place in heads])
        for (place, head), planes in zip(heads.items(), pixels, strict=True):
            image = None if planes is None else upright(planes.permute(1, 2, 0), head.orientation)
            if image is not None and image.shape == (*head.size, 3):
                found[place] = image
                made.on_device += 1
        for place, data in enumerate(files):
            if found[place] is None:
                try:
                    array = decode_field(data.numpy().tobytes(), kind)
                except Exception as error:  # noqa: BLE001 - OpenCV raises its own; the sample is counted and listed
                    made.errors.setdefault(place, error)
                    continue
                found[place] = torch.from_numpy(np.ascontiguousarray(array)).to(self._device)
                made.on_host += 1
        return found

    def _by_device(self, files: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """None of what it refuses: of several it says not which."""
        if not files:
            return []
        try:
            return [*self._decode_jpegs(files, self._device)]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if any(each in str(error) for each in NO_DECODER):
                raise DataError(
                    f"`decode` cannot run on {self._device.type}: {named(error)[:200]}; leave it to the CPU (without "
                    "`place: device`), or install the CUDA build of torchvision"
                ) from None
        if len(files) == 1:
            return [None]
        half = len(files) // 2
        return self._by_device(files[:half]) + self._by_device(files[half:])

    def blanks(self, split: Split, fields: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Of one sample, in a size that all stages behind take: that of what they work on beside it, or the largest
        that one of them makes.

        Args:
            fields: blank too, but for the encoded ones.
        """
        stages, names = self._parts[split].at(), self.names(split)
        others = {name for stage in stages if stage.kinds and names & {*(stage.on or ())} for name in stage.on or ()}
        beside = (fields.get(name) for name in sorted(others - names))
        canvases = [value.shape[1:3] for value in beside if isinstance(value, torch.Tensor) and value.ndim > 2]
        side = max((max(both_sides(size)) for size in _sizes(stages)), default=1)
        canvas = canvases[0] if canvases else (side, side)
        found = {}
        for name, kind in self._parts[split].decoded.items():
            known = fields[name].dtype if isinstance(fields.get(name), torch.Tensor) else torch.uint8
            channels = () if kind == "mask" else (3,)
            found[name] = torch.zeros((1, *canvas, *channels), dtype=known, device=self._device)
        return found


def _sizes(stages: Iterable[Stage]) -> Iterable[Any]:
    return (stage.options["size"] for stage in stages if stage.kinds and "size" in stage.options)


def _files(encoded: RaggedArray) -> list[torch.Tensor]:
    """Views."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of memory that is read-only, which nothing writes to
        values = torch.from_numpy(encoded.values)
    return [*values.split(encoded.lengths.tolist())]


def _usual(data: torch.Tensor) -> JpegHead | None:
    head = jpeg_head(memoryview(data.numpy()))
    return head if head is not None and head.is_usual and not is_too_large(head.size) else None


def upright(image: torch.Tensor, orientation: int) -> torch.Tensor:
    """(height, width, 3) turned as EXIF's orientation says; shares memory where it can.

    Args:
        orientation: 1 to 8: of the first row and the first column, top and left, top and right, bottom and right,
            bottom and left, left and top, right and top, right and bottom, left and bottom.
    """
    if orientation > 4:
        image = image.transpose(0, 1)
    axes = {2: [1], 3: [0, 1], 4: [0], 6: [1], 7: [0, 1], 8: [0]}.get(orientation)
    return image if axes is None else image.flip(axes)


def torchvisions_decoder(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """(3, height, width) of each, not turned: by nvJPEG on a GPU, all at once."""
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torchcodec is to have it
        found: list[torch.Tensor] = decode_jpeg(files, ImageReadMode.RGB, device)
    return found
