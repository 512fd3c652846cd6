"""ONNX files into int8, by ONNX Runtime's quantization."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from raytrain.errors import ConfigError, one_line
from raytrain.infer.contract import ModelFile

AT_ONCE = 16  # samples, in calibration
DYNAMIC, STATIC = "linear layers in int8, by the range of each batch", "in int8, by the ranges of {} samples"


def quantized(file: ModelFile, example: Sequence[np.ndarray]) -> ModelFile:
    """Weights by channel, without a reduced range, so that sums do not overflow on CPUs with VNNI or AMX (and may on
    older ones). A model with more weights in linear layers than in convolutions has the former in int8 alone, and
    activations scaled by their range in each batch; any other has all of it, scaled by the ranges of the example.

    Raises:
        ConfigError: it cannot be done.
    """
    import onnx
    from onnxruntime import quantization as q
    from onnxruntime.quantization.shape_inference import quant_pre_process

    model = onnx.load_model_from_string(file.data)
    if {node.op_type for node in model.graph.node} & {"QuantizeLinear", "DynamicQuantizeLinear"}:
        raise ConfigError(f"inference.precision int8: {file.source} has been quantized already; say fp32 to use it so")
    with tempfile.TemporaryDirectory(prefix="raytrain-int8-") as folder, _quiet():
        given, ready, done = (Path(folder, f"{name}.onnx") for name in ("given", "ready", "done"))
        given.write_bytes(file.data)  # of a model in memory it would put the weights beside it, and then not find them
        how: dict[str, Any] = {"per_channel": True, "weight_type": q.QuantType.QInt8}
        try:
            quant_pre_process(given, ready, skip_symbolic_shape=True)
            if _mostly_linear(model):
                told = DYNAMIC
                q.quantize_dynamic(ready, done, op_types_to_quantize=["MatMul", "Gemm"], **how)
            else:
                told = STATIC.format(len(example[0]))
                q.quantize_static(ready, done, _reader(model, example), activation_type=q.QuantType.QUInt8, **how)
        except Exception as error:  # noqa: BLE001 - it raises anything
            raise ConfigError(
                f"inference.precision int8: cannot quantize {file.source}: {one_line(error, 300)}"
            ) from None
        data = done.read_bytes()
    return replace(file, data=data, precision="int8", source=f"{file.source}, {told}")


def _mostly_linear(model: Any) -> bool:
    """By the numbers of weights."""
    sizes = {each.name: prod(each.dims) for each in model.graph.initializer}
    counted = {"Conv": 0, "MatMul": 0, "Gemm": 0}
    for node in model.graph.node:
        if node.op_type in counted:
            counted[node.op_type] += sum(sizes.get(name, 0) for name in node.input)
    return counted["MatMul"] + counted["Gemm"] > counted["Conv"]


def _reader(model: Any, example: Sequence[np.ndarray]) -> Any:
    """The example in batches that the model takes."""
    from onnxruntime.quantization import CalibrationDataReader

    names = [each.name for each in model.graph.input]
    axis = model.graph.input[0].type.tensor_type.shape.dim[0]
    fixed = axis.dim_value if axis.HasField("dim_value") else None
    rows = fixed or min(AT_ONCE, len(example[0]))
    places = [np.arange(at, at + rows) % len(example[0]) for at in range(0, len(example[0]), rows)]
    batches = iter([dict(zip(names, (each[place] for each in example), strict=True)) for place in places])

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(batches, None)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It advises, on the root logger, what is done here already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
