"""Typical device seconds of a sample, for whoever has no GPU to measure: what a model computes, and what a GPU can.

Estimates, which every output calls by that name: measured device seconds may differ by twice and more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raytrain.cost.instances import Catalog
from raytrain.cost.profile import TRAINED_ON_CPU, Figure, Profile

Precision = Literal["fp32", "bf16", "fp16"]

# Of the peak. timm's training benchmark (results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv) has, on an RTX 3090
# of 71 dense TFLOPS, 42 % for ResNet-50, 41 % for ViT-S/16, 31 % for ConvNeXt-T, and 6 % for EfficientNet-B0, whose
# depthwise convolutions wait for memory.
SHARE_OF_PEAK = 0.35
CALL_S = 10e-6  # that Python and torch take for one operator, however small; batches of small models wait for it


@dataclass(frozen=True)
class Peak:
    """Of one GPU, in 10^12 operations a second, dense (data sheets often print twice as much, for sparse matrices).

    Attributes:
        fp16, bf16: tensor cores; fp32's figure where they do not know bf16.
        fp32: without TF32, which torch does not use for matrices unless it is told to.
        tf32: tensor cores, which torch uses for fp32 convolutions unless it is told not to; fp32's figure where there
            is no TF32.
        source: whose figures these are.
    """

    fp16: float
    bf16: float
    fp32: float
    tf32: float
    source: str


PEAKS = {
    "T4": Peak(65.0, 8.1, 8.1, 8.1, "NVIDIA T4 data sheet"),
    "V100": Peak(125.0, 15.7, 15.7, 15.7, "NVIDIA V100 data sheet, SXM2"),
    "A10G": Peak(70.0, 70.0, 35.0, 35.0, "NVIDIA A10G data sheet"),
    "A100": Peak(312.0, 312.0, 19.5, 156.0, "NVIDIA A100 data sheet, SXM"),
    "L4": Peak(121.0, 121.0, 30.3, 60.0, "NVIDIA L4 data sheet"),
    "L40S": Peak(362.0, 362.0, 91.6, 183.0, "NVIDIA L40S data sheet"),
    "H100": Peak(989.0, 989.0, 67.0, 494.0, "NVIDIA H100 data sheet, SXM"),
    "H200": Peak(989.0, 989.0, 67.0, 494.0, "NVIDIA H200 data sheet, SXM"),
    "B200": Peak(2250.0, 2250.0, 75.0, 1125.0, "NVIDIA HGX B200 data sheet"),
}


def typical_s(
    flops: float, calls_per_sample: float, gpu: str, precision: Precision, convolution_flops: float = 0.0
) -> float:
    """Seconds of one GPU for a sample of so many operations: what they take, or what it takes to start them.

    Args:
        calls_per_sample: of operators, each for a whole batch.
        gpu: one of PEAKS.
        convolution_flops: those of `flops` that are convolutions', which in fp32 have another peak.
    """
    peak = PEAKS[gpu]
    if precision == "fp32":
        at_peak = (flops - convolution_flops) / peak.fp32 + convolution_flops / peak.tf32
    else:
        at_peak = flops / (peak.bf16 if precision == "bf16" else peak.fp16)
    return max(at_peak / (1e12 * SHARE_OF_PEAK), calls_per_sample * CALL_S)


def needs_estimate(profile: Profile) -> bool:
    """Whether no GPU was measured, or given."""
    return set(profile.accelerator_s_per_sample) == {TRAINED_ON_CPU}


def with_typical(
    profile: Profile,
    known: Catalog,
    *,
    flops: float,
    calls_per_sample: float,
    precision: Precision,
    model: str,
    convolution_flops: float = 0.0,
) -> Profile:
    """A profile with an estimate for every GPU of the catalog whose peak is known.

    Args:
        flops, calls_per_sample, convolution_flops: of training, forward and backward.
        model: with its images, for the reader.
    """
    gpus = sorted({each.gpu for each in known.types.values() if each.gpu} & set(PEAKS))
    seconds = {gpu: typical_s(flops, calls_per_sample, gpu, precision, convolution_flops) for gpu in gpus}
    figures = {gpu: Figure.once(value) for gpu, value in seconds.items()}
    peak = "fp32 (TF32 for convolutions)" if precision == "fp32" and convolution_flops else precision
    said = (
        f"device seconds are ESTIMATES, nothing was measured: {flops / 1e9:.3g} GFLOP to train on a sample ({model}), "
        f"at {SHARE_OF_PEAK:.0%} of what data sheets give for {peak}, at least {CALL_S * 1e6:g} us an operator; "
        "measured ones differ by twice and more, depthwise convolutions are far slower; --accelerator GPU=SECONDS "
        "gives your own"
    )
    measured = profile.accelerator_s_per_sample
    return profile.model_copy(update={"accelerator_s_per_sample": {**measured, **figures}, "estimated": said})
