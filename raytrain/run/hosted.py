"""What a run leaves: its models and, inside a SageMaker job, the record for SageMaker to collect; and where such a run
keeps its things."""

from __future__ import annotations

import shutil
from pathlib import Path

from raytrain.cluster.environment import JobFolders, job_folders
from raytrain.config.job import Job
from raytrain.run.folder import RunFolder
from raytrain.train.checkpoints import shelf


def folder_of(job: Job) -> RunFolder:
    """Where a job's run is, inside a SageMaker job or not."""
    kept = job_folders()
    return RunFolder.of(job if kept is None else _kept_in(job, kept))


def hosted(job: Job, kept: JobFolders) -> tuple[Job, bool]:
    """The job as it runs here, and whether it goes on from an earlier run.

    The run's folder goes where checkpoints are kept, unless the job says otherwise; a job that SageMaker has started
    again, after a spot interruption, goes on from the last one.
    """
    job = _kept_in(job, kept)
    return job, _may_go_on(RunFolder.of(job))


def _kept_in(job: Job, kept: JobFolders) -> Job:
    if "run_dir" in job.model_fields_set:
        return job
    return job.model_copy(update={"run_dir": str(kept.checkpoints)})


def _may_go_on(folder: RunFolder) -> bool:
    return shelf.latest(folder.checkpoints) is not None


def deliver(folder: RunFolder, kept: JobFolders | None) -> None:
    """The models of the furthest and of the best checkpoint into the run's folder. In a SageMaker job into the model
    folder, and the record into the output. Nothing of a run that did not get so far."""
    into = folder.path if kept is None else kept.model
    if kept is not None and folder.record.is_file():
        kept.output.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.record, kept.output / "record.json")
    latest, best = shelf.latest(folder.checkpoints), shelf.best(folder.checkpoints)
    for found, prefix in ((latest, ""), (best, "best_")):
        for name in (f"{prefix}model.pt", f"{prefix}checkpoint.json"):
            (into / name).unlink(missing_ok=True)  # of an earlier run that this one has gone on from
        if found is None:
            continue
        from raytrain.train.checkpoints import checkpoint  # with torch

        into.mkdir(parents=True, exist_ok=True)
        if found == latest and prefix:
            _link(into / "model.pt", into / "best_model.pt")
        else:
            checkpoint.write_model(found, into / f"{prefix}model.pt")
        shutil.copyfile(found / "checkpoint.json", into / f"{prefix}checkpoint.json")


def _link(path: Path, other: Path) -> None:
    """A second name, or a copy where the file system has none."""
    try:
        other.hardlink_to(path)
    except OSError:
        shutil.copyfile(path, other)
