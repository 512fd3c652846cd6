"""torchvision's v2 transforms as stages; torch is imported in the workers that run one."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from raytrain.data.samples.fields import KINDS, Field, Kind
from raytrain.data.stages.draws import seed_draws
from raytrain.data.stages.stage import On, Stage, on_names
from raytrain.errors import ConfigError, nearest, one_line


def torchvision(transform: str, *, on: On = None, **options: Any) -> Stage:
    """A torchvision v2 transform by name, such as `torchvision("ColorJitter", brightness=0.4)`.

    It gets the images, masks and boxes of a sample together, as `tv_tensors`; its random numbers are seeded per sample.
    Its workers import torch, the others do not.

    Args:
        transform: its name in torchvision.transforms.v2.
        options: its own.
    """
    return _stage(transform, apply_named, transform not in DRAWS_NOTHING, on, transform=transform, arguments=options)


def is_transform(value: Any, module: str = "torchvision.transforms") -> bool:
    """Also one of the user's own that is derived from torchvision's."""
    return any(f"{each.__module__}.".startswith(f"{module}.") for each in type(value).__mro__)


def of_transform(transform: Any) -> Stage:
    """One that has been made."""
    return _stage(type(transform).__name__, apply_transform, draws(transform), None, transform=transform)


def _stage(name: str, function: Callable[..., Any], random: bool, on: On, **options: Any) -> Stage:
    return Stage(
        f"torchvision.{name}",
        function,
        random,
        options,
        scope="fields",
        on=on_names(on, name),
        kinds=KINDS,
        change=_unknown,
        helps="raytrain's own stage of that name where there is one (ColorJitter is color_jitter, and so on): the same "
        "images for a fraction of the time",
        told=frozenset({"kinds"}),
        movable=True,
        draws=seed_draws,
    )


def _unknown(what: Field) -> Field:
    return Field(kind=what.kind, classes=what.classes)


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
        "ClampBoundingBoxes",
        "ConvertBoundingBoxFormat",
        "SanitizeBoundingBoxes",
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
    fields: dict[str, np.ndarray],
    transform: str,
    arguments: dict[str, Any],
    kinds: dict[str, Kind],
    rng: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    return apply_transform(fields, named_transform(transform, arguments), kinds, rng)


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
    fields: dict[str, np.ndarray],
    transform: Callable[..., Any],
    kinds: dict[str, Kind],
    rng: np.random.Generator | None = None,
) -> dict[str, np.ndarray]:
    """
    Args:
        fields: images, masks and boxes of a sample.

    Raises:
        ValueError: it returns something else than an image for an image.
    """
    import torch

    if rng is not None:
        torch.manual_seed(int(seed_draws(rng, (0, 0))))
        fields = {name: np.ascontiguousarray(value) for name, value in fields.items()}  # noise falls in memory's order
    tensors = _tensors(fields, kinds)
    results = call_transform(transform, tensors)
    found = {}
    for name, result in results.items():
        if not isinstance(result, torch.Tensor) or (kinds[name] == "image" and result.ndim != 3):
            raise ValueError(f"{type(transform).__name__} must return an image tensor (channels, height, width)")
        plain = result.as_subclass(torch.Tensor)
        found[name] = (plain.permute(1, 2, 0) if plain.ndim == 3 else plain).numpy()
    return found


def named_transform(transform: Any, arguments: dict[str, Any] | None = None) -> Callable[..., Any]:
    """By its name, with its arguments; one that has been made, as it is."""
    return _torchvision_transform(transform, pickle.dumps(arguments)) if isinstance(transform, str) else transform


def call_transform(transform: Callable[..., Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """
    Args:
        tensors: torchvision's `tv_tensors` by name.
    """
    if is_transform(transform, "torchvision.transforms.v2"):
        return transform(tensors)  # type: ignore[no-any-return]
    import torch  # of torchvision's first kind, which knows one image, or composed of such

    return {name: transform(tensor.as_subclass(torch.Tensor)) for name, tensor in tensors.items()}


def _tensors(fields: dict[str, np.ndarray], kinds: dict[str, Kind]) -> dict[str, Any]:
    """As torchvision tells images, masks and boxes apart."""
    import torch
    from torchvision import tv_tensors

    arrays = {  # torch takes any order of axes as it is, but for mirrored ones; and some transforms work in place
        name: value.copy() if min(value.strides, default=0) < 0 or not value.flags.writeable else value
        for name, value in fields.items()
    }
    canvas = next((value.shape[:2] for name, value in arrays.items() if kinds[name] != "boxes"), (0, 0))
    made: dict[str, Any] = {}
    for name, value in arrays.items():
        tensor = torch.from_numpy(value)
        if kinds[name] == "image":
            made[name] = tv_tensors.Image(tensor.permute(2, 0, 1))
        elif kinds[name] == "mask":
            made[name] = tv_tensors.Mask(tensor.permute(2, 0, 1) if tensor.ndim == 3 else tensor)
        else:
            boxes: Any = tv_tensors.BoundingBoxes
            made[name] = boxes(tensor, format="XYXY", canvas_size=canvas)
    return made
