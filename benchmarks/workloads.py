"""What benchmarks/ingest.py prepares: workloads as plain functions, called alike by every contender.

Preparing a sample is reading it, and one function of an array and a random generator. raytrain runs the same reader and
the same function as its only stage, but where a workload has stages: there each does it in its own way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from raytrain.config.data import Source
from raytrain.data.samples.fields import Field
from raytrain.data.sources.kinds.image_folder import image_folder
from raytrain.data.sources.kinds.synthetic import synthetic
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.open import open_manifest
from raytrain.data.stages.color import color_jitter_image
from raytrain.data.stages.draws import random_box
from raytrain.data.stages.geometry import (
    random_crop_field,
    random_horizontal_flip_field,
    random_resized_crop,
    random_resized_crop_field,
    resize,
)
from raytrain.data.stages.images import decode, decode_field, gaussian_blur_image
from raytrain.data.stages.stage import Stage, stage
from raytrain.data.toy import write_digits

CACHE = Path(__file__).parents[1] / "data" / "benchmarks"
PHOTOGRAPHS, PHOTOGRAPH_NAMES = 24, 256
PHOTOGRAPH_SHAPE = (2000, 3000, 3)  # 6 megapixels
NARROW_SHAPE, WIDE_TILES = (64, 1024, 4), (16, 1, 1)  # a row is 16 times it: float32, 16 MiB
SMALLS, SMALL, SMALL_SHAPE = 2024, 64, (375, 500, 3)
SIDE, CROP = 224, 96
ONE_IMAGE = {"image": Field("uint8", (256, 256, 4), "image")}
RECORD = {  # as many bytes, but for the numbers
    "image": Field("uint8", (256, 256, 3), "image"),
    "mask": Field("uint8", (256, 256), "mask"),
    "age": Field("float32", ()),
    "weight": Field("float64", ()),
    "label": Field("int64", (), classes=tuple("abc")),
}
BLURS, KERNEL, SIGMA = 10, 11, (0.1, 2.0)


@dataclass(frozen=True)
class Workload:
    """One kind of preprocessing.

    Attributes:
        source: gives the folder or the description to open; may write sample files first.
        transform: one sample's array or encoded bytes and a random generator in, (height, width, channels) out.
        num_samples: of an epoch.
        epochs: that a contender prepares in one go.
        stages: of raytrain, where it has its own way.
        as_bytes: delivered as uint8, (height, width, channels); else as float32, channels first.
    """

    name: str
    source: Callable[[], Source]
    transform: Callable[[Any, np.random.Generator], np.ndarray]
    batch_size: int
    num_samples: int
    epochs: int
    stages: tuple[Stage, ...] = ()
    as_bytes: bool = False

    def open(self) -> Manifest:
        return open_manifest(self.source())


# --- transforms ---------------------------------------------------------------------------------------------------


def torchvision_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Ten torchvision blurs; one thread, as a DataLoader's worker has."""
    import torch
    from torchvision.transforms.v2 import functional

    if torch.get_num_threads() != 1:
        torch.set_num_threads(1)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    for sigma in rng.uniform(*SIGMA, size=BLURS):
        tensor = functional.gaussian_blur(tensor, [KERNEL, KERNEL], [float(sigma)] * 2)
    return tensor.permute(1, 2, 0).numpy()


def own_blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same ten blurs by raytrain's stage."""
    return gaussian_blur_image(image, rng, kernel_size=KERNEL, sigma=SIGMA, times=BLURS)


def photograph(data: bytes, rng: np.random.Generator) -> np.ndarray:
    image = decode_field(data, "image")
    image = random_resized_crop_field(image, rng, "image", image.shape[:2], 224)
    image = random_horizontal_flip_field(image, rng, "image", image.shape[:2])
    by = (0.6, 1.4)
    return color_jitter_image(image, rng, brightness=by, contrast=by, saturation=by)


def digit(data: bytes, rng: np.random.Generator) -> np.ndarray:
    image = decode_field(data, "image")
    return random_crop_field(image, rng, "image", image.shape[:2], 32, padding=2, padding_mode="edge")


