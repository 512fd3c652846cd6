"""A run inside a SageMaker job: where it keeps its things, and what it leaves for SageMaker to collect."""

from __future__ import annotations

import shutil

from raytrain.cluster.environ import JobFolders
from raytrain.config import Job
from raytrain.run_folder import RunFolder
from raytrain.train import shelf


def hosted(job: Job, kept: JobFolders) -> tuple[Job, bool]:
    """The job as it runs here, and whether it goes on from an earlier run.

    The run's folder goes where checkpoints are kept, unless the job says otherwise; a job that SageMaker has started
    again, after a spot interruption, goes on from the last one.
    """
    if "run_dir" not in job.model_fields_set:
        job = job.model_copy(update={"run_dir": str(kept.checkpoints)})
    return job, _may_go_on(RunFolder.of(job))


def _may_go_on(folder: RunFolder) -> bool:
    return shelf.latest(folder.checkpoints) is not None


def deliver(folder: RunFolder, kept: JobFolders) -> None:
    """The record into the output, the models of the furthest and of the best checkpoint into the model folder; nothing
    of a run that did not get so far."""
    if folder.record.is_file():
        kept.output.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder.record, kept.output / "record.json")
    for found, prefix in ((shelf.latest(folder.checkpoints), ""), (shelf.best(folder.checkpoints), "best_")):
        if found is None:
            continue
        from raytrain.train import checkpoint  # with torch

        kept.model.mkdir(parents=True, exist_ok=True)
        checkpoint.write_model(found, kept.model / f"{prefix}model.pt")
        shutil.copyfile(found / "checkpoint.json", kept.model / f"{prefix}checkpoint.json")
