"""From a file to a profile, and from a shape to a job file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import yaml

from raytrain.config import Job
from raytrain.cost.instances import Catalog
from raytrain.cost.planner import Shape
from raytrain.cost.profile import Figure, Profile, parse_profile, profile_of_record
from raytrain.errors import ConfigError, nearest
from raytrain.record import RunRecord, parse_record


def profile_from(path: Path, known: Catalog, diagnose: Callable[[Job], Profile]) -> Profile:
    """A profile, the profile in a run's record, or a job's once it has been diagnosed.

    Raises:
        ConfigError: the file is none of them.
    """
    if path.suffix != ".json":
        return diagnose(Job.from_yaml(path))
    record = read_either(path)
    return record if isinstance(record, Profile) else profile_of_record(record, known)


def read_either(path: Path) -> Profile | RunRecord:
    """
    Raises:
        ConfigError: the file is neither a profile nor a record.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = json.loads(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} is not JSON, or was cut off") from None
    is_profile = isinstance(tree, dict) and "kind" in tree
    return parse_profile(tree, str(path)) if is_profile else parse_record(text, str(path))


def with_accelerators(profile: Profile, given: list[str], known: Catalog) -> Profile:
    """Add `GPU=SECONDS` a sample to what was measured.

    Raises:
        ConfigError: an unknown GPU, or no positive number.
    """
    gpus = {each.gpu for each in known.types.values() if each.gpu}
    added: dict[str, Figure] = {}
    for text in given:
        name, _, value = text.partition("=")
        if name not in gpus:
            raise ConfigError(f"--accelerator: unknown GPU {name!r}{nearest(name, gpus)}")
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < float("inf"):
            raise ConfigError(f"--accelerator {text!r} must look like A10G=0.0008, seconds a sample")
        added[name] = Figure.once(seconds)
    return profile.model_copy(update={"accelerator_s_per_sample": {**profile.accelerator_s_per_sample, **added}})


def job_for(shape: Shape, profile: Profile, known: Catalog, region: str, path: Path) -> None:
    """Write the profile's job for the hosts of a shape: groups keep their names as far as there are as many, and a job
    given in steps does as many samples as it was to do.

    Raises:
        ConfigError: the job cannot be one of these hosts, or the file cannot be written.
    """
    tree = dict(profile.job)
    before = [group["name"] for group in (tree.get("cluster") or {}).get("groups") or ()]
    hosts = [(shape.gpu_type, shape.gpu_hosts), *shape.cpu_hosts]
    wanted = ["cpu", "cpu-2"] if before else ["gpu", "cpu", "cpu-2"]
    spare = [name for name in wanted if name not in before]
    names = [*before, *spare][: len(hosts)]
    groups = [{"name": n, "instance_type": kind, "hosts": count} for n, (kind, count) in zip(names, hosts, strict=True)]
    tree["cluster"] = {**(tree.get("cluster") or {}), "groups": groups}
    tree["sagemaker"] = {**(tree.get("sagemaker") or {}), "region": region}
    for channel, facts in (tree["sagemaker"].get("channels") or {}).items():
        if gone := set(facts.get("groups") or ()) - set(names):
            raise ConfigError(
                f"channel {channel!r} of the job is for group {min(gone)!r}, which {shape} has not; change the channel"
            )
    world_size = shape.gpu_hosts * known.type(shape.gpu_type).gpus
    if tree["training"].get("steps") and world_size != profile.world_size:
        steps = max(round(tree["training"]["steps"] * profile.world_size / world_size), 1)
        tree["training"] = {**tree["training"], "steps": steps}
    Job.from_dict(tree, where=f"the job of {profile.name}")
    try:
        path.write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"the job file cannot be written to {path}: {error.strerror}") from None
