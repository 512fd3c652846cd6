"""Models by name: timm's registry, or any callable of an importable module."""

from __future__ import annotations

import re
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytrain.config.learning import Model
from raytrain.config.own_code import check_importable, import_object
from raytrain.errors import ConfigError, nearest, one_line
from raytrain.train.learning.named import parameters_of

if TYPE_CHECKING:
    import torch

CLASSES = "num_classes"
_ENTRY = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)


def check_model(model: Model) -> None:
    """Fail early on a name that does not exist, without importing timm for one that does.

    Raises:
        ConfigError: naming the nearest model.
    """
    if ":" in model.name:
        check_importable(model.name)
        return
    name = model.name.partition(".")[0]
    if name in _registered_in_source():
        return
    import timm

    if not timm.is_model(name):
        raise ConfigError(
            f"model.name: timm has no model {model.name!r}{nearest(name, timm.list_models())}; "
            "see timm.list_models(), or give `package.module:callable`"
        )


def _registered_in_source() -> set[str]:
    """Model names that timm's own source registers; 30 ms, where importing timm takes seconds."""
    folder = Path(find_spec("timm").origin).parent / "models"
    return {name for path in folder.glob("*.py") for name in _ENTRY.findall(path.read_text(encoding="utf-8"))}


def check_classes(model: Model, num_train: int, num_validation: int) -> None:
    """Compare the classes that the job gives its model with those of the data. More than there are is allowed: a model
    may know classes that this data set lacks.

    Raises:
        ConfigError: there are too few.
    """
    given = model.options.get(CLASSES)
    if given is None and num_validation > num_train:
        raise ConfigError(
            f"the validation data holds the label {num_validation - 1}, but the training data has only {num_train} "
            f"classes; give model.options.{CLASSES}: {num_validation} if that is right"
        )
    if isinstance(given, int) and given < max(num_train, num_validation):
        raise ConfigError(
            f"model.options.{CLASSES}={given}, but the data has {max(num_train, num_validation)} classes; leave it out "
            "to have it filled in"
        )


def build_model(model: Model, num_classes: int | None = None) -> torch.nn.Module:
    """The module that the job describes, for as many classes as the data has where the job does not say and the model
    can be told.

    Raises:
        ConfigError: unknown name, or options that the model does not take.
    """
    if ":" in model.name:
        build = import_object(model.name)
    else:
        import timm

        build = partial(timm.create_model, model.name)
    try:
        built = build(**arguments_of(model, num_classes))
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot build model {model.name!r}: {one_line(error)}") from None
    if not callable(getattr(built, "state_dict", None)):
        raise ConfigError(f"model.name: {model.name!r} must return a torch module, not {type(built).__name__}")
    return built


def arguments_of(model: Model, num_classes: int | None = None) -> dict[str, Any]:
    """What `build_model` builds it with."""
    told = ":" not in model.name or CLASSES in parameters_of(import_object(model.name))
    return {**({CLASSES: num_classes} if told and num_classes is not None else {}), **model.options}


def check_outputs(model: Model, num_outputs: int, num_classes: int) -> None:
    """Of a model that the job cannot say a number of classes to.

    Raises:
        ConfigError: there are fewer outputs than classes; torch says no more than that an index is out of bounds.
    """
    if num_outputs < num_classes:
        raise ConfigError(f"model {model.name!r} has {num_outputs} outputs, but the data has {num_classes} classes")
