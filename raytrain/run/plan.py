"""What a run is going to do, settled step by step before a training process is started."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from raytrain.cluster.environment import JobFolders
from raytrain.cluster.local import RunningCluster
from raytrain.cluster.placement import PlacedStages, place_stages, placements
from raytrain.cluster.topology import Topology
from raytrain.config.job import Job
from raytrain.cost.placing import Places
from raytrain.data.order import Position, Split, StreamPlan, StreamSpec
from raytrain.data.pipeline import OpenPipeline, Pipeline
from raytrain.data.placement.decider import Choice
from raytrain.data.sources.files import telling
from raytrain.data.stages.settling import DevicePart
from raytrain.errors import CheckpointError
from raytrain.run.checks import check_data, check_placed, check_size, check_store
from raytrain.run.folder import RunFolder, open_run_folder
from raytrain.run.hosted import hosted
from raytrain.run.rank import position_of
from raytrain.train.checkpoints import shelf
from raytrain.train.tasks import Task

MANIFESTS = ".manifests"  # beside the runs


@dataclass(frozen=True)
class RunOptions:
    """What was asked for.

    Attributes:
        started_at: time.time() from which start-up is counted.
        environment: variables that were set for the run, for the record.
        folder: the run's, held by this process.
        kept: the folders of a SageMaker job; None elsewhere.
        resume: it goes on from an earlier run.
        started_again: SageMaker has started the job anew, and it goes on by itself.
        resume_word: what the user says to go on.
        afresh: how to begin anew where an earlier run cannot be gone on with.
    """

    job: Job
    started_at: float
    environment: dict[str, str]
    folder: RunFolder
    kept: JobFolders | None = None
    resume: bool = False
    started_again: bool = False
    resume_word: str = "resume=True"
    afresh: str = ""

    @classmethod
    def of(cls, job: Job, kept: JobFolders | None, resume: bool, resume_word: str, **more: Any) -> RunOptions:
        """Decides where the run is kept, and whether it goes on; opens its folder."""
        again, goes_on = "", False
        if kept is not None:
            job, goes_on = hosted(job, kept)
            again = "" if resume or not goes_on else "give the job another name, or another sagemaker.checkpoints.uri"
        resume = resume or goes_on
        afresh = again or f"start without {resume_word}"
        folder = open_run_folder(job.run_dir, job.name, resume=resume, afresh=afresh)
        return cls(
            job=job,
            folder=folder,
            kept=kept,
            resume=resume,
            started_again=bool(again),
            resume_word=resume_word,
            afresh=afresh,
            **more,
        )

    def stopped_message(self, last_checkpoint: Path | None) -> str:
        """What a user who has stopped the run is told."""
        if last_checkpoint is None:
            return "stopped before the first checkpoint; there is nothing to resume"
        how = self.resume_word if self.resume_word.startswith("-") else f"fit(..., {self.resume_word})"
        return f"stopped; go on with {how} (checkpoints in {self.folder.checkpoints})"


@dataclass(frozen=True)
class DataPlan:
    """The data, and where in the stream the run begins.

    Attributes:
        resumed_from: folder of the checkpoint that it goes on from.
        restored: what is in it (train.contract.Restored).
        position, steps: where that stands, and the batches that a rank had by then.
        listed_at: time.time() at which the data was listed.
    """

    opened: OpenPipeline
    task: Task
    spec: StreamSpec
    listed_at: float
    resumed_from: str | None = None
    restored: Any = None
    position: Position = field(default_factory=Position)
    steps: int = 0

    @classmethod
    def of(
        cls, options: RunOptions, pipeline: Pipeline, watch: Callable[[str], None], *, default_loop: bool
    ) -> DataPlan:
        """
        Args:
            watch: called with how far the listing has come, where that takes long.

        Raises:
            RaytrainError: the data cannot be listed, does not go with the job, or is not the checkpoint's; or the user
                wants to go on with a run that is finished.
        """
        training = options.job.training
        with telling(watch):
            opened = pipeline.open(options.job.seed, options.folder.path.parent / MANIFESTS)
        listed_at = time.time()
        check_size(pipeline, opened.train.num_samples)
        task = check_data(opened, default_loop, options.job)
        spec = StreamSpec(
            num_train=opened.train.num_samples,
            num_validation=opened.num_validation,
            batch_size=pipeline.size,
            is_global=pipeline.is_global,
            seed=options.job.seed,
            epochs=training.epochs,
            steps=training.steps,
            tail=pipeline.tail,
            groups=opened.train.groups,
            buckets=opened.buckets,
        )
        path, restored = _checkpoint(options, opened.train.fingerprint, task) if options.resume else (None, None)
        found = cls(opened, task, spec, listed_at, path, restored, *position_of(restored))
        if found.is_finished and not options.started_again:
            raise CheckpointError(
                f"{options.folder.path} is finished; raise training.epochs or training.steps to go on"
            )
        return found

    @cached_property
    def is_finished(self) -> bool:
        """Whether nothing is left to train; asked three times, and it takes a plan of all epochs to know."""
        return not StreamPlan(self.spec, self.position, 1, self.steps).segments


@dataclass(frozen=True)
class RunPlan:
    """All of it.

    Attributes:
        loop: called on every rank with a TrainContext; None for the job's own.
        connected_at: time.time() at which the cluster was there.
        choice: where the stages may run; None where that is settled.
    """

    options: RunOptions
    pipeline: Pipeline
    loop: Any
    data: DataPlan
    cluster: RunningCluster
    placed: PlacedStages
    connected_at: float
    choice: Choice | None = None

    @classmethod
    def of(cls, options: RunOptions, pipeline: Pipeline, loop: Any, data: DataPlan, cluster: RunningCluster) -> RunPlan:
        """
        Raises:
            RaytrainError: the job does not fit the cluster.
        """
        import ray

        connected_at, job, topology = time.time(), options.job, cluster.topology
        check_placed(job, pipeline, data.spec.num_train, topology, cluster.attached)
        reserved = job.cluster.reserved_cpus
        placed = place_stages(topology, job.cluster.placement, reserved)
        size = pipeline.size // topology.world_size if pipeline.is_global else pipeline.size
        check_store(data.opened, size, ray.nodes(), placed.groups)
        choice = None
        if job.cluster.placement == "auto" and topology.num_gpus and topology.is_labelled:
            first = placed.slots - topology.cpu_slots(topology.cpu_groups)
            choice = _choice(topology, placements(topology, reserved), first, data.opened.on_device)
        return cls(options, pipeline, loop, data, cluster, placed, connected_at, choice)

    @property
    def job(self) -> Job:
        return self.options.job

    @property
    def topology(self) -> Topology:
        return self.cluster.topology

    def __str__(self) -> str:
        topology, spec = self.topology, self.data.spec
        at = self.data.position.epoch + 1
        goes_on = f"; going on after step {self.data.steps:,}, in epoch {at}" if self.data.steps else ""
        kind = "emulated GPU" if topology.emulated_gpus else "GPU" if topology.num_gpus else "CPU"
        return (
            f"{spec.num_train:,} training and {spec.num_validation:,} validation samples; "
            f"Ray nodes: {len(topology.hosts)}, CPUs for the stages: {self.placed.slots}, "
            f"ranks: {topology.world_size} ({kind}){goes_on}"
        )


def _choice(
    topology: Topology, placed: dict[int, PlacedStages], first: int, on_device: dict[Split, DevicePart]
) -> Choice | None:
    """None where there is one way only.

    Args:
        first: of the training hosts' CPUs, that prepare at first.
    """
    train = on_device["train"]
    validation = on_device.get("validation", DevicePart())
    if len(train.cuts) == 1 and len(placed) == 1:
        return None
    most = max(placed)
    return Choice(
        train.names,
        {cut: validation.alike({stage.name for stage in train.at(cut)}) for cut in train.cuts},
        Places(placed[most].slots - most, most, topology.world_size),
        placed,
        first,
        frozenset(host.node_id for host in topology.hosts if host.group == topology.training_group),
    )


def _checkpoint(options: RunOptions, fingerprint: str, task: Task) -> tuple[str, Any]:
    """The run's last whole checkpoint, checked against the data.

    Raises:
        CheckpointError: there is none, or it was written for other data, other classes or another seed.
    """
    from raytrain.train.checkpoints import checkpoint
    from raytrain.train.contract import Restored

    folder, afresh, seed = options.folder, options.afresh, options.job.seed
    found = shelf.latest(folder.checkpoints)
    if found is None:
        for path in folder.checkpoints.glob("*/checkpoint_*"):
            shelf.read_facts(path)  # says what is wrong with it
        raise CheckpointError(f"{folder.path} has no whole checkpoint to resume from; {afresh}")
    facts = shelf.read_facts(found)
    if facts.fingerprint != fingerprint:
        raise CheckpointError(f"{found} was written for other training data; {afresh}")
    if facts.classes != list(task.classes):
        was, now = (", ".join(each[:5]) or "none" for each in (facts.classes, list(task.classes)))
        raise CheckpointError(
            f"{found} was written for other classes of field `{task.target}` ({was}, and not {now}); {afresh}"
        )
    if facts.seed != seed:
        raise CheckpointError(f"{found} was written with seed {facts.seed}, not {seed}; {afresh}")
    return str(found.absolute()), Restored(facts, checkpoint.load_state(found))
