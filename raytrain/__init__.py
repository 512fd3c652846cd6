"""raytrain: train PyTorch models on Ray with the preprocessing spread over every CPU of the cluster.

`Job` describes, `Pipeline` says what happens to a sample, `fit` runs. Names are loaded on first use, so that a
preprocessing process that imports one room does not pay for the others.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "Job": "raytrain.config.job",
    "Pipeline": "raytrain.data.pipeline",
    "fit": "raytrain.report.live",
}
__all__ = ["Job", "Pipeline", "fit"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'raytrain' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
