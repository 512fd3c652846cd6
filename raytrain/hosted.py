"""A run inside a SageMaker job: where it keeps its things, and what it leaves for SageMaker to collect."""

from __future__ import annotations

import shutil

from raytrain.cluster.environ import JobFolders
from raytrain.config import Job
from raytrain.run_folder import RunFolder


def hosted(job: Job, kept: JobFolders) -> tuple[Job, bool]:
    """The job as it runs here, and whether it goes on from an earlier run.

    The run's folder goes where checkpoints are kept, unless the job says otherwise; a job that SageMaker has started
    again, after a spot interruption, goes on from the last one.
    """
    if "run_dir" not in job.model_fields_set:
        job = job.model_copy(update={"run_dir": str(kept.checkpoints)})
    return job, _may_go_on(RunFolder.of(job))


def _may_go_on(folder: RunFolder) -> bool:
    if not any(folder.checkpoints.glob("*/checkpoint_*/checkpoint.json")):
        return False  # the usual case, without the seconds that torch takes to import
    from raytrain.train import checkpoint

    return checkpoint.latest(folder.checkpoints) is not None


def deliver(folder: RunFolder, kept: JobFolders) -> None:
    """The record into the output, the model of the furthest checkpoint into the model folder; nothing of a run that did
    not get so far."""
    from raytrain.train import checkpoint

    if folder.record.is_file():
        kept.output.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.record, kept.output / "record.json")
    last = checkpoint.latest(folder.checkpoints)
    if last is not None:
        kept.model.mkdir(parents=True, exist_ok=True)
        checkpoint.write_model(last, kept.model / "model.pt")
        shutil.copyfile(last / "checkpoint.json", kept.model / "checkpoint.json")
