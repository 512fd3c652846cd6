"""Small pictures, and torchvision's tensors of them."""

from __future__ import annotations

import io

import cv2
import numpy as np
import torch
from PIL import Image

from raytrain.data.samples.fields import Schema, field_of
from raytrain.data.stages.settling import settle


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def photo(height: int = 40, width: int = 60, seed: int = 0, dtype: str = "uint8") -> np.ndarray:
    """(height, width, 3): 0 to 255, or of floats 0 to 1."""
    noise = rng(seed).integers(0, 256, (max(height // 4, 1), max(width // 4, 1), 3), dtype=np.uint8)
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return image if dtype == "uint8" else (image / 255).astype(dtype)


def encoded(image: np.ndarray, kind: str = "JPEG", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, **options)
    return file.getvalue()


def chw(image: np.ndarray) -> torch.Tensor:
    """A tensor (channels, height, width) of (height, width, channels)."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def hwc(tensor: torch.Tensor) -> np.ndarray:
    return tensor.as_subclass(torch.Tensor).permute(1, 2, 0).numpy()


def apply(stage, sample: dict, generator: np.random.Generator | None = None, **kinds):
    """What a stage makes of a sample, as a pipeline would run it; `kinds` of fields that are more than arrays."""
    schema = Schema({name: field_of(value, name, kinds.get(name, "")) for name, value in sample.items()})
    [settled] = settle([stage], schema, "data.stages").cpu
    return settled(dict(sample), generator)


def apply_to(stage, image, generator: np.random.Generator | None = None):
    """To a sample that is an image alone."""
    return apply(stage, {"image": image}, generator, image="image")["image"]
