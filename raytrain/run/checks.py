"""Whether a loop, a pipeline and a job make a run together."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from raytrain.cluster.placement import check_free_gpus
from raytrain.cluster.topology import Topology
from raytrain.config.job import Job
from raytrain.config.own_code import import_object
from raytrain.data.pipeline import OpenPipeline, Pipeline
from raytrain.errors import ConfigError
from raytrain.train.models import check_classes, check_model


def checked(train_loop: Callable[[Any], None] | None, pipeline: Pipeline | None, job: Job | None) -> Pipeline:
    """The pipeline, if they do.

    Raises:
        ConfigError: one is missing, or is something else.
    """
    if job is None:
        raise ConfigError("no job was given; fit(train_loop, pipeline, Job.from_yaml('job.yaml')) has one")
    if not isinstance(job, Job):
        raise ConfigError(
            f"the job must be a Job, which Job.from_yaml('job.yaml') or Job.from_dict({{...}}) makes, not "
            f"{type(job).__name__}"
        )
    if pipeline is None and job.data is None:
        raise ConfigError("the job has no `data` section, and no pipeline was given")
    if not isinstance(pipeline, Pipeline | None):
        raise ConfigError(f"the pipeline must be a Pipeline(source, stages), not {type(pipeline).__name__}")
    if train_loop is not None:
        check_loop(train_loop, "the training loop")
    elif job.training.loop is not None:
        found = import_object(job.training.loop, "training.loop")
        check_loop(found, f"training.loop: {job.training.loop!r}")
    elif job.model is None:
        raise ConfigError("the job has no `model` section, and no training loop was given")
    else:
        check_model(job.model)
    return pipeline or Pipeline.from_config(job.data)


def check_loop(loop: Any, what: str) -> None:
    """
    Raises:
        ConfigError: it cannot be called with a TrainContext.
    """
    wanted = f"{what} must be a function of one argument, the context"
    if not callable(loop):
        raise ConfigError(f"{wanted}, not {type(loop).__name__}")
    try:
        signature = inspect.signature(loop)
    except (TypeError, ValueError):  # a builtin without a signature
        return
    try:
        signature.bind(None)
    except TypeError:
        raise ConfigError(f"{wanted}; it takes {signature}") from None


def check_data(opened: OpenPipeline, batch_size: int, default_loop: bool, job: Job) -> None:
    """Compare the data with what is to be trained on it.

    Raises:
        ConfigError: a batch is larger than the data set, or the model knows too few classes.
    """
    total = opened.train.num_samples
    if batch_size > total:
        raise ConfigError(f"data.batch_size={batch_size} is larger than the training set of {total} samples")
    if default_loop and job.training.loop is None:
        num_validation = opened.validation.num_classes if opened.validation else 0
        check_classes(job.model, opened.train.num_classes, num_validation)


def check_placed(job: Job, batch_size: int, num_train: int, topology: Topology, attached: bool) -> None:
    """Compare the cluster with what is to run on it.

    Raises:
        ConfigError: a step of all ranks is larger than the training set, or a setting needs GPUs.
        ClusterError: others have the GPUs of a cluster that was attached to.
    """
    world_size = topology.world_size
    if batch_size * world_size > num_train:
        raise ConfigError(
            f"a step of {world_size} ranks x data.batch_size={batch_size} is larger than the training set of "
            f"{num_train} samples"
        )
    if attached:
        import ray

        check_free_gpus(topology, ray.available_resources().get(topology.gpu_resource, 0))
    if job.training.sync_batchnorm and world_size > 1 and not topology.has_real_gpus:
        raise ConfigError("training.sync_batchnorm needs GPUs: torch has none for the ranks of a CPU")
