"""The job of a run as its record has it, as far as tables, pages and plans read it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError


class _Section(BaseModel):
    model_config = ConfigDict(strict=True)


class _Training(_Section):
    epochs: float | None = None
    steps: int | None = None
    threads: int | None = None


class _Data(_Section):
    train: dict[str, Any]
    validation: dict[str, Any] | None = None
    stages: list[str | dict[str, dict[str, Any] | None]] | None = None


class _Group(_Section):
    name: str
    instance_type: str | None = None


class _Cluster(_Section):
    groups: list[_Group] = []
    reserved_cpus: int | None = None
    placement: str | None = None


class _SageMaker(_Section):
    region: str | None = None


class _Job(_Section):
    training: _Training | None = None
    model: dict[str, Any] | None = None
    data: _Data | None = None
    cluster: _Cluster | None = None
    sagemaker: _SageMaker | None = None


def check_job(job: dict[str, Any], *, trained: bool = True) -> None:
    """
    Args:
        trained: it must say how long.

    Raises:
        ValueError: it is none; naming the key.
    """
    try:
        found = _Job.model_validate(job)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))} of the job: {first['msg']}") from None
    if trained and found.training is None:
        raise ValueError("training of the job: Field required")
