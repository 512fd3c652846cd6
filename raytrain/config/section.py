"""What every section of a job has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from raytrain.config.own_code import OBJECT_PATH_FORM, is_object_path

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]


def _is_a_path(text: str) -> str:
    if not is_object_path(text):
        raise ValueError(f"{text!r} {OBJECT_PATH_FORM}")
    return text


ObjectPath = Annotated[str, AfterValidator(_is_a_path)]
"""`package.module:name`."""


class Section(BaseModel):
    """Every part of a job: immutable, and a key that does not exist is an error, as is a number that is none."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def is_smaller_better(said: str | None, metric: str) -> bool:
    """Of a metric: what the job says, else whether its name ends in loss."""
    return said == "min" or (said is None and metric.endswith("loss"))
