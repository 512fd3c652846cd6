"""What SageMaker refuses, said before anything is sent: its service model, and the combinations that the model does not
know."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import ML_FOLDER
from raytrain.errors import ConfigError, nearest
from raytrain.sagemaker.request import MANAGED_CHANNELS

MAX_GROUPS = 5  # https://docs.aws.amazon.com/sagemaker/latest/dg/train-heterogeneous-cluster.html


def check(request: Mapping[str, Any]) -> None:
    """Check a CreateTrainingJob request, whoever built it.

    Raises:
        ConfigError: SageMaker would refuse it; the message says why.
    """
    _combinations(request)
    for problem in _against_the_model(request):
        raise ConfigError(f"SageMaker would refuse the request: {problem}")


def check_own_channels(request: Mapping[str, Any]) -> None:
    """Refuse a user's channel that has the name of one of ours.

    Raises:
        ConfigError: naming it.
    """
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig", [])]
    for name in MANAGED_CHANNELS:
        if names.count(name) > 1:
            raise ConfigError(f"sagemaker.channels: {name!r} is a channel of raytrain's own; choose another name")


def _combinations(request: Mapping[str, Any]) -> None:
    resources = request.get("ResourceConfig", {})
    groups = resources.get("InstanceGroups") or []
    spot = bool(request.get("EnableManagedSpotTraining"))
    if groups and ("InstanceType" in resources or "InstanceCount" in resources):
        raise ConfigError("instance groups and one instance type and count exclude each other; keep one of them")
    if len(groups) > MAX_GROUPS:
        raise ConfigError(f"SageMaker takes at most {MAX_GROUPS} instance groups, and the job has {len(groups)}")
    names = [group.get("InstanceGroupName") for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two instance groups are named {name!r}; each needs its own name")
    for count in [g.get("InstanceCount") for g in groups] or [resources.get("InstanceCount")]:
        if isinstance(count, int) and count < 1:
            raise ConfigError("an instance group needs at least one host")
    if resources.get("KeepAlivePeriodInSeconds"):
        if groups:
            raise ConfigError("SageMaker keeps no warm pool (keep_alive_s) for instance groups; drop one of them")
        if spot:
            raise ConfigError("SageMaker keeps no warm pool (keep_alive_s) for spot jobs; drop one of them")
    _times(request, spot)
    _channel_names(request, names)
    _metrics(request)
    _checkpoint_folder(request)
    for tag in request.get("Tags", []):
        if tag["Key"].lower().startswith("aws:"):
            raise ConfigError(f"tag {tag['Key']!r}: names that begin with aws: are Amazon's own; choose another")


def _times(request: Mapping[str, Any], spot: bool) -> None:
    times = request.get("StoppingCondition", {})
    wait, run = times.get("MaxWaitTimeInSeconds"), times.get("MaxRuntimeInSeconds")
    if wait is not None and not spot:
        raise ConfigError("max_wait_s is for spot jobs: say `spot: true` too, or drop it")
    if spot and (wait is None or (run is not None and wait < run)):
        raise ConfigError(f"a spot job needs max_wait_s of at least its max_run_s, {run} s; it includes the run")


def _channel_names(request: Mapping[str, Any], groups: list[str]) -> None:
    channels = request.get("InputDataConfig", [])
    names = [channel["ChannelName"] for channel in channels]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two input channels are named {name!r}; each needs its own name")
    bound = {
        c["ChannelName"]: c.get("DataSource", {}).get("S3DataSource", {}).get("InstanceGroupNames") for c in channels
    }
    loose = [name for name, to in bound.items() if not to]
    if loose and len(loose) < len(bound):
        raise ConfigError(f"either all input channels name instance groups or none does; without: {', '.join(loose)}")
    for name, to in bound.items():
        for group in to or []:
            if group not in groups:
                raise ConfigError(
                    f"channel {name!r} is bound to group {group!r}, which the job does not have{nearest(group, groups)}"
                )


def _metrics(request: Mapping[str, Any]) -> None:
    for metric in request.get("AlgorithmSpecification", {}).get("MetricDefinitions", []):
        try:
            groups = re.compile(metric["Regex"]).groups
        except re.error as error:
            raise ConfigError(
                f"metric {metric['Name']!r}: {metric['Regex']!r} is no regular expression: {error}"
            ) from None
        if not groups:
            raise ConfigError(f"metric {metric['Name']!r}: {metric['Regex']!r} has no group (…) for the number")


def _checkpoint_folder(request: Mapping[str, Any]) -> None:
    path = request.get("CheckpointConfig", {}).get("LocalPath")
    if path is not None and (not path.startswith("/") or Path(path).is_relative_to(f"{ML_FOLDER}/input")):
        raise ConfigError(f"checkpoints.path {path!r} must be an absolute path outside of {ML_FOLDER}/input")


def _against_the_model(request: Mapping[str, Any]) -> Iterator[str]:
    """Problems that botocore's description of the service shows: names, types, lengths, ranges, patterns, values."""
    import botocore.session
    from botocore.validate import ParamValidator

    model = botocore.session.get_session().get_service_model("sagemaker")
    shape = model.operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(request, shape)
    if report.has_errors():
        yield report.generate_report().splitlines()[0]
        return
    yield from _values(request, shape, "")


def _values(value: Any, shape: Any, where: str) -> Iterator[str]:
    """What ParamValidator leaves to the service: enumerations, patterns and upper bounds."""
    if shape.type_name == "structure":
        for name, inner in value.items():
            yield from _values(inner, shape.members[name], f"{where}.{name}" if where else name)
        return
    most = shape.metadata.get("max")
    size = len(value) if shape.type_name in ("string", "list", "map") else value
    if most is not None and size > most:
        yield f"{where} is {size}, and at most {most} is allowed"
    if shape.type_name == "list":
        for number, inner in enumerate(value):
            yield from _values(inner, shape.member, f"{where}[{number}]")
    elif shape.type_name == "map":
        for name, inner in value.items():
            yield from _values(name, shape.key, f"a name in {where}")
            yield from _values(inner, shape.value, f"{where}[{name!r}]")
    elif shape.type_name == "string":
        if shape.enum and value not in shape.enum:
            yield f"{where}: there is no {value!r}{nearest(value, shape.enum)}"
        pattern = shape.metadata.get("pattern", "")
        if pattern and "\\p{" not in pattern and not re.fullmatch(pattern, value):  # Java's classes of characters
            yield f"{where}: {value!r} does not look like {pattern}"
