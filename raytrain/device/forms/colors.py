"""Forms of the stages in `data/stages/color.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raytrain.data.samples.fields import Kind
from raytrain.data.stages.color import LUMA
from raytrain.device.forms.tensors import exact, per_sample, rounded, to_device

Pair = tuple[float, float]
_BITS = 10  # of a share, where OpenCV mixes the channels of uint8


def color_jitter(
    value: torch.Tensor,
    drawn: np.ndarray,
    kind: Kind,
    brightness: Pair = (1.0, 1.0),
    contrast: Pair = (1.0, 1.0),
    saturation: Pair = (1.0, 1.0),
    hue: Pair = (0.0, 0.0),
) -> torch.Tensor:
    ranges = brightness, contrast, saturation, hue
    amounts, order = drawn[:, :4], drawn[:, 4:]
    made = value
    for turn in range(4):
        for number, (change, nothing) in enumerate(_CHANGES):
            chosen = np.flatnonzero(order[:, turn] == number)
            if ranges[number] == (nothing, nothing) or len(chosen) == 0:
                continue
            samples = to_device(chosen, value.device)
            made = made.clone() if made is value else made
            made[samples] = change(made[samples], amounts[chosen, number])
    return made


def grayscale(value: torch.Tensor, drawn: np.ndarray | None, kind: Kind, num_output_channels: int = 1) -> torch.Tensor:
    grey = value
    if value.shape[3] == 3:
        grey = rounded(_greys(value.to(exact(value.dtype))), value.dtype)
    return grey if num_output_channels == 1 else grey.repeat_interleave(num_output_channels, dim=3)


def random_grayscale(value: torch.Tensor, drawn: np.ndarray, kind: Kind, **_: Any) -> torch.Tensor:
    chosen = per_sample(drawn[:, 0].astype(bool), value)
    return torch.where(chosen, grayscale(value, None, kind, value.shape[3]), value)


def adjust_brightness(value: torch.Tensor, factors: np.ndarray) -> torch.Tensor:
    factor = per_sample(factors, value)
    return _linear(value, factor, torch.zeros_like(factor))


def adjust_contrast(value: torch.Tensor, factors: np.ndarray) -> torch.Tensor:
    means = value.mean(dim=(1, 2), keepdim=True, dtype=torch.float64)
    factor = per_sample(factors, value)
    return _linear(value, factor, (1.0 - factor) * (_greys(means) if value.shape[3] == 3 else means[..., :1]))


def adjust_saturation(value: torch.Tensor, factors: np.ndarray) -> torch.Tensor:
    if value.shape[3] == 1:
        return value
    shares = factors[:, None, None] * np.eye(3) + (1.0 - factors)[:, None, None] * LUMA  # (samples, to, from)
    if value.dtype == torch.uint8:  # as whole numbers, as OpenCV does it
        matrix = np.rint(shares.astype(np.float32) * np.float32(2**_BITS))
        mixed = _mixed(value.float(), matrix)
        return mixed.add(2 ** (_BITS - 1)).mul(2**-_BITS).floor().clamp(0, 255).to(torch.uint8)
    return _mixed(value.to(exact(value.dtype)), shares).clamp(0, 1).to(value.dtype)


def _mixed(pixels: torch.Tensor, shares: np.ndarray) -> torch.Tensor:
    matrix = to_device(shares, pixels.device, pixels.dtype)[:, None, None]  # (samples, 1, 1, to, from)
    return sum(pixels[..., each, None] * matrix[..., each] for each in range(3))


def adjust_hue(value: torch.Tensor, shifts: np.ndarray) -> torch.Tensor:
    """Through hue, saturation and value, with OpenCV's formulas."""
    if value.shape[3] == 1:
        return value
    pixels = value.float() * (1 / 255) if value.dtype == torch.uint8 else value.float()
    red, green, blue = pixels.unbind(dim=3)
    most, least = pixels.amax(dim=3), pixels.amin(dim=3)
    tiny = torch.finfo(torch.float32).eps
    chroma = most - least
    sixth = torch.where(
        most == red, green - blue, torch.where(most == green, blue - red + 2 * chroma, red - green + 4 * chroma)
    ) / (chroma + tiny)
    turned = (sixth + 6 * per_sample(shifts, sixth, torch.float32)) % 6
    depth = most * (chroma / (most.abs() + tiny))
    places = to_device(np.array([5.0, 3.0, 1.0]), value.device, torch.float32)
    ramp = (turned[..., None] + places) % 6
    made = most[..., None] - depth[..., None] * torch.minimum(ramp, 4 - ramp).clamp(0, 1)
    return (made * 255.999).to(torch.uint8) if value.dtype == torch.uint8 else made.to(value.dtype)


_CHANGES = ((adjust_brightness, 1.0), (adjust_contrast, 1.0), (adjust_saturation, 1.0), (adjust_hue, 0.0))
"""As `color.CHANGES`."""


def _greys(pixels: torch.Tensor) -> torch.Tensor:
    """(..., 3) to (..., 1)."""
    return (pixels * to_device(LUMA, pixels.device, pixels.dtype)).sum(dim=-1, keepdim=True)


def _linear(value: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Factor and shift of each sample, float64 (samples, 1, 1, 1)."""
    if value.dtype != torch.uint8:
        return (value * factor.to(value.dtype) + shift.to(value.dtype)).clamp(0, 1)
    levels = torch.arange(256, device=value.device)
    tables = (levels * factor[:, 0, 0] + shift[:, 0, 0]).clamp(0, 255).to(torch.uint8)
    places = value.to(torch.int32) + per_sample(np.arange(len(value)) * 256, value, torch.int32)
    return tables.flatten().index_select(0, places.flatten()).reshape(value.shape)
