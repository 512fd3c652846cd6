"""Which model a job means, with its weights, as a value that travels."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.fs

from raytrain.config.file import section_of
from raytrain.config.inference import PredictingModel
from raytrain.config.learning import Model
from raytrain.data.sources.files import filesystem_of
from raytrain.errors import CheckpointError, ConfigError, looked_for, one_line
from raytrain.infer.contract import ModelFile
from raytrain.record.schema import read_record
from raytrain.train.checkpoints import shelf
from raytrain.train.models import CLASSES, check_model

if TYPE_CHECKING:
    from torch import Tensor

PRETRAINED = "pretrained"  # timm's option to fetch weights


def find_model(section: PredictingModel) -> ModelFile:
    """
    Raises:
        ConfigError: it is not said, or not there, or cannot be built.
        CheckpointError: there are no weights, or they are another model's.
    """
    given = {key: getattr(section, key) for key in ("run", "file", "name") if getattr(section, key)}
    if len(given) != 1:
        raise ConfigError(f"model: give exactly one of run, file and name (given: {', '.join(given) or 'none'})")
    for key in ("weights", "options"):
        if getattr(section, key) and not section.name:
            raise ConfigError(f"model.{key} goes with model.name, and not with model.{next(iter(given))}")
    if section.run:
        found = _of_run(section)
    elif section.file:
        found = _of_file(section)
    else:
        found = _of_name(section)
    return digested(found)


def digested(file: ModelFile) -> ModelFile:
    """With the digest of everything but where it is from."""
    model = file.model and [file.model.name, file.model.options]
    said = [file.kind, model, file.num_classes, file.arguments, file.classes, file.precision]
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=repr).encode())
    digest.update(file.data)
    return replace(file, digest=digest.hexdigest())


def _arguments(section: PredictingModel) -> tuple[str, ...]:
    return tuple(section.inputs) if isinstance(section.inputs, Mapping) else ("",)


def _of_run(section: PredictingModel) -> ModelFile:
    run = section.run or ""
    with _folder_here(run) as folder:
        if not (folder / "record.json").is_file():
            raise ConfigError(
                f"model.run: {run} has no record.json{looked_for(run)}: give the folder of a run of `raytrain train` "
                "that has ended"
            )
        record = read_record(folder / "record.json")
        described = record.job.get("model")
        if described is None:
            raise ConfigError(
                f"model.run: the loop of {run} builds its model itself; give model.name, and its state as model.weights"
            )
        best = shelf.best(folder / "checkpoints") if section.checkpoint == "best" else None
        found = best or shelf.latest(folder / "checkpoints")
        if found is None:
            raise CheckpointError(f"model.run: {run} has no whole checkpoint")
        facts, state = shelf.read_facts(found), _state_of_checkpoint(found, run)
    source = f"{run}, {'best' if best else 'last'} checkpoint after {facts.updates:,} updates{_score(facts)}"
    file = ModelFile(
        "module",
        b"",
        section_of(Model, described, f"model.run: the model of {run}/record.json"),
        len(record.classes) or None,
        _arguments(section),
        section.classes or tuple(record.classes),
        source=source,
    )
    return _with_state(file, state, f"model.run: the checkpoint of {run}")


def _score(facts: shelf.Facts) -> str:
    if facts.metric is None or facts.score is None:
        return ""
    goal, _, metric = facts.metric.partition(" ")
    return f", {metric} {-facts.score if goal == 'min' else facts.score:.4g}"


def _state_of_checkpoint(folder: Path, run: str) -> dict[str, Tensor]:
    from raytrain.train.checkpoints.checkpoint import model_states

    states = model_states(folder)
    if len(states) != 1:
        raise ConfigError(
            f"model.run: the loop of {run} prepared {len(states)} modules; give the one to predict with as model.name "
            "and its state as model.weights"
        )
    return states[0]


def _of_file(section: PredictingModel) -> ModelFile:
    path = section.file or ""
    kinds = {".pt2": "export", ".onnx": "onnx"}
    kind = kinds.get(Path(path).suffix.lower())
    if kind is None:
        raise ConfigError(
            f"model.file: {path} is neither .pt2 of torch.export.save nor .onnx; a state goes with model.name, as "
            "model.weights"
        )
    data = _read(path, "model.file")
    if kind == "export":
        from raytrain.infer.backends.program_file import check_program

        check_program(data, f"model.file: {path}")
    return ModelFile(kind, data, None, None, _arguments(section), section.classes, source=path)


def _of_name(section: PredictingModel) -> ModelFile:
    model = Model(name=section.name or "", options=section.options)
    check_model(model)
    classes = section.classes
    file = ModelFile("module", b"", model, len(classes) or None, _arguments(section), classes)
    if section.weights:
        from raytrain.train.learning.state import read_state

        told = f"model.weights: {section.weights}"
        state = read_state(_read(section.weights, "model.weights"), told)
        return _with_state(replace(file, source=f"{model.name} with {section.weights}"), state, told)
    how = "weights that timm fetched" if model.options.get(PRETRAINED) else "random weights of seed 0"
    return _with_state(replace(file, source=f"{model.name} with {how}"), None, "")


def _with_state(file: ModelFile, state: dict[str, Tensor] | None, told: str) -> ModelFile:
    """Built once to see that the state fits; with no state it is given its own, so that all streams have the same."""
    import torch

    from raytrain.infer.backends import module as modules
    from raytrain.train.checkpoints.checkpoint import pack
    from raytrain.train.learning.state import fit, misfit

    assert file.model is not None
    options = {key: value for key, value in file.model.options.items() if key != PRETRAINED}
    if state is not None:
        file = replace(file, model=Model(name=file.model.name, options=options))
    module = modules.seeded(file)
    modules.check_arguments(module, file.arguments, file.model.name)
    if state is not None:
        number = misfit(module, state).first_axis
        if number and file.num_classes is None and CLASSES not in options:  # labels without names: nobody said how many
            with contextlib.suppress(ConfigError):
                other = modules.seeded(replace(file, num_classes=number))
                if not misfit(other, state):
                    file, module = replace(file, num_classes=number), other
        if number and number != file.num_classes and file.classes and CLASSES not in options:
            _check_count(file, state, number, told)
        fit(module, state, told, file.model.name)
    own = {name: value.detach() for name, value in module.state_dict().items() if isinstance(value, torch.Tensor)}
    return replace(file, model=Model(name=file.model.name, options=options), data=pack(own).tobytes())


def _check_count(file: ModelFile, state: dict[str, Tensor], number: int, told: str) -> None:
    """
    Raises:
        ConfigError: the state is one of the model for another number of classes than there are names.
    """
    from raytrain.infer.backends import module as modules
    from raytrain.train.learning.state import misfit

    try:
        other = misfit(modules.seeded(replace(file, num_classes=number)), state)
    except ConfigError:
        return
    if not other:
        raise ConfigError(
            f"model.classes has {len(file.classes)} names, and {told} has {number} classes; name them all"
        )


def _read(path: str, key: str) -> bytes:
    filesystem, inner = filesystem_of(path)
    try:
        with filesystem.open_input_file(inner) as file:
            return file.read()
    except FileNotFoundError:
        raise ConfigError(f"{key}: {path} does not exist{looked_for(path)}") from None
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path}: {one_line(error, 200)}") from None


@contextlib.contextmanager
def _folder_here(path: str) -> Iterator[Path]:
    """A run's folder, or of one that lies elsewhere a copy of its record and checkpoints."""
    filesystem, root = filesystem_of(path)
    if isinstance(filesystem, pyarrow.fs.LocalFileSystem):
        yield Path(root)
        return
    with tempfile.TemporaryDirectory(prefix="raytrain-model-") as copy:
        here: Any = {"source_filesystem": filesystem, "destination_filesystem": pyarrow.fs.LocalFileSystem()}
        try:
            for name in ("record.json", "checkpoints"):
                if filesystem.get_file_info(f"{root}/{name}").type != pyarrow.fs.FileType.NotFound:
                    if name == "checkpoints":
                        Path(copy, name).mkdir()
                    pyarrow.fs.copy_files(f"{root}/{name}", f"{copy}/{name}", **here)
        except OSError as error:
            raise ConfigError(f"model.run: cannot read {path}: {one_line(error, 200)}") from None
        yield Path(copy)
