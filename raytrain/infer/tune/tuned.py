"""From a setting to a job, to its file, and to words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from raytrain.config.inference import PredictionJob
from raytrain.errors import ConfigError
from raytrain.infer.contract import Setting


def keys_of(setting: Setting, on_gpu: bool) -> dict[str, Any]:
    """What a setting says in the section `inference` of a job file."""
    keys: dict[str, Any] = {
        "backend": setting.backend,
        "precision": setting.precision,
        "batch_size": setting.batch_size,
        "block": {"rows": setting.block_rows},
        "streams": {"allocator": setting.allocator},
    }
    if on_gpu:
        return keys | {"tasks_per_gpu": setting.tasks_per_gpu}
    keys["streams"] |= {"count": setting.streams, "cores": setting.cores}
    return keys


def with_setting(tree: dict[str, Any], setting: Setting, on_gpu: bool) -> dict[str, Any]:
    """A job file's content, with a setting's keys in the place of its own; others are as they were."""
    inference = dict(tree.get("inference") or {})
    for key, value in keys_of(setting, on_gpu).items():
        inference[key] = {**(inference.get(key) or {}), **value} if isinstance(value, dict) else value
    return {**tree, "inference": inference}


def write_tuned(tree: dict[str, Any], setting: Setting, on_gpu: bool, why: str, path: Path) -> PredictionJob:
    """Write the job file of a setting, and read it back.

    Raises:
        ConfigError: it cannot be written.
    """
    text = f"# chosen by raytrain tune: {why}\n" + yaml.safe_dump(
        with_setting(tree, setting, on_gpu), sort_keys=False, allow_unicode=True
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the tuned job file cannot be written to {path}: {error.strerror}") from None
    return PredictionJob.from_yaml(path)


def said(setting: Setting, on_gpu: bool = False) -> str:
    """A setting in words."""
    parts = [f"{setting.backend} {setting.precision}", f"batches of {setting.batch_size}"]
    if on_gpu:
        parts.append(f"{setting.tasks_per_gpu} a GPU")
    else:
        parts.append(f"{setting.streams} x {setting.cores} cores")
    if setting.allocator != "default":
        parts.append(setting.allocator)
    return ", ".join(parts)
