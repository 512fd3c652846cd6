"""From a planned shape to a job file that `raytrain launch` takes."""

from __future__ import annotations

import math
import os.path
import re
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from raytrain.cluster.environment import ML_FOLDER, TOKEN_CHANNEL
from raytrain.config.data import OwnSource
from raytrain.config.job import Job
from raytrain.config.masking import check_whole
from raytrain.config.own_code import is_own_module
from raytrain.config.sagemaker import SageMaker
from raytrain.cost.instances import Catalog
from raytrain.cost.planner import Prediction
from raytrain.cost.profile import Profile
from raytrain.errors import ConfigError

ROLE = "your-sagemaker-role"  # placeholders: they have the form of the real ones, and nobody has them
BUCKET = "s3://your-bucket"
CHANNELS = f"{ML_FOLDER}/input/data"
TAKEN = {"code", "sm_drivers", TOKEN_CHANNEL}  # channels that a launch adds
FILES = frozenset({".parquet", ".pq", ".tar"})  # how the name of a data file ends that is not on this machine
SLACK = 1.5  # of the predicted time, before SageMaker ends the job
PROGRAM = '''"""What runs on the head of the job: python train.py job.yaml."""

import sys

from raytrain.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "train")
    main()
'''


def write_job(
    planned: Prediction,
    profile: Profile,
    known: Catalog,
    region: str,
    path: Path,
    *,
    role: str | None = None,
    data: str | None = None,
) -> list[str]:
    """Write the profile's job for the hosts of a shape, and the source folder that it names if there is none.

    Args:
        role: for the job, in the place of its own.
        data: `s3://…` where the data will lie.

    Returns:
        What is left to do before it can be launched, a line each.

    Raises:
        ConfigError: the job cannot be one of these hosts, or a file cannot be written.
    """
    tree, left = job_for(planned, profile, known, region, role=role, data=data)
    first = f"# {planned.shape}, planned by raytrain from {profile.source}"
    guess = "; its device seconds were estimated, not measured" if profile.estimated else ""
    try:
        path.write_text(f"{first}{guess}\n" + yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        return left + _source_folder(tree["sagemaker"])
    except OSError as error:
        where = error.filename or path
        raise ConfigError(f"the job file cannot be written to {where}: {error.strerror}") from None


def job_for(
    planned: Prediction,
    profile: Profile,
    known: Catalog,
    region: str,
    *,
    role: str | None = None,
    data: str | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The job, and what is left to do. Groups keep their names as far as there are as many, and a job given in steps
    does as many samples as it was to do.

    Raises:
        ConfigError: the job cannot be one of these hosts.
    """
    check_whole(profile.job, f"the job of {profile.name}")
    Job.from_dict(profile.job, where=f"the job of {profile.name}")
    shape, tree = planned.shape, dict(profile.job)
    names = _names(tree, 1 + len(shape.cpu_hosts))
    hosts = [(shape.gpu_type, shape.gpu_hosts), *shape.cpu_hosts]
    groups = [{"name": n, "instance_type": kind, "hosts": count} for n, (kind, count) in zip(names, hosts, strict=True)]
    tree["cluster"] = {**(tree.get("cluster") or {}), "groups": groups}
    asked = tree["sagemaker"] = {**(tree.get("sagemaker") or {}), "region": region}
    for channel, facts in (asked.get("channels") or {}).items():
        if gone := set(facts.get("groups") or ()) - set(names):
            raise ConfigError(
                f"channel {channel!r} of the job is for group {min(gone)!r}, which {shape} has not; change the channel"
            )
    left = [*_role(asked, role), *_channels(tree, names, data), *_time_limit(asked, planned)]
    world_size = shape.gpu_hosts * known.type(shape.gpu_type).gpus
    if tree["training"].get("steps") and world_size != profile.world_size:
        steps = max(round(tree["training"]["steps"] * profile.world_size / world_size), 1)
        tree["training"] = {**tree["training"], "steps": steps}
    job = Job.from_dict(tree, where=f"the job of {profile.name}")
    return tree, left + _own_code(job)


def _names(tree: dict[str, Any], wanted: int) -> list[str]:
    before = [group["name"] for group in (tree.get("cluster") or {}).get("groups") or ()]
    spare = ["cpu", "cpu-2"] if before else ["gpu", "cpu", "cpu-2"]
    return [*before, *(name for name in spare if name not in before)][:wanted]


def _role(asked: dict[str, Any], role: str | None) -> list[str]:
    asked["role"] = role or asked.get("role") or ROLE
    if asked["role"] != ROLE:
        return []
    return [f"sagemaker.role is a placeholder, {ROLE}: put in a role that SageMaker may assume (or plan with --role)"]


def _channels(tree: dict[str, Any], names: list[str], uri: str | None) -> list[str]:
    """Let the job read what lies on this machine from channels."""
    sources = {split: (tree.get("data") or {}).get(split) for split in ("train", "validation")}
    local = {split: s["path"] for split, s in sources.items() if s and _is_local(s.get("path"))}
    if not local:
        return []
    tree["data"], asked = dict(tree["data"]), tree["sagemaker"]
    channels = asked["channels"] = dict(asked.get("channels") or {})
    bound = any(channel.get("groups") for channel in channels.values())
    left, where = [], _folders(local, {*channels, *TAKEN})
    for split, (channel, folder) in where.items():
        path = os.path.relpath(local[split], folder)
        inside = PurePosixPath(CHANNELS, channel, *(() if path == "." else PurePosixPath(path).parts))
        tree["data"][split] = {**sources[split], "path": str(inside)}
        if channel not in channels:
            several = len({name for name, _ in where.values()}) > 1
            given = uri and uri.rstrip("/") + (f"/{channel}" if several else "")
            channels[channel] = {"uri": given or f"{BUCKET}/{channel}", **({"groups": names} if bound else {})}
            if not given:
                left.append(
                    f"sagemaker.channels.{channel}.uri is a placeholder, {BUCKET}/{channel}: put in your bucket "
                    "(or plan with --data)"
                )
            command = _copied(local[split], folder, channels[channel]["uri"])
            left.append(f"the data is not in S3 yet, as far as this knows: {command}")
    return left


def _is_local(path: Any) -> bool:
    return isinstance(path, str) and "://" not in path and not path.startswith(f"{CHANNELS}/")


def _folders(local: dict[str, str], taken: set[str]) -> dict[str, tuple[str, str]]:
    """By split, a channel's name and the folder of this machine that it is to hold: one for both splits, but for splits
    that have only the current folder, or one above it, in common.

    Raises:
        ConfigError: a split's data is such a folder itself.
    """
    folders = {split: os.path.abspath(_folder(path)) for split, path in local.items()}
    above = os.path.commonpath(folders.values())
    if not _holds_more(above):
        folders = dict.fromkeys(folders, above)
    found = {}
    for split, folder in folders.items():
        name = re.sub(r"[^A-Za-z0-9_.-]", "-", os.path.basename(folder))[:50] or split
        if _holds_more(folder):
            if not _is_file(local[split]):
                raise ConfigError(
                    f"data.{split}.path {local[split]!r} is the folder that you are in, or one above it, which may "
                    "hold more than data; move the data into a folder of its own, or start raytrain outside of it"
                )
            name = split
        found[split] = (f"data-{name}" if name in taken else name, os.path.relpath(folder))
    return found


def _folder(path: str) -> str:
    return os.path.dirname(path) if _is_file(path) else path


def _is_file(path: str) -> bool:
    """Whether data is a file, as far as can be told: it may not be on this machine."""
    return Path(path).is_file() or (PurePosixPath(path).suffix in FILES and not Path(path).is_dir())


def _holds_more(folder: str) -> bool:
    """Whether it is the current folder, or one above it: a job's code lies there too, and who knows what."""
    return Path.cwd().is_relative_to(Path(folder).resolve())


def _copied(path: str, folder: str, uri: str) -> str:
    """The command that brings data from a folder to S3: all of it, or a file that is not alone there."""
    if _holds_more(os.path.abspath(folder)):
        return f"aws s3 cp {os.path.relpath(path)} {uri}/"
    return f"aws s3 sync {folder} {uri}"


def _time_limit(asked: dict[str, Any], planned: Prediction) -> list[str]:
    least = math.ceil(planned.hours * 3600 * SLACK)
    if least <= asked.get("max_run_s", SageMaker.model_fields["max_run_s"].default):
        return []
    asked["max_run_s"] = least
    return [f"sagemaker.max_run_s is {least}, {SLACK:g} times the predicted {planned.hours:.3g} hours: check it"]


def _own_code(job: Job) -> list[str]:
    """Modules of the user's own that the job imports, and data that only they know of."""
    own = sorted(filter(is_own_module, job.imports))
    where = "beside the job file or in its source folder, or come with its requirements"
    left = [f"{', '.join(own)} must lie {where}"] if own else []
    sources = (job.data.train, job.data.validation) if job.data else ()
    for kind in dict.fromkeys(s.kind for s in sources if isinstance(s, OwnSource) and "path" not in s.options):
        left.append(f"{kind} finds its data by itself: see that it does on the job's hosts")
    return left


def _source_folder(asked: dict[str, Any]) -> list[str]:
    folder = Path(asked.get("source_dir") or SageMaker.model_fields["source_dir"].default)
    usual = SageMaker.model_fields["program"].default
    if folder.is_dir() or tuple(asked.get("program") or usual) != usual:
        return []
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(PROGRAM, encoding="utf-8")
    return [f"the source folder {folder} was made, with a train.py that trains the job: add code of your own to it"]
