"""The composition root: job + cluster + data + train -> a run and its record."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raytrain.cluster import local
from raytrain.cluster.environment import (
    DELETED_BY_RAY,
    JobFolders,
    job_folders,
    may_be_deleted,
    prepare_environment,
    ray_address,
)
from raytrain.cluster.finding import find
from raytrain.cluster.placement import PlacedStages, check_free_gpus, place_stages, rank_resources, rank_selector
from raytrain.cluster.topology import Topology
from raytrain.config.cluster import Group, parse_nodes
from raytrain.config.job import Job
from raytrain.config.own_code import own_code
from raytrain.data.order import StreamPlan, StreamSpec
from raytrain.data.pipeline import OpenPipeline, Pipeline
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
from raytrain.record.timeline import ProgressLog
from raytrain.run.actors import start_feed, start_keeper
from raytrain.run.checks import check_data, checked
from raytrain.run.folder import RunFolder, open_run_folder
from raytrain.run.hosted import deliver, hosted
from raytrain.run.load import Samplers
from raytrain.run.outcome import build_record
from raytrain.run.rank import RankWork, position_of, run_rank
from raytrain.run.signals import signals
from raytrain.train.checkpoints import shelf
from raytrain.train.trainer import Ranks, Training, import_ahead

STOP_GRACE_S = 7.0  # after a signal, for the step in flight and the checkpoint
POLL_S = 0.25

Watch = Callable[[dict[str, Any]], None]
Loop = Callable[[Any], None]


@dataclass
class Run:
    """What is known of a run while it goes on; `outcome.build_record` turns it into the record.

    Attributes:
        marks: time.time() at which `manifest`, `cluster` and `trainer` were ready.
        status: the feed's last.
        restored: the checkpoint to go on from, looked at before anything is started.
        afresh: how to begin anew where an earlier run cannot be gone on with.
        started_again: SageMaker has started the job anew, and it goes on by itself.
        resume_word: what the user says to go on.
    """

    job: Job
    started_at: float
    environment: dict[str, str]
    folder: RunFolder
    opened: OpenPipeline | None = None
    cluster: local.RunningCluster | None = None
    placed: PlacedStages | None = None
    resumed_from: str | None = None
    marks: dict[str, float] = field(default_factory=dict)
    status: dict[str, Any] = field(default_factory=dict)
    signal_number: int | None = None
    afresh: str = ""
    started_again: bool = False
    resume_word: str = "resume=True"
    restored: Any = None
    progress: ProgressLog = field(default_factory=ProgressLog)
    samplers: Samplers = field(default_factory=Samplers)

    @property
    def topology(self) -> Topology:
        return self.cluster.topology

    @cached_property
    def last_checkpoint(self) -> Path | None:
        """The furthest whole one; asked for when the run has ended, since its digest takes time."""
        return shelf.latest(self.folder.checkpoints)


def run(
    train_loop: Loop | None,
    pipeline: Pipeline | None,
    job: Job,
    *,
    nodes: str | None = None,
    address: str | None = None,
    resume: bool = False,
    watch: Watch = lambda status: None,
    started_at: float | None = None,
    resume_word: str = "resume=True",
) -> RunRecord:
    """Run a job to its end and write its record.

    Args:
        train_loop: called on every rank with a TrainContext; None for supervised image classification.
        pipeline: None for the one that the job's `data` section describes.
        job: what to train and how.
        nodes: emulate a cluster on this machine, such as `gpu=1x2,cpu=2x1`.
        address: attach to a running Ray cluster; by default to the one this process was started on, if any.
        resume: go on from the run's last checkpoint.
        watch: called a few times a second with the figures of the moment.
        started_at: time.time() from which start-up is counted.
        resume_word: what the user says to go on; the command line has an option for it.

    Raises:
        RaytrainError: what went wrong, or Stopped after Ctrl-C or SIGTERM.
    """
    pipeline = checked(train_loop, pipeline, job)
    environment = prepare_environment()
    if nodes and address:
        raise ConfigError("--nodes starts a cluster and --address attaches to one; give one of them")
    groups = parse_nodes(nodes) if nodes else ()
    kept = job_folders()
    this, resume = _begun(job, kept, resume, resume_word, started_at or time.time(), environment)
    job, folder = this.job, this.folder
    if may_be_deleted(folder.path):
        watch({"phase": DELETED_BY_RAY.format(path=folder.path)})
    try:
        with signals(this) as (going, listen):
            this.opened = pipeline.open(job.seed)
            this.marks["manifest"] = time.time()
            check_data(this.opened, pipeline.batch_size, train_loop, job)
            this.restored = _find_checkpoint(this) if resume else None
            if _is_finished(this, pipeline) and (before := folder.finished_record()) is not None:
                _leave(this, kept, None)
                return before
            this.cluster = _connect(groups, address or (None if nodes else ray_address()), job)
            listen()  # again: ray.init puts a SIGTERM handler of its own in place
            this.marks["cluster"] = time.time()
            _train(this, train_loop, pipeline, resume, watch, going)
        return _end(this, None, kept)
    except RaytrainError as error:
        _end(this, error, kept)
        raise
    except Exception as error:
        if not type(error).__module__.startswith("ray."):
            raise
        lost = ClusterError(f"the Ray cluster failed: {named(error)}")
        _end(this, lost, kept)
        raise lost from None
    finally:
        if this.cluster is not None:
            this.cluster.close()
        folder.close()


def _connect(groups: tuple[Group, ...], address: str | None, job: Job) -> local.RunningCluster:
    """Attach to the cluster at `address`, or start one, while torch is imported."""
    import ray  # noqa: F401 - whole before a thread imports parts of it

    if address:
        address = find(address)  # before much is imported, since this may be all there is to say
    threading.Thread(target=import_ahead, daemon=True).start()
    return local.attach(address) if address else local.start(groups, job.cluster.reserved_cpus)


def _begun(
    job: Job, kept: JobFolders | None, resume: bool, resume_word: str, started_at: float, environment: dict[str, str]
) -> tuple[Run, bool]:
    """The run, which holds its folder, and whether it goes on from an earlier one."""
    again, goes_on = "", False
    if kept is not None:
        job, goes_on = hosted(job, kept)
        again = "" if resume or not goes_on else "give the job another name, or another sagemaker.checkpoints.uri"
        resume = resume or goes_on
    afresh = again or f"start without {resume_word}"
    folder = open_run_folder(job.run_dir, job.name, resume=resume, afresh=afresh)
    this = Run(job, started_at, environment, folder, afresh=afresh, started_again=bool(again), resume_word=resume_word)
    return this, resume


def _is_finished(this: Run, pipeline: Pipeline) -> bool:
    """Whether nothing is left to train.

    Raises:
        CheckpointError: so it is, and it was the user who wanted to go on.
    """
    position, steps = position_of(this.restored)
    if StreamPlan(_stream_spec(this, pipeline), position, 1, steps).segments:
        return False
    if not this.started_again:
        raise CheckpointError(f"{this.folder.path} is finished; raise training.epochs or training.steps to go on")
    return True


def _train(
    this: Run, loop: Loop | None, pipeline: Pipeline, resume: bool, watch: Watch, going: threading.Event
) -> None:
    import ray

    job, topology = this.job, this.topology
    world_size = topology.world_size
    if pipeline.batch_size * world_size > this.opened.train.num_samples:
        raise ConfigError(
            f"a step of {world_size} ranks x data.batch_size={pipeline.batch_size} is larger than the training set of "
            f"{this.opened.train.num_samples} samples"
        )
    if this.cluster.attached:
        check_free_gpus(topology, ray.available_resources().get(topology.gpu_resource, 0))
    reserved = job.cluster.reserved_cpus if this.cluster.attached else 0
    this.placed = place_stages(topology, job.cluster.placement, reserved)
    watch({"phase": _phase(this)})
    if job.training.sync_batchnorm and world_size > 1 and not topology.has_real_gpus:
        raise ConfigError("training.sync_batchnorm needs GPUs: torch has none for the ranks of a CPU")
    if _is_finished(this, pipeline):  # and was killed before its record was written
        this.marks["trainer"] = time.time()
        return
    position, steps = position_of(this.restored)
    if not resume:
        this.folder.set_aside_earlier_run()
        if this.folder.set_aside is not None:
            watch({"phase": f"an earlier run of this name was set aside as {this.folder.set_aside}"})
    feed = start_feed(this, pipeline, _stream_spec(this, pipeline))
    feed.begin.remote("", position, world_size, steps)
    training = _training(this, loop, pipeline, feed)
    going.set()
    this.marks["trainer"] = time.time()
    training.start()
    try:
        _wait(this, training, feed, watch)
    except BaseException:
        training.abandon()
        raise
    this.status = ray.get(feed.status.remote())
    this.progress.note(this.status)
    watch(this.status)
    if this.status["fatal"] is not None:
        fatal = this.status["fatal"]
        raise fatal.located(this.opened.train.describe) if isinstance(fatal, LossError) else fatal
    failure = training.failure
    if failure is not None:
        raise failure if isinstance(failure, RaytrainError) else TrainingError(named(failure))
    if this.signal_number is not None:
        raise Stopped(_stopped_message(this), this.signal_number)


def _training(this: Run, loop: Loop | None, pipeline: Pipeline, feed: Any) -> Training:
    job, topology = this.job, this.topology
    attempt = time.strftime("%Y%m%d-%H%M%S")
    host_cpus = max(h.cpus for h in topology.hosts if h.group == topology.training_group)
    work = RankWork(
        code=own_code([job.model.name] if job.model else []),
        job=job,
        loop=loop,
        feed=feed,
        keeper=start_keeper(this, attempt),
        normalize=pipeline.normalize,
        fingerprint=this.opened.train.fingerprint,
        num_train=this.opened.train.num_samples,
        num_classes=this.opened.train.num_classes,
        resume_from=this.resumed_from,
        threads=job.training.threads or max(int(host_cpus), 1),
        use_gpu=topology.has_real_gpus,
    )
    ranks = Ranks(
        topology.world_size,
        use_gpu=topology.has_real_gpus,
        resources=rank_resources(topology),
        label_selector=rank_selector(topology),
    )
    where, failures = this.folder.checkpoints, job.training.max_failures
    return Training(run_rank, work, ranks, storage=where, attempt=attempt, failures=failures)


def _phase(this: Run) -> str:
    topology, opened = this.topology, this.opened
    counts = f"{opened.train.num_samples:,} training and {opened.num_validation:,} validation samples"
    kind = "emulated GPU" if topology.emulated_gpus else "GPU" if topology.num_gpus else "CPU"
    return (
        f"{counts}; Ray nodes: {len(topology.hosts)}, CPUs for the stages: {this.placed.slots}, "
        f"ranks: {topology.world_size} ({kind}); starting the training processes"
    )


def _stream_spec(this: Run, pipeline: Pipeline) -> StreamSpec:
    return StreamSpec(
        num_train=this.opened.train.num_samples,
        num_validation=this.opened.num_validation,
        batch_size=pipeline.batch_size,
        seed=this.job.seed,
        epochs=this.job.training.epochs,
        steps=this.job.training.steps,
        tail=pipeline.tail,
        group_starts=this.opened.train.group_starts,
    )


def _find_checkpoint(this: Run) -> Any:
    """The run's last whole checkpoint, checked against the data.

    Raises:
        CheckpointError: there is none, or it was written for other data or another seed.
    """
    from raytrain.train.checkpoints import checkpoint
    from raytrain.train.contract import Restored

    found = shelf.latest(this.folder.checkpoints)
    if found is None:
        for path in this.folder.checkpoints.glob("*/checkpoint_*"):
            shelf.read_facts(path)  # says what is wrong with it
        raise CheckpointError(f"{this.folder.path} has no whole checkpoint to resume from; {this.afresh}")
    facts = shelf.read_facts(found)
    if facts.fingerprint != this.opened.train.fingerprint:
        raise CheckpointError(f"{found} was written for other training data; {this.afresh}")
    if facts.seed != this.job.seed:
        raise CheckpointError(f"{found} was written with seed {facts.seed}, not {this.job.seed}; {this.afresh}")
    this.resumed_from = str(found.absolute())
    return Restored(facts, checkpoint.load_state(found))


def _wait(this: Run, training: Training, feed: Any, watch: Watch) -> None:
    """Until it ends; after a signal, ask for a stop and wait STOP_GRACE_S for it."""
    import ray

    deadline: float | None = None
    asked: Any = None
    while not training.ended(POLL_S):
        if this.signal_number is not None and deadline is None:
            feed.request_stop.remote()
            deadline = time.monotonic() + STOP_GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            raise Stopped(_stopped_message(this), this.signal_number)
        asked = asked or feed.status.remote()
        ready, _ = ray.wait([asked], timeout=0)
        if ready:
            with contextlib.suppress(ray.exceptions.RayActorError):
                this.status = ray.get(ready[0])
                this.progress.note(this.status)
                watch({**this.status, "stopping": deadline is not None})
            asked = None
        this.samplers.look(this)


def _stopped_message(this: Run) -> str:
    if this.last_checkpoint is None:
        return "stopped before the first checkpoint; there is nothing to resume"
    how = this.resume_word if this.resume_word.startswith("-") else f"fit(..., {this.resume_word})"
    return f"stopped; go on with {how} (checkpoints in {this.folder.checkpoints})"


def _end(this: Run, error: RaytrainError | None, kept: JobFolders | None) -> RunRecord | None:
    """Close the books, and leave what is to be kept: a finished run's model, for SageMaker whatever there is."""
    record = _close(this, error)
    if record is not None and (kept is not None or error is None):
        _leave(this, kept, error)
    return record


def _leave(this: Run, kept: JobFolders | None, error: RaytrainError | None) -> None:
    """The models, into the run's folder or with the record for SageMaker to collect; a failure never hides what ended
    the run.

    Raises:
        CheckpointError: they could not be left, and nothing else was wrong.
    """
    try:
        deliver(this.folder, kept)
    except (OSError, RuntimeError, RaytrainError) as problem:  # torch.save raises RuntimeError on a full disk
        what = "model could not be written" if kept is None else "record and model could not be left for SageMaker"
        text = f"the run's {what}: {one_line(problem, 300)}"
        if error is None:
            raise CheckpointError(text) from None
        print(f"raytrain: {text}", file=sys.stderr)  # noqa: T201 - the run's own error follows


def _close(this: Run, error: RaytrainError | None) -> RunRecord | None:
    """Write the record of a run that got as far as training, however it ended."""
    if "trainer" not in this.marks:
        return None
    this.samplers.collect()
    last, best = this.last_checkpoint, shelf.best(this.folder.checkpoints)
    this.folder.keep_earlier_record()
    checkpoints = {"checkpoint": str(last) if last else None, "best": str(best) if best else None}
    record = build_record(this, error, **checkpoints, command=list(sys.argv))
    record.write(this.folder.record)
    return record
