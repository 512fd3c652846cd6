"""Kernels of Gaussian blurs, for many samples at once, on the host."""

from __future__ import annotations

import numpy as np
import torch

from raytrain.data.stages.images import BLUR_TOLERANCE

BITS = {torch.uint8: 8, torch.uint16: 16}  # of a tap, in OpenCV's blur of such images


def gaussian_taps(kernel: int, sigmas: np.ndarray) -> np.ndarray:
    """(...) to float64 (..., kernel), of sum 1."""
    places = np.arange(kernel) - (kernel - 1) / 2
    taps = np.exp(-(places**2) / (2 * sigmas[..., None] ** 2))
    return np.asarray(taps / taps.sum(axis=-1, keepdims=True))


def taps_in_a_row(taps: np.ndarray) -> np.ndarray:
    """(samples, times, kernel) to (samples, longest), what `images.blur_taps` makes of each, with as many taps as any
    of them needs."""
    samples, times, kernel = taps.shape
    made = np.ones((samples, 1))
    for number in range(times):
        wider = np.zeros((samples, made.shape[1] + kernel - 1))
        for place in range(kernel):
            wider[:, place : place + made.shape[1]] += made * taps[:, number, place, None]
        made = wider
    outside = np.cumsum(made[:, : made.shape[1] // 2], axis=1)
    cut = int((outside < BLUR_TOLERANCE / 2).sum(axis=1).min())
    made = made[:, cut : made.shape[1] - cut]
    return np.asarray(made / made.sum(axis=1, keepdims=True))


def fixed_taps(taps: np.ndarray, bits: int) -> np.ndarray:
    """(..., kernel) in whole 1 / 2**bits, as OpenCV has them: each takes over what the one before it has lost, and the
    middle one makes the sum 1."""
    made = np.zeros_like(taps)
    lost = np.zeros(taps.shape[:-1])
    middle = taps.shape[-1] // 2
    for place in range(middle):
        wanted = taps[..., place] * 2**bits + lost
        whole = np.rint(wanted)
        lost = wanted - whole
        made[..., place] = made[..., -1 - place] = whole
    made[..., middle] = 2**bits - made.sum(axis=-1)
    return made / 2**bits
