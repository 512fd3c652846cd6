"""The CPU stages, by the module that has them: what `raytrain.data` exports and what a job file may name."""

from __future__ import annotations

STAGE_MODULES = {
    "raytrain.data.stages.images": (
        "decode",
        "resize",
        "center_crop",
        "random_resized_crop",
        "flip",
        "random_shift",
        "gaussian_blur",
        "color_jitter",
        "cast",
        "to_uint8",
    ),
    "raytrain.data.stages.torchvision": ("torchvision",),
}
