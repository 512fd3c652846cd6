"""The preprocessing of a run as a file of torchvision's transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raytrain.data.stages.stage import Stage

_OPTIONS = {  # by stage, those that torchvision has too
    "decode": ("scaled",),
    "resize": ("size", "interpolation", "max_size"),
    "center_crop": ("size",),
}
_FILE = '''"""What was done to an image before the model saw it. Needs torch, torchvision and Pillow."""

import io

import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

TRANSFORM = v2.Compose(
    [
        v2.PILToTensor(),
{lines}
    ]
)


def preprocess(image):
    """A path, or the bytes of an image, as the (channels, height, width) that the model takes a batch of."""
    with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
        return TRANSFORM(ImageOps.exif_transpose(opened).convert("RGB"))
'''
NEARLY = "resize: where an image shrinks, the pixels differ slightly from those of the training (another filter)"


def transforms_file(stages: Sequence[Stage], data: dict[str, Any]) -> tuple[str | None, str]:
    """The text of `preprocess.py`, and one line for people; without a file, what of it torchvision does not express.

    Args:
        data: `normalize`, `fields` and `input`, as in `preprocess.json`.
    """
    left = _not_expressed(stages, data)
    if left:
        return None, f"no preprocess.py: torchvision does not express {', '.join(left)}"
    lines = [_line(stage) for stage in stages if stage.name != "decode"]
    lines.append("v2.ToDtype(torch.float32, scale=False),")
    normalize = data["normalize"]
    if normalize is not None:
        scale = normalize["scale"]
        mean, std = ([value / scale for value in normalize[key]] for key in ("mean", "std"))
        lines.append(f"v2.Normalize(mean={mean}, std={std}),  # of values from 0 to 255")
    shrinks = any(stage.name == "resize" and stage.options["interpolation"] != "nearest" for stage in stages)
    return _FILE.replace("{lines}", "\n".join(" " * 8 + line for line in lines)), NEARLY if shrinks else ""


def _not_expressed(stages: Sequence[Stage], data: dict[str, Any]) -> list[str]:
    field = data["input"]
    left = [] if stages and stages[0].name == "decode" else ["input that is not an image file"]
    for at, stage in enumerate(stages):
        own = stage.on is not None and stage.on != (field,)
        if stage.name not in _OPTIONS or set(stage.options) - set(_OPTIONS[stage.name]) or own or stage.random:
            left.append(f"the stage {stage.name}")
        elif at and stage.name == "decode":
            left.append("a second decode")
    return left + ([f"data.fields.{field}"] if field in (data["fields"] or {}) else [])


def _line(stage: Stage) -> str:
    size = stage.options["size"]
    size = size if isinstance(size, int) else list(size)
    if stage.name == "center_crop":
        return f"v2.CenterCrop({size}),"
    how, most = stage.options["interpolation"], stage.options["max_size"]
    kind = f"interpolation=v2.InterpolationMode.{'NEAREST' if how == 'nearest' else how.upper()}"
    return f"v2.Resize({size}, {kind}, max_size={most}, antialias=True),"
