"""Predict with a model on all samples of a source: from a job to files of predictions and a record."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from raytrain.cluster import local
from raytrain.cluster.environment import prepare_environment, public_ray
from raytrain.cluster.placement import check_free_gpus
from raytrain.cluster.signals import Signals, signals
from raytrain.cluster.topology import Topology
from raytrain.config.cluster import parse_nodes
from raytrain.config.inference import Inference, PredictionJob
from raytrain.config.own_code import own_code
from raytrain.errors import ClusterError, ConfigError, RaytrainError, named
from raytrain.infer.backends.find import find_model
from raytrain.infer.contract import BackendOptions, ModelFile, Wanted
from raytrain.infer.dispatch import Dispatch, got, task_of
from raytrain.infer.of_run import completed
from raytrain.infer.outcome import LISTED, build_record
from raytrain.infer.output.folder import About, Counts, OutputFolder
from raytrain.infer.plan import Ask, Examples, InferencePlan, find_examples
from raytrain.infer.progress import GO_ON, Progress
from raytrain.infer.stream import StreamWork, example_inputs
from raytrain.infer.streams.gpu_hosts import asked, gpu_bytes, here, real_gpu_hosts, with_mps
from raytrain.infer.streams.places import OnHost, Places, place, survey, surveys_of
from raytrain.record import holding
from raytrain.record.holding import check_is_here, take
from raytrain.record.inference import InferenceRecord, read_inference_record

Watch = Callable[["str | Progress"], None]
"""Called with what is being done, and a few times a second with how far it is."""

STOPS = ("stopped before it began", f"stopped at once; {GO_ON}")


def predict(
    job: PredictionJob,
    *,
    nodes: str | None = None,
    address: str | None = None,
    watch: Watch | None = None,
    started_at: float | None = None,
) -> InferenceRecord:
    """Predict all that is not predicted yet, and write the record.

    Args:
        job: which model, on what, and how.
        nodes: emulate a cluster on this machine, such as `gpu=1x2x1,cpu=2x1`.
        address: attach to a running Ray cluster; by default to the one this process was started on, if any.
        watch: called with what is being done, and a few times a second with how far it is.
        started_at: time.time() from which the run's seconds are counted.

    Raises:
        RaytrainError: what went wrong, or Stopped after Ctrl-C or SIGTERM; what was finished is kept.
    """
    environment, started_at = prepare_environment(), started_at or time.time()
    watch = watch or _nobody
    if nodes and address:
        raise ConfigError("--nodes starts a cluster and --address attaches to one; give one of them")
    groups = parse_nodes(nodes) if nodes else ()
    with _held(folder_of(job)) as folder, signals(*STOPS) as heard:
        job = completed(job)
        watch("finding the model, listing the data")
        file = find_model(job.model)
        _check_takes(job, file)
        plan = InferencePlan.of(job, file, watch)
        output = OutputFolder(job.output.path or str(folder / "predictions"))
        with output.held() if job.output.path else contextlib.nullcontext():  # else it lies in the run's folder
            about = About(job.name, plan.made_by, plan.num_samples, len(plan.shards))
            done = output.begin(about, plan.shards)
            if len(done) == len(plan.shards) and (before := _finished(folder, output)) is not None:
                rows, errors = f"{before.rows:,} rows", f"{before.errors:,} errors"
                watch(f"{output.path} is finished: {rows}, {errors}; nothing is left to do")
                return before
            with output.left_as_found(), _cluster(groups, address, heard) as cluster:
                record, error = _predicted(plan, cluster, output, done, watch, heard, (started_at, environment))
                if error is None:
                    output.finish(replace(about, finished=True, rows=record.rows, errors=record.errors))
    record.write(folder / "record.json")
    if error is not None:
        raise error
    return record


def _predicted(
    plan: InferencePlan,
    cluster: local.RunningCluster,
    output: OutputFolder,
    done: dict[int, Counts],
    watch: Watch,
    heard: Signals,
    began: tuple[float, dict[str, str]],
) -> tuple[InferenceRecord, RaytrainError | None]:
    """The record, and what went wrong.

    Args:
        began: when the run did, and the variables that were set for it.
    """
    places = _places(cluster, plan.job.inference, plan)
    watch(_told(plan, places, done))
    task = task_of(plan, places)
    examples = find_examples(plan.num_samples, asking(task))
    work = stream_work(plan, examples)
    check_memory(plan, places, work)
    with with_mps(places, plan.job.inference.mps) as ready:
        run = Dispatch(plan, ready, work, examples.sample_bytes, task, output, done, watch)
        error = _carried_out(run, heard)
    told = {
        "started_at": began[0],
        "environment": began[1],
        "output": output.path,
        "listed": run.listed[:LISTED],
    }
    return build_record(plan, cluster, places, run.progress, run.counts, error, told), error


def _nobody(told: str | Progress) -> None:
    """Is told nothing."""


def folder_of(job: PredictionJob) -> Path:
    """`<run_dir>/<name>`, absolute.

    Raises:
        ConfigError: it is not on this host.
    """
    check_is_here(job.run_dir)
    return holding.folder_of(job.run_dir, job.name)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[Path]:
    """Taken from any other process; one that trained here keeps its things.

    Raises:
        ConfigError: another process is using it, it is that of a training run, or cannot be made.
    """
    if (folder / "checkpoints").exists():
        raise ConfigError(f"{folder} is the folder of a run of `raytrain train`; give the prediction another name")
    lock = take(folder)
    try:
        yield folder
    finally:
        lock.close()


@contextlib.contextmanager
def _cluster(groups: Sequence[Any], address: str | None, heard: Signals) -> Iterator[local.RunningCluster]:
    """Attached to, or started and ended."""
    cluster = local.connect(groups, address, lambda: None)
    try:
        heard.listen()  # again, should Ray have put a handler of its own in place
        heard.check()
        yield cluster
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise
        raise ClusterError(f"the Ray cluster failed: {named(error)}") from None
    finally:
        cluster.close()


def _places(cluster: local.RunningCluster, inference: Inference, plan: InferencePlan) -> Places:
    """Where the streams are, once the hosts have said what they have."""
    import ray

    topology: Topology = cluster.topology

    def ask(hosts: Sequence[Any], spare: bool) -> dict[str, OnHost]:
        if not cluster.attached:
            return {host.node_id: survey(inference, spare) for host in hosts}  # on this machine
        task, options = ray.remote(survey), {"num_cpus": 0, "max_retries": 0}
        found = [task.options(**options, label_selector=here(host)).remote(inference, spare) for host in hosts]
        return dict(zip([host.node_id for host in hosts], asked(found), strict=True))

    found = place(topology, inference, plan.job.cluster, surveys_of(topology, inference, ask))
    if cluster.attached and any(each.gpus for each in found.streams):
        check_free_gpus(topology, ray.available_resources().get(topology.gpu_resource, 0))
    return found


def asking(task: tuple[Any, dict[str, Any]]) -> Ask:
    """Have a task prepare a few samples."""
    import ray

    def ask(ids: np.ndarray) -> tuple[Any, ...] | None:
        function, given = task
        told, *blocks = function.remote(ids, **given)
        found = got(told)
        return None if isinstance(found, Exception) else (found, *ray.get(blocks))

    return ask


def check_memory(plan: InferencePlan, places: Places, work: StreamWork) -> None:
    """Whether so many tasks fit a GPU, before any is started.

    Raises:
        ConfigError: they do not, with the arithmetic.
    """
    hosts = real_gpu_hosts(places)
    if not hosts:
        return
    import ray

    from raytrain.infer.backends.memory import check_fits, estimated

    task, options = ray.remote(gpu_bytes), {"num_cpus": 0, "max_retries": 0}
    known = asked([task.options(**options, label_selector=here(host)).remote(public_ray()) for host in hosts])
    totals = [each for each in known if each is not None]
    if totals:
        options = replace(work.options, device="cuda")
        estimate = estimated(plan.file, options, example_inputs(work))
        check_fits(plan.job.inference.tasks_per_gpu, estimate, min(totals), options.batch_size)


def backend_options(job: PredictionJob) -> BackendOptions:
    """What is known of them before the data."""
    inference = job.inference
    return BackendOptions(
        backend=inference.backend,
        precision=inference.precision,
        batch_size=inference.batch_size,
        embeddings=job.model.embeddings,
    )


def _check_takes(job: PredictionJob, file: ModelFile) -> None:
    """Before Ray is started."""
    from raytrain.infer.backends.convert import check_takes  # with torch

    check_takes(file, backend_options(job))


def stream_work(plan: InferencePlan, examples: Examples) -> StreamWork:
    """What every stream is sent; the model in the form that its back end takes."""
    job, opened = plan.job, plan.opened
    options = replace(backend_options(job), batch_size=max(plan.sizes.batch_sizes))
    file = plan.file
    names = () if job.model.task == "raw" else job.model.classes or file.classes
    work = StreamWork(
        code=own_code([job.model.name] if job.model.name and ":" in job.model.name else []),
        file=file,
        options=options,
        schema=opened.schema,
        on_device=opened.on_device,
        fields=opened.pipeline.fields,
        normalize=opened.pipeline.normalize,
        inputs=plan.inputs,
        wanted=Wanted(
            job.model.task,
            tuple(names),
            job.output.probabilities,
            alike=not plan.is_padded,
            all_named=not job.model.run,
        ),
        examples=examples.blocks,
        batch_sizes=plan.sizes.batch_sizes,
    )
    return _converted(work, options, file)


def _converted(work: StreamWork, options: BackendOptions, file: ModelFile) -> StreamWork:
    """Once for all streams."""
    from raytrain.infer.backends.convert import converted  # with torch

    sides_vary = any(each.ndim == 4 for each in example_inputs(work)) and len(work.batch_sizes) > 1
    return replace(work, file=converted(file, options, example_inputs(work), sides_vary=sides_vary))


def _carried_out(run: Dispatch, heard: Signals) -> RaytrainError | None:
    """Returns what went wrong."""
    heard.begun.set()
    try:
        run.run(heard)
    except RaytrainError as error:
        return error
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise
        return ClusterError(f"the Ray cluster failed: {named(error)}")
    return None


def _finished(folder: Path, output: OutputFolder) -> InferenceRecord | None:
    """The record of the run that finished here; None where it was killed before it wrote one."""
    if not output.about().finished or not (folder / "record.json").is_file():
        return None
    record = read_inference_record(folder / "record.json")
    return record if record.status == "finished" else None


def _told(plan: InferencePlan, places: Places, done: dict[int, Counts]) -> str:
    on = "GPU" if any(each.gpus for each in places.streams) else "CPU"
    before = f"; {len(done):,} of {len(plan.shards):,} shards are finished already" if done else ""
    return (
        f"{plan.num_samples:,} samples, {plan.file.source}; streams: {len(places.streams)} ({on}), CPUs that prepare: "
        f"{places.slots}{before}"
    )
