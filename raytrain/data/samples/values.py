"""What people's data sets and stages give, as what travels: NumPy arrays and numbers, bytes, text.

Nothing here imports torch or Pillow; whoever gives a tensor or a picture has.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from raytrain.data.samples.fields import BFLOAT16, DTYPES, IMAGE, Kind, np_dtype
from raytrain.errors import DataError

_KNOWN = frozenset(DTYPES)
_BY_TV_TENSOR: dict[str, Kind] = {"Image": "image", "Mask": "mask", "BoundingBoxes": "boxes"}


def plain(value: Any, place: str) -> Any:
    """An array, NumPy number, bytes or text.

    Args:
        value: one of these, or a Python number, a list of numbers, a torch tensor, or a Pillow image (taken as RGB,
            or as one channel where that has more than 8 bits). Tensors are as they are but for torchvision's
            `tv_tensors`: an Image or Mask (channels, height, width) becomes (height, width, channels), and boxes are
            left, top, right and bottom, whatever their format.
        place: where it stands, for messages.

    Raises:
        DataError: it is something else.
    """
    found: Any
    if isinstance(value, str):
        return str(value)  # of NumPy's too
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if isinstance(value, np.ndarray | np.generic):
        found = value
    elif (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
        found = _of_tensor(value, torch)
    elif isinstance(value, bool | int | float | complex):
        found = np.asarray(value)
        found = found if found.dtype == object else found[()]  # what is too large is an object
    elif isinstance(value, list | tuple):
        found = _of_list(value, place)
    elif type(value).__module__.startswith("PIL."):
        deep = value.mode in ("I", "F") or value.mode.startswith("I;")  # more than a byte, which RGB would cut off
        found = np.array(value)[:, :, None] if deep else np.array(value.convert("RGB"))
    else:
        raise DataError(
            f"{place} is {'nothing' if value is None else type(value).__name__}; a field is an array, a tensor, a "
            "number, a list of numbers, bytes, text, or a Pillow image"
        )
    if found.dtype.name not in _KNOWN:
        raise DataError(
            f"{place} holds {found.dtype}, which cannot travel; it may be {', '.join(DTYPES)}, text or bytes"
        )
    return found


def kind_of(value: Any, name: str = "") -> Kind:
    """What geometry does to a value of a data set of the user's own; see fields.Field."""
    kind = type(value)
    if _is_tv_tensor(value):
        return _BY_TV_TENSOR.get(kind.__name__, "")
    if kind.__module__.startswith("PIL."):
        return "image"
    if isinstance(value, bytes | bytearray | memoryview):
        return "image" if name == IMAGE else ""
    return "image" if name == IMAGE and getattr(value, "ndim", 0) == 3 else ""


def _is_tv_tensor(value: Any) -> bool:
    return type(value).__module__.startswith("torchvision.tv_tensors")


def of_image(value: Any) -> Any:
    """A plain tensor in the place of an image is (channels, height, width), as torchvision has it."""
    torch = sys.modules.get("torch")
    if torch is not None and type(value) is torch.Tensor and value.ndim == 3:
        return value.permute(1, 2, 0)
    return value


def of_mask(value: Any) -> Any:
    """A Pillow image in the place of a mask has the numbers that it holds, not their colours."""
    if type(value).__module__.startswith("PIL."):
        return np.array(value)
    return of_image(value)


def _of_tensor(tensor: Any, torch: Any) -> np.ndarray | np.generic:
    kind = _BY_TV_TENSOR.get(type(tensor).__name__, "") if _is_tv_tensor(tensor) else ""
    if kind in ("image", "mask") and tensor.ndim == 3:
        tensor = tensor.permute(1, 2, 0)
    if kind == "boxes" and tensor.format.value != "XYXY":
        from torchvision.transforms.v2.functional import convert_bounding_box_format

        tensor = convert_bounding_box_format(tensor, new_format="XYXY")
    tensor = tensor.detach().cpu()
    if type(tensor) is not torch.Tensor:
        tensor = tensor.as_subclass(torch.Tensor)
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(np_dtype(BFLOAT16))  # type: ignore[no-any-return]
    array: np.ndarray = tensor.numpy()
    return array[()]  # a number where it has no axes


def _of_list(value: list[Any] | tuple[Any, ...], place: str) -> np.ndarray:
    try:
        found = np.asarray(value)
    except ValueError:
        raise DataError(f"{place} is a list of lists of different lengths; a field is one array") from None
    if found.size == 0:
        return found.astype(np.int64)
    if found.dtype.kind not in "biufc":
        raise DataError(f"{place} is a list of something else than numbers: {str(value)[:60]}")
    return found
