"""The composition root: job + cluster + data + train -> a run and its record."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from raytrain.cluster import local
from raytrain.cluster.environment import (
    DELETED_BY_RAY,
    JobFolders,
    job_folders,
    may_be_deleted,
    prepare_environment,
    public_ray,
)
from raytrain.cluster.placement import check_reserve, rank_resources, rank_selector
from raytrain.cluster.signals import Signals, signals
from raytrain.config.cluster import parse_nodes
from raytrain.config.job import Job
from raytrain.config.own_code import own_code
from raytrain.data.pipeline import Pipeline
from raytrain.errors import (
    CheckpointError,
    ClusterError,
    ConfigError,
    LossError,
    RaytrainError,
    Stopped,
    TrainingError,
    named,
    one_line,
)
from raytrain.record.schema import RunRecord
from raytrain.run.actors import start_feed, start_keeper
from raytrain.run.checks import check_sendable, checked, with_weights
from raytrain.run.course import Course, Seen, Watch
from raytrain.run.folder import RunFolder
from raytrain.run.hanging import HangWatch
from raytrain.run.hosted import deliver
from raytrain.run.load import Samplers, machines
from raytrain.run.outcome import build_record
from raytrain.run.plan import DataPlan, RunOptions, RunPlan
from raytrain.run.rank import RankWork, run_rank
from raytrain.train.rank_hosts import RankHosts
from raytrain.train.trainer import Ranks, Training, import_ahead

Loop = Callable[[Any], None]
STOPS = ("stopped before training began", "stopped at once, without waiting for a checkpoint")


def run(
    train_loop: Loop | None,
    pipeline: Pipeline | None,
    job: Job,
    *,
    nodes: str | None = None,
    address: str | None = None,
    resume: bool = False,
    watch: Watch = lambda told: None,
    started_at: float | None = None,
    resume_word: str = "resume=True",
) -> RunRecord:
    """Run a job to its end and write its record.

    Args:
        train_loop: called on every rank with a TrainContext; None for the job's own, or supervised image
            classification.
        pipeline: None for the one that the job's `data` section describes.
        job: what to train and how.
        nodes: emulate a cluster on this machine, such as `gpu=1x2,cpu=2x1`.
        address: attach to a running Ray cluster; by default to the one this process was started on, if any.
        resume: go on from the run's last checkpoint.
        watch: called with what is being done, and a few times a second with how the run stands.
        started_at: time.time() from which start-up is counted.
        resume_word: what the user says to go on; the command line has an option for it.

    Raises:
        RaytrainError: what went wrong, or Stopped after Ctrl-C or SIGTERM.
    """
    times = {"environment": prepare_environment(), "started_at": started_at or time.time()}
    pipeline = checked(train_loop, pipeline, job)
    job = with_weights(job, resume)
    if nodes and address:
        raise ConfigError("--nodes starts a cluster and --address attaches to one; give one of them")
    groups = parse_nodes(nodes) if nodes else ()
    check_reserve(groups, job.cluster.reserved_cpus)
    options = RunOptions.of(job, job_folders(), resume, resume_word, **times)
    if may_be_deleted(options.folder.path):
        watch(DELETED_BY_RAY.format(path=options.folder.path))
    cluster: local.RunningCluster | None = None
    try:
        with signals(*STOPS) as heard:
            jobs_own = train_loop is None or getattr(train_loop, "is_the_jobs", False)
            data = DataPlan.of(options, pipeline, watch, default_loop=jobs_own)
            if data.is_finished and (before := options.folder.finished_record()) is not None:
                _leave(options.folder, options.kept, None)
                return before
            cluster = local.connect(groups, address, import_ahead)
            heard.listen()  # again, should Ray have put a handler of its own in place
            heard.check()
            check_sendable(train_loop)
            plan = RunPlan.of(options, pipeline, train_loop, data, cluster)
            samplers = Samplers(machines(plan.topology, cluster.attached))
            hangs = HangWatch(job.training.hang_timeout_s, options.folder.path)
            hosts = RankHosts.of(plan.topology, watch)
            course = Course(options.folder.checkpoints, samplers, watch, hangs, hosts)
            error = _carry_out(plan, course, watch, heard)
        return _end(plan, course, error)
    except Exception as error:
        if not _is_of_ray(error):
            raise
        raise _lost(error) from None
    finally:
        if cluster is not None:
            cluster.close()
        options.folder.close()


def _is_of_ray(error: Exception) -> bool:
    return type(error).__module__.startswith("ray.")


def _lost(error: Exception) -> ClusterError:
    return ClusterError(f"the Ray cluster failed: {named(error)}")


def _carry_out(plan: RunPlan, course: Course, watch: Watch, heard: Signals) -> RaytrainError | None:
    """Train. Returns what went wrong."""
    watch(f"{plan}; starting the training processes")
    try:
        if plan.data.is_finished:  # and was killed before its record was written
            course.begin()
        else:
            _train(plan, course, watch, heard)
    except RaytrainError as error:
        return error
    except Exception as error:
        if not _is_of_ray(error):
            raise
        return _lost(error)
    return None


def _train(plan: RunPlan, course: Course, watch: Watch, heard: Signals) -> None:
    import ray

    options, data = plan.options, plan.data
    if not options.resume:
        options.folder.set_aside_earlier_run()
        if options.folder.set_aside is not None:
            watch(f"an earlier run of this name was set aside as {options.folder.set_aside}")
    feed = start_feed(plan)
    feed.begin.remote("", data.position, plan.topology.world_size, data.steps)
    training = _training(plan, feed)
    heard.begun.set()
    course.begin()
    training.start()
    try:
        if not course.wait(training, feed, heard):
            raise _stopped(plan, course, heard)
    except BaseException:
        training.abandon()
        raise
    status = ray.get(feed.status.remote())
    course.note(status)
    if status.fatal is not None:
        fatal = status.fatal
        raise fatal.located(data.opened.train.describe) if isinstance(fatal, LossError) else fatal
    failure = training.failure
    if failure is not None:
        if course.hung is not None:
            raise TrainingError(course.hung)
        raise failure if isinstance(failure, RaytrainError) else TrainingError(named(failure))
    if heard.number is not None:
        raise _stopped(plan, course, heard)


def _stopped(plan: RunPlan, course: Course, heard: Signals) -> Stopped:
    return Stopped(plan.options.stopped_message(course.checkpoints.last), heard.number)


def _training(plan: RunPlan, feed: Any) -> Training:
    job, topology, train = plan.job, plan.topology, plan.data.opened.train
    attempt = time.strftime("%Y%m%d-%H%M%S")
    host_cpus = max(h.cpus for h in topology.hosts if h.group == topology.training_group)
    work = RankWork(
        code=own_code(job.imports),
        job=job,
        loop=plan.loop,
        feed=feed,
        keeper=start_keeper(plan, attempt),
        schema=plan.data.opened.schema,
        stages=plan.data.opened.on_device,
        fields=plan.pipeline.fields,
        normalize=plan.pipeline.normalize,
        fingerprint=train.fingerprint,
        num_train=train.num_samples,
        task=plan.data.task,
        resume_from=plan.data.resumed_from,
        threads=job.training.threads or max(int(host_cpus), 1),
        use_gpu=topology.has_real_gpus,
        public_ray=public_ray(),
    )
    ranks = Ranks(
        topology.world_size,
        use_gpu=topology.has_real_gpus,
        resources=rank_resources(topology),
        label_selector=rank_selector(topology),
    )
    where, failures = plan.options.folder.checkpoints, job.training.max_failures
    return Training(run_rank, work, ranks, storage=where, attempt=attempt, failures=failures)


def _end(plan: RunPlan, course: Course, error: RaytrainError | None) -> RunRecord:
    """Write the record of a run that got as far as training, however it ended, and leave what is to be kept: a finished
    run's model, for SageMaker whatever there is.

    Raises:
        RaytrainError: `error`, or CheckpointError if nothing else was wrong.
    """
    if course.began_at is not None:
        folder, kept = plan.options.folder, plan.options.kept
        try:
            seen = course.close()
            folder.keep_earlier_record()
            record = _write_record(plan, seen, error)
        except (OSError, RaytrainError) as problem:
            error = _or_tell(error, f"the run's record could not be written: {one_line(problem, 300)}")
            raise error from None
        if kept is not None or error is None:
            try:
                _leave(folder, kept, error)
            except CheckpointError as problem:
                error = problem
                _write_record(plan, seen, error)
    if error is not None:
        raise error
    return record


def _write_record(plan: RunPlan, seen: Seen, error: RaytrainError | None) -> RunRecord:
    record = build_record(plan, seen, error, command=list(sys.argv))
    record.write(plan.options.folder.record)
    return record


def _leave(folder: RunFolder, kept: JobFolders | None, error: RaytrainError | None) -> None:
    """The models, into the run's folder or with the record for SageMaker to collect; a failure never hides what ended
    the run.

    Raises:
        CheckpointError: they could not be left, and nothing else was wrong.
    """
    try:
        deliver(folder, kept)
    except (OSError, RuntimeError, RaytrainError) as problem:  # torch.save raises RuntimeError on a full disk
        what = "model could not be written" if kept is None else "record and model could not be left for SageMaker"
        told = _or_tell(error, f"the run's {what}: {one_line(problem, 300)}")
        if told is not error:
            raise told from None


def _or_tell(error: RaytrainError | None, text: str) -> RaytrainError:
    """What ended the run: `error`, after a line about what went wrong at its end too; or that."""
    if error is None:
        return CheckpointError(text)
    print(f"raytrain: {text}", file=sys.stderr)  # noqa: T201 - the run's own error follows
    return error
