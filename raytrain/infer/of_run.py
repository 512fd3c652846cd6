"""What a prediction job leaves out, from the run whose model it takes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raytrain.config.inference import PredictionJob
from raytrain.config.job import Job
from raytrain.config.masking import check_whole
from raytrain.data.sources.files import filesystem_of
from raytrain.errors import ConfigError, one_line
from raytrain.record.schema import RunRecord, parse_record

FROM_DATA = ("normalize", "collate", "fields")


def completed(job: PredictionJob) -> PredictionJob:
    """With the stages, the normalisation and all else of its run's validation that the job does not say itself.

    Raises:
        ConfigError: the run has no record, none of what is left out, or another number of classes than is named; or
            what is needed of it looked like a secret.
    """
    if job.model.run is None:
        return job
    record, where = record_of(job.model.run), f"model.run: {job.model.run}/record.json"
    _check_whole(job, record.job, where)
    trained = Job.from_dict(record.job, where=where)
    named, known = len(job.model.classes), len(record.classes)
    if named and known and named != known:
        raise ConfigError(
            f"model.classes has {named} names, and {job.model.run} was trained on {known} classes; leave it out for "
            "theirs"
        )
    model: dict[str, Any] = {}
    if job.model.inputs is None:
        model["inputs"] = trained.training.task.input
    if not job.model.classes:
        model["classes"] = tuple(record.classes)
    data: dict[str, Any] = {}
    if trained.data is not None:
        own = trained.data
        before = {**{name: getattr(own, name) for name in FROM_DATA}, "stages": own.validation_stages or own.stages}
        data = {name: value for name, value in before.items() if getattr(job.data, name) is None}
    elif job.data.stages is None:
        raise ConfigError(
            f"model.run: {job.model.run} had its data from a script, so that its record does not say what was done to "
            "them; give data.stages (and data.normalize) as there"
        )
    return job.model_copy(
        update={"model": job.model.model_copy(update=model), "data": job.data.model_copy(update=data)}
    )


def _check_whole(job: PredictionJob, trained: Mapping[str, Any], where: str) -> None:
    """Of where the training data came from nothing is needed."""
    data = trained.get("data") or {}
    names = [name for name in FROM_DATA if getattr(job.data, name) is None]
    if job.data.stages is None:
        names.append("validation_stages" if data.get("validation_stages") else "stages")
    check_whole({"model": trained.get("model"), "data": {name: data.get(name) for name in names}}, where)


def record_of(run: str) -> RunRecord:
    files, root = filesystem_of(run)
    try:
        with files.open_input_stream(f"{root}/record.json") as file:
            text = file.read().decode()
    except OSError as error:
        where = "" if "://" in run else f" (looked in {Path(run).absolute()})"
        why = "" if isinstance(error, FileNotFoundError) else f": {one_line(error, 120)}"
        raise ConfigError(
            f"model.run: {run} has no record.json{where}{why}; give the folder of a run of `raytrain train` that has "
            "ended"
        ) from None
    return parse_record(text, f"{run}/record.json")
