"""raytrain: train PyTorch models on Ray with the preprocessing spread over every CPU of the cluster.

`Job` describes, `Pipeline` says what happens to a sample, `fit` runs. The names stand in `__init__.pyi` and are loaded
on first use, so that a preprocessing process that imports one room does not pay for the others.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def public_names(init: str) -> dict[str, str]:
    """The names that a package's stub imports, with the module that has each.

    Args:
        init: the package's `__init__.py`, beside its stub, which type checkers read too.
    """
    body = ast.parse(Path(init).with_suffix(".pyi").read_text()).body
    imports = [each for each in body if isinstance(each, ast.ImportFrom) and each.module.startswith("raytrain.")]
    return {alias.name: each.module for each in imports for alias in each.names}


def loaded_on_use(package: str, init: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` of a package that imports its `public_names` when they are first used."""
    where = public_names(init)

    def load(name: str) -> Any:
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(where[name]), name)

    def shown() -> list[str]:
        return sorted({*where, "__all__", "__doc__", "__file__", "__name__", "__path__"})

    return load, shown, list(where)


__getattr__, __dir__, __all__ = loaded_on_use(__name__, __file__)
