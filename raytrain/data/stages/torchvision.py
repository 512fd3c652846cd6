"""torchvision's v2 transforms as stages; torch is imported in the workers that run one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from raytrain.data.stages.stage import Stage
from raytrain.errors import ConfigError, nearest, one_line

# --- torchvision --------------------------------------------------------------------------------------------------


def torchvision(transform: str, **options: Any) -> Stage:
    """A torchvision v2 transform by name, such as `torchvision("ColorJitter", brightness=0.4)`.

    It gets the image as a uint8 or float tensor (channels, height, width); its random numbers are seeded per sample.
    """
    arguments = {"transform": transform, "arguments": options}
    return Stage(f"torchvision.{transform}", apply_named, transform not in DRAWS_NOTHING, arguments)


# torchvision v2 transforms that give the same for the same image; any other is taken to be random.
DRAWS_NOTHING = frozenset(
    [
        "Resize",
        "CenterCrop",
        "FiveCrop",
        "TenCrop",
        "Pad",
        "Grayscale",
        "RGB",
        "Normalize",
        "ToDtype",
        "ToImage",
        "ToPureTensor",
        "ConvertImageDtype",
        "Identity",
        "LinearTransformation",
    ]
)


def draws(transform: Any) -> bool:
    """Whether a torchvision transform may draw random numbers; what holds others does when one of them does."""
    inner = getattr(transform, "transforms", None)
    if type(transform).__name__ == "Compose" and inner is not None:
        return any(draws(each) for each in inner)
    return type(transform).__name__ not in DRAWS_NOTHING


def apply_named(
    image: np.ndarray, transform: str, arguments: dict[str, Any], rng: np.random.Generator | None = None
) -> np.ndarray:
    return apply_transform(image, _torchvision_transform(transform, pickle.dumps(arguments)), rng)


@cache
def _torchvision_transform(name: str, arguments_pickle: bytes) -> Callable[..., Any]:
    """Made where it is used, since the driver would wait a second for torchvision.

    Raises:
        ConfigError: there is none of this name, or it does not take these arguments.
    """
    from torchvision.transforms import v2

    known = [each for each in dir(v2) if each[0].isupper()]
    if name not in known:
        raise ConfigError(f"torchvision has no transform {name!r}{nearest(name, known)}")
    arguments = pickle.loads(arguments_pickle)
    try:
        made: Callable[..., Any] = getattr(v2, name)(**arguments)
    except Exception as error:  # noqa: BLE001 - each checks its arguments in its own way
        said = one_line(error, 200)
        raise ConfigError(f"torchvision's {name} does not take {arguments!r}: {said}") from None
    return made


def apply_transform(
    image: np.ndarray, transform: Callable[..., Any], rng: np.random.Generator | None = None
) -> np.ndarray:
    import torch

    if rng is not None:
        torch.manual_seed(int(rng.integers(2**63 - 1)))
    if min(image.strides) < 0:  # mirrored; torch takes any other order as it is
        image = image.copy()
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    result = transform(tensor)
    if not isinstance(result, torch.Tensor) or result.ndim != 3:
        raise ValueError(f"{type(transform).__name__} must return an image tensor (channels, height, width)")
    return result.permute(1, 2, 0).numpy()
