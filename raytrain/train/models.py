"""Models by name: timm's registry, or any callable of an importable module."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from raytrain.config import Model
from raytrain.errors import ConfigError, nearest, one_line

if TYPE_CHECKING:
    import torch

_ENTRY = re.compile(r"^@register_model\s+def (\w+)\(", re.MULTILINE)


def check_model(model: Model) -> None:
    """Fail early on a name that does not exist, without importing timm for one that does.

    Raises:
        ConfigError: naming the nearest model.
    """
    name = model.name.partition(".")[0]
    if ":" in model.name or name in _registered_in_source():
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


def build_model(model: Model) -> torch.nn.Module:
    """The module that the job describes.

    Raises:
        ConfigError: unknown name, or options that the model does not take.
    """
    try:
        if ":" in model.name:
            module, _, attribute = model.name.partition(":")
            return getattr(import_module(module), attribute)(**model.options)
        import timm

        return timm.create_model(model.name, **model.options)
    except (ImportError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"cannot build model {model.name!r}: {one_line(error)}") from None
