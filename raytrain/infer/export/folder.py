"""From a run to a folder that needs no raytrain."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from raytrain.config.inference import PredictingModel
from raytrain.config.job import Job
from raytrain.config.masking import check_whole
from raytrain.data.pipeline import without_random
from raytrain.data.samples.fields import Field
from raytrain.data.stages.registry import parse_stage
from raytrain.data.stages.stage import Stage
from raytrain.errors import ConfigError
from raytrain.infer.backends.find import find_model
from raytrain.infer.contract import ModelFile
from raytrain.infer.export.transforms import transforms_file
from raytrain.infer.of_run import record_of
from raytrain.train.models import arguments_of

Format = Literal["safetensors", "torch-export", "onnx"]
FILES = {"safetensors": "model.safetensors", "torch-export": "model.pt2", "onnx": "model.onnx"}


@dataclass(frozen=True)
class Exported:
    """
    Attributes:
        files: their names in `folder`.
        notes: for people, a line each.
    """

    folder: Path
    files: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    run: str | Path,
    format: Format = "safetensors",  # noqa: A002 - as the option is called
    output: str | Path | None = None,
    *,
    shape: Sequence[int] | None = None,
) -> Exported:
    """Write the model of a run that has ended, with what was done to its input, for plain PyTorch or ONNX Runtime.

    Args:
        run: its folder; its best checkpoint is taken, or its last, and of averaged weights the average.
        format: `torch-export` and `onnx` take batches of any size, and are compared with the model when written.
        output: a folder that is empty or not there; default: `<name of the run>-<format>` here.
        shape: of one input, for these two; default: what the stages end with.

    Raises:
        ConfigError: the run has no record or no model, the folder is not empty, or the model cannot be exported so.
        CheckpointError: it has no checkpoint.
    """
    if format not in get_args(Format):
        raise ConfigError(f"format: {format!r} is none of {', '.join(get_args(Format))}")
    run = str(run).rstrip("/")
    folder = Path(output) if output is not None else Path(f"{Path(run).name}-{format}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"output: {folder} is not an empty folder; give another")
    data, stages = _preprocessing(run)
    file = find_model(PredictingModel(run=run, inputs=data["input"]))
    texts, note = _texts(file, format, data, stages)
    written = _weights(file, format, data, stages, shape)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        (part / FILES[format]).write_bytes(written)
        for name, text in texts.items():
            (part / name).write_text(text, encoding="utf-8")
        if format != "safetensors":
            from raytrain.infer.export.programs import check_same

            check_same(file, (part / FILES[format]).read_bytes(), format, _shape(data, stages, shape))
        part.replace(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Exported(folder, (FILES[format], *texts), (note,) if note else ())


def _preprocessing(run: str) -> tuple[dict[str, Any], tuple[Stage, ...]]:
    """What `preprocess.json` says, and the stages of the validation, or () where the record does not know them."""
    record, where = record_of(run), f"{run}/record.json"
    own = record.job.get("data") or {}
    specs = own.get("validation_stages") or own.get("stages") or []
    check_whole({"model": record.job.get("model"), "data": {"stages": specs}}, where)
    trained = Job.from_dict(record.job, where=where)
    kept, stages = [], []
    for spec in specs:
        stage = parse_stage(spec)
        if without_random([stage]):
            kept.append(spec)
            stages.append(stage)
    told = {} if trained.data is None else trained.data.model_dump(mode="json")
    given = {"input": trained.training.task.input, "known": trained.data is not None, "stages": kept}
    given |= {key: told.get(key) for key in ("normalize", "fields")}
    return given, tuple(stages)


def _texts(
    file: ModelFile, kind: Format, data: dict[str, Any], stages: tuple[Stage, ...]
) -> tuple[dict[str, str], str]:
    texts = {"preprocess.json": json.dumps(data, indent=1) + "\n"}
    if file.classes:
        texts["classes.json"] = json.dumps(list(file.classes), indent=1, ensure_ascii=False) + "\n"
    if data["known"]:
        code, note = transforms_file(stages, data)
    else:
        code, note = None, "no preprocess.py: the data came from a script, which the record does not have"
    if code is not None:
        texts["preprocess.py"] = code
    lines = [f"# {file.source}", "", *("    " + line for line in loading(file, kind)), ""]
    if code is not None:
        lines += ["`preprocess.py` makes a path or the bytes of an image what the model takes a batch of.", ""]
    lines += [f"{note[0].upper()}{note[1:]}.", ""] if note else []
    texts["README.md"] = "\n".join(lines)
    return texts, note


def loading(file: ModelFile, kind: Format) -> list[str]:
    """Lines of Python that load it; run beside it."""
    assert file.model is not None
    name = FILES[kind]
    if kind == "torch-export":
        return ["import torch", "", f'model = torch.export.load("{name}").module()']
    if kind == "onnx":
        return [
            "import onnxruntime",
            "",
            f'session = onnxruntime.InferenceSession("{name}")',
            "outputs = session.run(None, {session.get_inputs()[0].name: batch})  # NumPy's float32",
        ]
    given = ", ".join(f"{key}={value!r}" for key, value in arguments_of(file.model, file.num_classes).items())
    where, _, attribute = file.model.name.partition(":")
    if attribute:
        first = [f"import {where}"]
        build = f"{where}.{attribute}({given})"
    else:
        first = ["import timm"]
        build = f'timm.create_model("{where}"{", " if given else ""}{given})'
    return [
        *first,
        "from safetensors.torch import load_file",
        "",
        f"model = {build}",
        f'model.load_state_dict(load_file("{name}"))',
        "model.eval()",
    ]


def _weights(
    file: ModelFile, kind: Format, data: dict[str, Any], stages: tuple[Stage, ...], shape: Sequence[int] | None
) -> bytes:
    from raytrain.infer.export import programs

    if kind == "safetensors":
        return programs.safetensors_of(file)
    make = programs.exported_program if kind == "torch-export" else programs.onnx_file
    return make(file, _shape(data, stages, shape))


def _shape(data: dict[str, Any], stages: tuple[Stage, ...], shape: Sequence[int] | None) -> tuple[int, ...]:
    """Of one input."""
    if shape is not None:
        return tuple(shape)
    what = Field("bytes", (), "image")
    for stage in stages:
        what = stage.change(what) if stage.change is not None else what
    sides = what.shape or ()
    if len(sides) != 3 or None in sides:
        raise ConfigError("shape: the stages do not say what shape one input has; give it, such as --shape 3,224,224")
    return int(sides[2] or 0), int(sides[0] or 0), int(sides[1] or 0)
