"""What goes in: manifest -> epoch order -> CPU stages -> ready batches -> rank.

Names are loaded on first use: a preprocessing worker imports `raytrain.data.producer` and nothing that it does not
need.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from raytrain.data.sources import SOURCE_MODULES
from raytrain.data.stages import STAGE_MODULES

_WHERE = {**SOURCE_MODULES, **STAGE_MODULES, "raytrain.data.stages.stage": ("stage",)}
__all__ = sorted(name for names in _WHERE.values() for name in names)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    for module, names in _WHERE.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'raytrain.data' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
