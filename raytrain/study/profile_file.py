"""From a file to a profile that a plan can be made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain.config.data import ParquetSource, SyntheticSource
from raytrain.config.job import Job
from raytrain.cost.instances import Catalog
from raytrain.cost.profile import Figure, Profile, parse_profile, profile_of_record
from raytrain.cost.typical import needs_estimate, with_typical
from raytrain.errors import ConfigError, nearest
from raytrain.record.schema import RunRecord, parse_record
from raytrain.study.flops import training_work

USUAL_BATCH = 64  # of a job that does not say
RESIZE = ("resize", "center_crop", "random_resized_crop", "to_uint8")  # to their `size`; other stages mean else by it
TORCHVISION_RESIZES = ("Resize", "CenterCrop", "RandomCrop", "RandomResizedCrop")


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


def with_estimates(profile: Profile, known: Catalog) -> Profile:
    """The profile as it is if a GPU was measured or given, else with estimates from the job's model.

    Raises:
        ConfigError: what the model computes for a sample cannot be told.
    """
    if not needs_estimate(profile):
        return profile
    try:
        job = Job.from_dict(profile.job, where=f"the job of {profile.name}")
        if job.model is None:
            raise ConfigError("its job names no model")
        height, width, channels = _image_shape(job)
        work = training_work(job.model, height, width, channels)
        if not work.flops:
            raise ConfigError(f"torch counts no operations of model {job.model.name!r}")
    except ConfigError as error:
        raise ConfigError(
            f"{profile.name} was measured without a GPU, and device seconds cannot be estimated: {error}; give those "
            "of one GPU for a sample, such as --accelerator A10G=0.0008"
        ) from None
    return with_typical(
        profile,
        known,
        flops=work.flops,
        convolution_flops=work.convolution_flops,
        calls_per_sample=work.calls / (job.data.batch_size if job.data else USUAL_BATCH),
        precision=job.training.precision,
        model=f"{job.model.name} on {height}x{width} images",
    )


def _image_shape(job: Job) -> tuple[int, int, int]:
    """Height, width and channels that the model gets: of the last stage that resizes, else as they are made, else as
    the model is told.

    Raises:
        ConfigError: none of them says it.
    """
    source = job.data and job.data.train
    made = source.shape if isinstance(source, ParquetSource | SyntheticSource) else None
    channels = made[2] if made and len(made) == 3 else 3
    for spec in reversed(job.data.stages if job.data else ()):
        size = _resized_to(spec)
        if size is not None:
            return *size, channels
    if made and len(made) == 3:
        return made
    size = job.model.options.get("img_size")
    if isinstance(size, int):
        return size, size, channels
    raise ConfigError(
        "the size of its images is not in its job: no stage resizes to a `size`, the model has no img_size"
    )


def _resized_to(spec: Any) -> tuple[int, int] | None:
    """Height and width that a stage of raytrain's or of torchvision's resizes to; None for any other stage.

    One number is a square: torchvision's Resize takes it for the shorter side, but images of a batch have one shape.

    Raises:
        ConfigError: its size is no size.
    """
    name, options = next(iter(spec.items())) if isinstance(spec, dict) else (spec, None)
    options = options if isinstance(options, dict) else {}
    if name not in RESIZE and not (name == "torchvision" and options.get("transform") in TORCHVISION_RESIZES):
        return None
    size = options.get("size")
    if size is None:
        return None
    numbers = list(size) if isinstance(size, list | tuple) else [size]
    if len(numbers) not in (1, 2) or not all(type(each) is int and each > 0 for each in numbers):
        raise ConfigError(f"stage {name!r}: size must be one or two positive whole numbers (given: {size!r})")
    return numbers[0], numbers[-1]
