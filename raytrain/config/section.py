"""What every section of a job has in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Every part of a job: immutable, and a key that does not exist is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