def small(data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Decoded and squeezed, without antialiasing, as one writes it with OpenCV."""
    return cv2.resize(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), (SIDE, SIDE))


def small_with_pillow(data: bytes, rng: np.random.Generator) -> np.ndarray:
    from PIL import Image

    return np.array(Image.open(BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def crop(data: bytes, rng: np.random.Generator) -> np.ndarray:
    """Decoded whole, and the crop's areas averaged: raytrain's way before it decoded at a scale."""
    image = decode_field(data, "image")
    top, left, height, width = random_box(image.shape[:2], rng, (0.08, 1.0), (3 / 4, 4 / 3))
    part = image[top : top + height, left : left + width]
    return cv2.resize(part, (CROP, CROP), interpolation=cv2.INTER_AREA)


def same(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image


SAME = (stage(same),)


def wide(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Writes 16 MiB once, and does nothing else."""
    return np.tile(image, WIDE_TILES)


# --- what they read -----------------------------------------------------------------------------------------------


def photographs(folder: Path | None = None) -> Source:
    """A folder of class folders of one's own, or generated photographs, written once and linked under many names."""
    if folder is not None:
        return image_folder(str(folder))
    return image_folder(str(written("photographs", PHOTOGRAPH_NAMES, PHOTOGRAPHS, PHOTOGRAPH_SHAPE)))


def small_photographs() -> Source:
    return image_folder(str(written("jpegs", SMALLS, SMALL, SMALL_SHAPE)))


def written(kind: str, names: int, images: int, shape: tuple[int, int, int]) -> Path:
    """A folder with one class folder of JPEGs, `names` of them, of which so many `images` are different."""
    place = CACHE / kind / "any"
    place.mkdir(parents=True, exist_ok=True)
    for name in range(names):
        path = place / f"{name:04d}.jpg"
        if path.exists():
            continue
        if name < images:
            image = generated_photograph(name, shape)
            path.write_bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes())
        else:
            os.link(place / f"{name % images:04d}.jpg", path)
    return place.parent


def generated_photograph(seed: int, shape: tuple[int, int, int] = PHOTOGRAPH_SHAPE) -> np.ndarray:
    """uint8 BGR: amplitudes falling as 1/f, as natural scenes' do, with edges of things in front and sensor noise.

    A 6-megapixel one takes 2.0 to 2.6 MB at JPEG quality 90, about 3 bits a pixel, as a camera's file does.
    """
    rng = np.random.default_rng(seed)
    height, width, channels = shape
    image = np.empty(shape, np.float32)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    amplitude = 1 / np.maximum(frequency, 1 / max(height, width))
    common = np.fft.irfft2(amplitude * np.exp(2j * np.pi * rng.random(frequency.shape)), (height, width))
    for channel in range(channels):
        tint = np.fft.irfft2(amplitude**1.5 * np.exp(2j * np.pi * rng.random(frequency.shape)), (height, width))
        image[..., channel] = 118 + 45 * common / common.std() + 18 * tint / tint.std()
    for _ in range(24):
        centre = tuple(int(v) for v in rng.integers(0, (width, height)))
        axes = tuple(int(v) for v in rng.integers(20, width // 6, size=2))
        colour = tuple(float(v) for v in rng.integers(0, 256, size=3))
        overlay = image.copy()
        cv2.ellipse(overlay, centre, axes, float(rng.uniform(0, 180)), 0, 360, colour, -1, cv2.LINE_AA)
        cv2.addWeighted(overlay, 0.6, image, 0.4, 0, dst=image)
    image += rng.normal(0, 4, shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8)


def digits() -> Source:
    place = CACHE / "digits"
    if not (place / "train").is_dir():
        write_digits(place)
    return image_folder(str(place / "train"))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("blur", lambda: synthetic(256), torchvision_blur, 16, 256, 3),
        Workload("own_blur", lambda: synthetic(2048), own_blur, 64, 2048, 3),
        Workload("photographs", photographs, photograph, 16, 256, 3),
        Workload("jpegs", small_photographs, small, 64, SMALLS, 3, (decode(), resize((SIDE, SIDE))), as_bytes=True),
        Workload("crops", photographs, crop, 16, 256, 3, (decode(), random_resized_crop(CROP)), as_bytes=True),
        Workload(
            "one_image", lambda: synthetic(1024, fields=ONE_IMAGE), same, 32, 1024, 4, (stage(same),), as_bytes=True
        ),
        Workload("record", lambda: synthetic(1024, fields=RECORD), same, 32, 1024, 4, (stage(same),), as_bytes=True),
        Workload("digits", digits, digit, 64, 1437, 30),
        Workload("wide", lambda: synthetic(320, shape=NARROW_SHAPE), wide, 4, 320, 3),
    )
}
