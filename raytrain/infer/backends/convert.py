"""What can be done to a model once for all streams: into ONNX, and into int8."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from raytrain.errors import ConfigError, one_line
from raytrain.infer.backends.find import digested
from raytrain.infer.backends.module import Predictor, built
from raytrain.infer.backends.of_onnx import EMBEDDINGS, chosen_outputs
from raytrain.infer.backends.of_openvino import imported
from raytrain.infer.backends.of_torch import Program, order_of
from raytrain.infer.backends.quantize import quantized
from raytrain.infer.contract import BackendOptions, ModelFile

MOST_BYTES = 2**31 - 1  # of a protobuf message
OF_ONNX = ("onnx", "openvino")


def converted(
    file: ModelFile, options: BackendOptions, example: Sequence[np.ndarray], *, sides_vary: bool = False
) -> ModelFile:
    """The file that `load` takes with these options.

    Args:
        example: (samples, ...) each, in the order of `ModelFile.arguments`. For int8 of convolutions it is what the
            ranges of activations are taken from: samples of the data, and the more the better.
        sides_vary: images come in several sizes; of tokens, masks and sequences the length always may vary.

    Raises:
        ConfigError: this back end cannot take it, or not in this precision.
    """
    check_takes(file, options)
    if options.backend not in OF_ONNX:
        _check_torch(file, options)
        return file
    if file.kind == "onnx":
        _check_onnx(file, options)
    else:
        file = _into_onnx(file, options, example, sides_vary)
    if options.precision == "int8" and file.precision != "int8":
        file = quantized(file, example)
    return digested(file)


def check_takes(file: ModelFile, options: BackendOptions) -> None:
    """What can be said of a file and a back end before Ray is started.

    Raises:
        ConfigError: this back end cannot take it, or not in this precision, or is not installed.
    """
    backend, precision = options.backend, options.precision
    if file.kind == "onnx" and backend not in OF_ONNX:
        raise ConfigError(f"inference.backend {backend} cannot take {file.source}, an ONNX file; use onnx or openvino")
    if precision == "int8" and backend not in OF_ONNX:
        raise ConfigError(f"inference.precision int8 is for the back ends onnx and openvino, and not for {backend}")
    if precision == "bf16" and backend == "onnx":
        raise ConfigError(
            "inference.precision bf16: ONNX Runtime has hardly any operation in it; use eager, compile or openvino"
        )
    if file.kind == "export" and options.embeddings:
        raise ConfigError(f"model.embeddings: {file.source} is an exported program, which has its outputs only")
    if backend == "openvino":
        imported(options.device)
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if backend in OF_ONNX and missing:
        raise ConfigError(f"inference.backend {backend} needs {missing[0]}: pip install 'raytrain[{backend}]'")


def _check_torch(file: ModelFile, options: BackendOptions) -> None:
    """Once, rather than in every stream."""
    if file.kind == "export":
        Program(file)
    else:
        Predictor(built(file), file.arguments, options.embeddings)


def _check_onnx(file: ModelFile, options: BackendOptions) -> None:
    import onnx

    try:
        model = onnx.load_model_from_string(file.data)
    except Exception as error:  # noqa: BLE001 - protobuf's own kinds differ from one implementation to the other
        raise ConfigError(f"{file.source} is no ONNX file, or was cut off: {one_line(error, 200)}") from None
    weights = {each.name for each in model.graph.initializer}
    if any(each.data_location == onnx.TensorProto.EXTERNAL for each in model.graph.initializer):
        raise ConfigError(f"{file.source} keeps its weights in other files; save it with external_data=False")
    names = [each.name for each in model.graph.input if each.name not in weights]
    if not names or not model.graph.output:
        raise ConfigError(f"{file.source} is no ONNX file: it has no inputs or no outputs")
    order_of(file.arguments, names, file.source)
    chosen_outputs([each.name for each in model.graph.output], options, file.source)


def _into_onnx(file: ModelFile, options: BackendOptions, example: Sequence[np.ndarray], sides_vary: bool) -> ModelFile:
    rows = 2  # one alone would be taken for a constant
    if file.kind == "export":
        program = Program(file)
        module, rows = Predictor(program), program.rows or max(rows, program.least)
    else:
        module = Predictor(built(file), file.arguments, options.embeddings)
    inputs = tuple(torch.from_numpy(np.ascontiguousarray(each[np.arange(rows) % len(each)])) for each in example)
    axes = tuple({axis: torch.export.Dim.AUTO for axis in _varying(each, sides_vary)} for each in inputs)
    try:
        with _quiet(), torch.no_grad():
            done = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                verbose=False,
                external_data=False,
                input_names=[name or "input" for name in file.arguments],
                output_names=["output", EMBEDDINGS][: 2 if options.embeddings else 1],
                dynamic_shapes={"inputs": axes},
            )
        assert done is not None
        model = done.model_proto
    except Exception as error:  # noqa: BLE001 - of a module that it cannot trace torch raises anything
        raise ConfigError(
            f"cannot convert {file.source} to ONNX: {one_line(error.__cause__ or error, 300)}; use inference.backend "
            "eager or compile"
        ) from None
    if model.ByteSize() > MOST_BYTES:
        raise ConfigError(
            f"{file.source} has {model.ByteSize() / 1e9:.1f} GB of weights, and an ONNX file holds 2.1 GB; use "
            "inference.backend eager or compile"
        )
    return replace(file, kind="onnx", data=model.SerializeToString(), model=None)


def _varying(tensor: torch.Tensor, sides_vary: bool) -> list[int]:
    """Its axes of any length: the batch, that of tokens, masks and sequences, the sides of images where they vary."""
    if tensor.ndim == 3 or (tensor.ndim == 2 and not tensor.is_floating_point()):
        return [0, 1]
    return [0, 2, 3] if tensor.ndim == 4 and sides_vary else [0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter's advice is for whoever writes models."""
    loggers: list[Any] = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
