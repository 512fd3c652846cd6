"""From a file to a profile that a plan can be made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from raytrain.config.data import ParquetSource, SyntheticSource
from raytrain.config.job import Job
from raytrain.cost.instances import Catalog
from raytrain.cost.profile import Figure, Profile, parse_profile, profile_of_record
from raytrain.cost.typical import needs_estimate, with_typical
from raytrain.data.samples.fields import IMAGE
from raytrain.errors import ConfigError, nearest
from raytrain.record.plain_json import from_json
from raytrain.record.schema import RunRecord, parse_record
from raytrain.study.flops import training_work

USUAL_BATCH = 64  # of a job that does not say
TO_THE_SHORTER_SIDE = ("resize", "Resize")  # where their size is one number
RESIZES = (  # to their `size`; other stages mean else by it
    *TO_THE_SHORTER_SIDE,
    *("center_crop", "random_crop", "random_resized_crop"),
    *("CenterCrop", "RandomCrop", "RandomResizedCrop"),
)


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
        tree = from_json(text)
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
        calls_per_sample=work.calls / (job.data.step_samples(1) if job.data else USUAL_BATCH),
        precision=job.training.precision,
        model=f"{job.model.name} on {height}x{width} images",
    )


def _image_shape(job: Job) -> tuple[int, int, int]:
    """Height, width and channels of what the model gets: as the stages leave it, else as it is made, else as the model
    is told.

    Raises:
        ConfigError: none of them says it.
    """
    name = job.training.task.input
    made = _made(job.data.train, name) if job.data else None
    canvas, channels = (made[:2], made[2]) if made else (None, 3)
    for spec in job.data.stages if job.data else ():
        stage, given = next(iter(spec.items())) if isinstance(spec, dict) else (spec, None)
        options: dict[str, Any] = given if isinstance(given, dict) else {}
        on = options.get("on", name)
        if name not in ([on] if isinstance(on, str) else on):
            continue
        canvas = _resized(stage, options, canvas)
        if stage == "grayscale":
            channels = options.get("num_output_channels", 1)
    if canvas is not None:
        return *canvas, channels
    size = job.model.options.get("img_size") if job.model else None
    if isinstance(size, int):
        return size, size, channels
    raise ConfigError(
        "the size of its images is not in its job: no stage resizes to a `size`, the model has no img_size"
    )


def _made(source: Any, name: str) -> tuple[int, int, int] | None:
    """Height, width and channels of a field as the source has it, where the job says so."""
    shape: Any = source.shapes.get(name) if isinstance(source, ParquetSource) else None
    if isinstance(source, SyntheticSource):
        fields = source.fields
        if fields is None:
            shape = source.shape if name == IMAGE else None
        else:
            shape = fields[name].shape if name in fields else None
    return shape if shape and len(shape) == 3 and None not in shape else None


def _resized(stage: str, options: dict[str, Any], canvas: tuple[int, int] | None) -> tuple[int, int] | None:
    """Height and width behind a stage; None where nobody knows.

    Where one number is the shorter side, and nobody knows what it is made of, it is taken for a square.

    Raises:
        ConfigError: its size is no size.
    """
    name = options.get("transform") if stage == "torchvision" else stage
    size = options.get("size")
    if name not in RESIZES or size is None:
        return canvas
    numbers = list(size) if isinstance(size, list | tuple) else [size]
    if len(numbers) not in (1, 2) or not all(type(each) is int and each > 0 for each in numbers):
        raise ConfigError(f"stage {stage!r}: size must be one or two positive whole numbers (given: {size!r})")
    if len(numbers) == 1 and canvas is not None and name in TO_THE_SHORTER_SIDE:
        from raytrain.data.stages.geometry import resized_canvas  # not OpenCV for every plan

        return resized_canvas(canvas, numbers[0], options.get("max_size"))
    return numbers[0], numbers[-1]
