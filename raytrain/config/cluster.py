"""The section `cluster`: instance groups, and where the CPU stages may run."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from raytrain.config.section import PositiveInt, Section
from raytrain.errors import ConfigError


class Group(Section):
    """An instance group: hosts of one kind."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", max_length=64)] = Field(
        description="letters, digits and -, at most 64"
    )
    hosts: PositiveInt = Field(1, description="how many")
    cpus: PositiveInt | None = Field(None, description="of a host; default: as the instance type has")
    gpus: Annotated[int, Field(ge=0)] | None = Field(None, description="likewise")
    instance_type: Annotated[str, Field(pattern=r"^ml\.")] | None = Field(
        None, description="SageMaker's, such as ml.g5.xlarge"
    )

    @model_validator(mode="after")
    def _of_some_size(self) -> Group:
        if self.cpus is None and self.instance_type is None:
            raise ValueError(f"group {self.name!r} needs `instance_type` or `cpus`")
        return self


Placement = Literal["auto", "anywhere", "cpu-groups-first", "cpu-groups-only"]


class Cluster(Section):
    """Where it runs."""

    groups: tuple[Group, ...] = Field((), description="what the job runs on in the cloud; --nodes emulates it here")
    placement: Placement = Field("auto", description="where the CPU stages run; auto: as measurement says")
    reserved_cpus: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="CPUs of a training host kept from the stages; default: one a GPU, at most half, unless "
        "`placement: auto` finds it faster to use them",
    )


_NODES = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9-]*)=(?P<hosts>\d{1,6})x(?P<cpus>\d{1,6})(x(?P<gpus>\d{1,6}))?$")


def parse_nodes(text: str) -> tuple[Group, ...]:
    """`gpu=1x2x1,cpu=2x1`: group=hosts x CPUs [x GPUs].

    Raises:
        ConfigError: another form, a group named twice, no host or no CPU at all.
    """
    groups: list[Group] = []
    for part in text.split(","):
        match = _NODES.match(part.strip())
        if not match:
            raise ConfigError(
                f"--nodes {part.strip()!r} must look like group=HOSTSxCPUS[xGPUS], such as gpu=1x2x1,cpu=2x1"
            )
        hosts, cpus, gpus = int(match["hosts"]), int(match["cpus"]), int(match["gpus"] or 0)
        if hosts < 1:
            raise ConfigError(f"--nodes: group {match['name']!r} has no host; give it at least one or leave it out")
        if match["name"] in {group.name for group in groups}:
            raise ConfigError(f"--nodes names group {match['name']!r} twice")
        if cpus < 1:
            raise ConfigError(f"--nodes: hosts of group {match['name']!r} need at least one CPU")
        groups.append(Group(name=match["name"], hosts=hosts, cpus=cpus, gpus=gpus))
    return tuple(groups)


def reserved_cpus(cpus: int, gpus: int, wanted: int | None) -> int:
    """CPUs of a training host that the CPU stages leave alone: as wanted, or one a GPU, at most half.

    Raises:
        ConfigError: nothing would be left.
    """
    if wanted is None:
        return min(gpus, cpus // 2)
    if wanted >= cpus:
        raise ConfigError(f"cluster.reserved_cpus={wanted} leaves nothing of a training host's {cpus} CPUs")
    return wanted
