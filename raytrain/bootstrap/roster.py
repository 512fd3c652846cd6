"""Who should be in the cluster, who am I and who is head: a value, the same on every host of a job."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from raytrain.errors import ClusterError, ConfigError, nearest

ONE_GROUP = "homogeneousCluster"  # what SageMaker calls the only group of a job without groups

# AWS names instance families by what they are for: p and g (and gr, more memory beside the GPU) carry GPUs.
_GPU_FAMILY = re.compile(r"^(ml\.)?(p|g|gr)\d")


@dataclass(frozen=True)
class Member:
    """One host that the job was given."""

    name: str
    group: str
    instance_type: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(filter(None, (self.group, self.instance_type)))})"


@dataclass(frozen=True)
class Roster:
    """All hosts of a job; a single machine is a roster of one.

    Attributes:
        members: in the order of the groups, and by number within a group.
        interface: the network interface that the platform names, if it does.
        alone: this is no job's host but a machine by itself, and stays off the network.
    """

    members: tuple[Member, ...]
    me: Member
    head: Member
    interface: str | None = None
    alone: bool = False

    @property
    def am_head(self) -> bool:
        return self.me == self.head

    @property
    def others(self) -> tuple[Member, ...]:
        """Everybody but the head."""
        return tuple(member for member in self.members if member != self.head)


class _Group(BaseModel):
    name: str = Field(alias="instance_group_name", min_length=1)
    instance_type: str | None = None
    hosts: list[str] = Field(min_length=1)


class _ResourceConfig(BaseModel):
    """SageMaker's resourceconfig.json, the keys that matter here.

    The platform writes `current_group_name`; its toolkit's documentation calls it `current_instance_group`.
    """

    current_host: str = Field(min_length=1)
    hosts: list[str] = Field(min_length=1)
    current_instance_type: str | None = None
    current_group_name: str | None = None
    current_instance_group: str | None = None
    instance_groups: list[_Group] | None = None
    network_interface_name: str | None = None

    @field_validator("hosts")
    @classmethod
    def _each_once(cls, hosts: list[str]) -> list[str]:
        if len(set(hosts)) != len(hosts):
            raise ValueError("a host is named twice")
        return hosts


def local(name: str, head_group: str | None = None) -> Roster:
    """This machine alone."""
    me = Member(name, "local")
    return Roster((me,), me, _head((me,), head_group), alone=True)


def from_resource_config(config: Mapping[str, Any], head_group: str | None = None) -> Roster:
    """Read a SageMaker resource config, of a job with or without instance groups.

    Args:
        config: the content of resourceconfig.json.
        head_group: the group whose first host is head; None for the first group with GPUs, else the first group.

    Raises:
        ClusterError: the file contradicts itself or lacks a key.
        ConfigError: there is no such group.
    """
    try:
        read = _ResourceConfig.model_validate(dict(config))
        groups = read.instance_groups or [
            _Group(
                instance_group_name=_declared_group(read) or ONE_GROUP,
                instance_type=read.current_instance_type,
                hosts=read.hosts,
            )
        ]
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ClusterError(f"resourceconfig.json: {where}: {first['msg']}") from None
    members = tuple(
        Member(name, group.name, group.instance_type) for group in groups for name in sorted(group.hosts, key=_natural)
    )
    _check(read, groups, members)
    me = next(member for member in members if member.name == read.current_host)
    return Roster(members, me, _head(members, head_group), read.network_interface_name)


def _declared_group(read: _ResourceConfig) -> str | None:
    return read.current_group_name or read.current_instance_group


def _natural(name: str) -> list[Any]:
    """algo-2 before algo-10."""
    parts = (part.lstrip("0") if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name)))
    return [(len(part), part) if place % 2 else part for place, part in enumerate(parts)]


def _check(read: _ResourceConfig, groups: list[_Group], members: tuple[Member, ...]) -> None:
    names = [member.name for member in members]
    if len({group.name for group in groups}) != len(groups):
        raise ClusterError("resourceconfig.json: instance_groups names a group twice")
    if sorted(names) != sorted(read.hosts):
        odd = sorted(set(names) ^ set(read.hosts)) or sorted(name for name in names if names.count(name) > 1)
        raise ClusterError(f"resourceconfig.json: hosts and instance_groups disagree about {', '.join(odd)}")
    if read.current_host not in names:
        raise ClusterError(f"resourceconfig.json: current_host {read.current_host!r} is not among hosts")
    listed = next(member.group for member in members if member.name == read.current_host)
    if _declared_group(read) not in (None, listed):
        raise ClusterError(
            f"resourceconfig.json: {read.current_host} says that it is in group {_declared_group(read)!r} but "
            f"instance_groups lists it in {listed!r}"
        )


def _head(members: tuple[Member, ...], head_group: str | None) -> Member:
    if head_group is None:
        return next((m for m in members if _GPU_FAMILY.match(m.instance_type or "")), members[0])
    for member in members:
        if member.group == head_group:
            return member
    groups = list(dict.fromkeys(member.group for member in members))
    raise ConfigError(
        f"--head-group {head_group!r} is not a group of this job{nearest(head_group, groups)} ({', '.join(groups)})"
    )
