"""Whether a loop, a pipeline and a job make a run together."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raytrain.cluster.placement import check_free_gpus
from raytrain.cluster.topology import GROUP_LABEL, HOST_LABEL, Topology
from raytrain.config.data import check_shared
from raytrain.config.job import Job
from raytrain.config.own_code import import_object, torch_by_name
from raytrain.config.training import OF_CLASSES, OF_ELEMENTS, OF_ONE, Training
from raytrain.config.training import Task as Asked
from raytrain.data.pipeline import OpenPipeline, Pipeline
from raytrain.data.samples.fields import DTYPES, Field, Schema, np_dtype
from raytrain.data.sources.lengths import MOST_READ
from raytrain.data.sources.manifest import Manifest
from raytrain.data.stock import hosts_that_prepare
from raytrain.errors import ConfigError, DataError, named
from raytrain.train.models import CLASSES, check_classes, check_model
from raytrain.train.tasks import Task


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
        check_learning(job.training)
        if job.training.early_stopping and job.data is not None and job.data.validation is None:
            raise ConfigError("training.early_stopping: there is no validation data to look at; give data.validation")
    return pipeline or Pipeline.from_config(job.data)


def with_weights(job: Job, resume: bool) -> Job:
    """With the whole path of `model.weights`: ranks read it in folders of their own, and not at all when they go on.

    Raises:
        ConfigError: there is no such file here.
    """
    model = job.model
    if model is None or model.weights is None or "://" in model.weights.path:
        return job
    path = Path(model.weights.path).absolute()
    if not path.is_file() and not resume:
        raise ConfigError(f"model.weights: there is no file {path}")
    weights = model.weights.model_copy(update={"path": str(path)})
    return job.model_copy(update={"model": model.model_copy(update={"weights": weights})})


def check_learning(training: Training) -> None:
    """Of the job's own loop. torch, which takes seconds to import, is asked about what is not the default alone.

    Raises:
        ConfigError: a loss, metric, optimizer or schedule that there is not, or options that are another one's.
    """
    schedule = training.schedule
    own = schedule.name in ("constant", "cosine")
    if own and schedule.options:
        raise ConfigError(f"training.schedule.options: {schedule.name} has none, but `warmup_share` and `final_share`")
    if not own and (schedule.warmup_share or schedule.final_share):
        raise ConfigError(f"training.schedule: {schedule.name} has no `warmup_share` and `final_share`; give `options`")
    if training.task.ignore is not None and training.task.kind not in OF_ELEMENTS:
        raise ConfigError(f"training.task.ignore: {training.task.kind} has no elements to leave out; leave samples out")
    if training.loss is not None or (training.label_smoothing and training.task.kind not in OF_CLASSES):
        from raytrain.train.learning.objectives import check_loss

        check_loss(training)
    if training.metrics:
        from raytrain.train.learning.metrics import check_metrics

        check_metrics(training)
    if training.optimizer.name not in ("sgd", "adamw") or training.schedule.name not in ("constant", "cosine"):
        from raytrain.train.learning.optimizers import check_optimizer, check_schedule

        check_optimizer(training.optimizer)
        check_schedule(training.schedule)


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


def check_sendable(loop: Callable[[Any], None] | None) -> None:
    """By Ray's own pickle, which alone knows of what is Ray's, such as an actor that the loop calls.

    Raises:
        ConfigError: it cannot travel to the ranks.
    """
    import ray

    torch_by_name()
    pickled: Any = ray.cloudpickle
    try:
        pickled.dumps(loop)
    except Exception as error:  # noqa: BLE001 - a user's object may raise anything
        raise ConfigError(
            f"the training loop cannot be sent to the ranks: {named(error)}; let it make within itself what it takes "
            "from around it, or import it"
        ) from None


def check_size(pipeline: Pipeline, num_train: int) -> None:
    """
    Raises:
        ConfigError: a batch is larger than the data set.
    """
    if pipeline.size > num_train:
        raise ConfigError(
            f"data.{pipeline.size_key}={pipeline.size} is larger than the training set of {num_train} samples"
        )


def check_data(opened: OpenPipeline, default_loop: bool, job: Job) -> Task:
    """Compare the data with what is to be trained on it, and say what that is.

    Raises:
        ConfigError: the loop cannot learn from its fields, or the model knows too few classes.
    """
    own_loop = default_loop and job.training.loop is None
    asked = job.training.task
    if own_loop:
        check_fields(opened.schema, asked)
    classifies = own_loop and asked.kind in OF_ONE
    own = opened.train.schema.get(asked.target, Field())
    said = classifies and job.model is not None and CLASSES in job.model.options

    def number(manifest: Manifest) -> int | None:
        read = classifies and (not said or manifest.num_samples <= MOST_READ)
        return num_classes(manifest, asked.target, read=read)

    known = number(opened.train) if classifies or not own_loop else outputs_of(asked, opened.schema)
    task = Task(asked.input, asked.target, own.classes, known)
    if classifies:
        other = 0 if opened.validation is None else number(opened.validation) or 0
        check_classes(job.model, task.num_classes or 0, other)
        mixed = opened.schema.get(asked.target, Field()).shape
        if mixed and task.num_classes and mixed[0] != task.num_classes:
            raise ConfigError(
                f"data.stages: a stage mixes labels of {mixed[0]} classes, and field `{asked.target}` has "
                f"{task.num_classes}; say so with its num_classes"
            )
    return task


NUMBERS = ("int", "uint", "bool", "float", "bfloat")
AXES = {"multi_label": 1, "segmentation": 2, "token_classification": 1}  # of a target


def check_fields(schema: Schema, task: Asked) -> None:
    """
    Raises:
        ConfigError: the fields are not there, or none that the task can be learnt from.
    """
    schema.check_has((task.input, task.target), "training.task")
    what, target = schema.get(task.input, Field()), schema.get(task.target, Field())
    for name, each in ((task.input, what), (task.target, target)):
        if each.is_encoded:
            raise ConfigError(
                f"data.stages: field `{name}` arrives as encoded bytes, and no stage decodes them; add `decode`"
            )
    if not what.may_be_array:
        raise ConfigError(f"training.task: a model takes numbers, and field `{task.input}` is {what}")
    if not target.dtype or (task.kind == "classification" and _is_mixed(target)):
        return
    if task.kind in ("multi_label", "regression"):
        fits, wanted = target.dtype.startswith(NUMBERS), "numbers"
    else:
        fits, wanted = target.dtype.startswith(("int", "uint", "bool")), "whole numbers"
    if task.kind in OF_ONE:
        fits, wanted = fits and target.shape == (), "a whole number a sample"
    elif task.kind in AXES and target.shape is not None:
        axes = AXES[task.kind]
        fits, wanted = fits and len(target.shape) == axes, f"{wanted} along {axes} {'axis' if axes == 1 else 'axes'}"
    if not fits:
        raise ConfigError(
            f"training.task: {task.kind} wants {wanted}, and field `{task.target}` is {target}; name another with "
            "training.task.target, another training.task.kind, or bring a training.loop"
        )


def _is_mixed(label: Field) -> bool:
    """As stages that mix make it."""
    return label.dtype == "float32" and len(label.shape or ()) == 1


def outputs_of(task: Asked, schema: Schema) -> int | None:
    """Of a model that can be told how many; None where the data do not say."""
    target = schema.get(task.target, Field())
    if task.kind in ("regression", "multi_label"):
        return 1 if target.shape == () else target.shape[0] if target.shape and len(target.shape) == 1 else None
    return len(target.classes) or None


def num_classes(manifest: Manifest, target: str, *, read: bool) -> int | None:
    """By the names of the classes, else by the highest label; None where neither is known.

    Args:
        read: where it must be known, samples are read for it.

    Raises:
        DataError: there are too many samples to be read for it, or a label that is none.
    """
    names = manifest.schema.get(target, Field()).classes
    if names:
        return len(names)
    values = manifest.values(target)
    if values is None and read:
        values = _read_labels(manifest, target)
    if values is None or values.dtype.kind not in "iu" or not len(values):
        return None
    return int(values.max()) + 1


def _read_labels(manifest: Manifest, target: str) -> np.ndarray | None:
    """None where they are not in the source: a stage makes them."""
    if manifest.schema.whole and target not in manifest.schema:
        return None
    total = manifest.num_samples
    if total > MOST_READ:
        raise DataError(
            f"nobody says which classes the {total:,} samples have: give the source `classes` or `labels` (an "
            "attribute of that name), or the model model.options.num_classes; no more than "
            f"{MOST_READ:,} samples are read for it"
        )
    found = [0]
    for index in range(total):
        sample = manifest.read_many([index])[0]
        if isinstance(sample, Exception):
            continue
        if target not in sample:
            return None
        label = sample[target]
        if np.ndim(label) or np.asarray(label).dtype.kind not in "iub" or label < 0:
            raise DataError(
                f"the label of {manifest.describe(index)} must be a whole number from 0 (given: {str(label)[:60]})"
            )
        found.append(int(label))
    return np.array(found, dtype=np.int64)


def check_store(
    opened: OpenPipeline, batch_size: int, nodes: Sequence[Mapping[str, Any]], groups: Sequence[str]
) -> None:
    """Compare a batch, as far as its size is known, with the object stores of the hosts that prepare.

    Args:
        nodes: as `ray.nodes()` has them.
        groups: whose hosts they are; without, those of every group.

    Raises:
        ConfigError: not even one batch a CPU fits into a host's.
    """
    if opened.on_device["train"].stages:  # what travels is something else
        return
    known = {
        name: math.prod(each.shape) * np_dtype(each.dtype).itemsize
        for name, each in opened.schema.items()
        if each.dtype in DTYPES and each.shape is not None and None not in each.shape
    }
    sample_bytes = sum(known.values())
    batch_bytes = batch_size * sample_bytes
    for node in hosts_that_prepare(nodes, groups):
        labels, has = node.get("Labels") or {}, node.get("Resources", {})
        cpus, store_bytes = int(has.get("CPU", 0)), has.get("object_store_memory")
        if store_bytes is None or cpus * batch_bytes <= store_bytes:
            continue
        largest = max(known, key=known.__getitem__)
        name = labels.get(HOST_LABEL) or labels.get(GROUP_LABEL) or node.get("NodeManagerAddress", "a host")
        fits = int(store_bytes / cpus / sample_bytes)
        batch, all_, store = (each / 2**20 for each in (batch_bytes, cpus * batch_bytes, store_bytes))
        raise ConfigError(
            f"a batch of {batch_size:,} samples x {sample_bytes:,} bytes (`{largest}` is {opened.schema[largest]}) is "
            f"{batch:,.0f} MiB, and one on each of the {cpus} CPUs of {name} {all_:,.0f} MiB, whose object store has "
            f"{store:,.0f} MiB; make data.batch_size (or a rank's share of data.global_batch_size) {fits:,}, end the "
            "stages with a smaller type (uint8, float16), or give Ray's nodes a larger store"
        )


def check_placed(job: Job, pipeline: Pipeline, num_train: int, topology: Topology, attached: bool) -> None:
    """Compare the cluster with what is to run on it.

    Raises:
        ConfigError: a step of all ranks is larger than the training set or cannot be shared, or a setting needs GPUs.
        ClusterError: others have the GPUs of a cluster that was attached to.
    """
    world_size, size = topology.world_size, pipeline.size
    if pipeline.is_global:
        check_shared(size, world_size)
    elif size * world_size > num_train:
        raise ConfigError(
            f"a step of {world_size} ranks x data.batch_size={size} is larger than the training set of "
            f"{num_train} samples"
        )
    if attached:
        import ray

        check_free_gpus(topology, ray.available_resources().get(topology.gpu_resource, 0))
    if job.training.sync_batchnorm and world_size > 1 and not topology.has_real_gpus:
        raise ConfigError("training.sync_batchnorm needs GPUs: torch has none for the ranks of a CPU")
