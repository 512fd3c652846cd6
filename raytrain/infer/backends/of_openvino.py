"""OpenVINO, on CPUs."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Any

import torch

from raytrain.errors import ConfigError, one_line
from raytrain.infer.backends.batches import Tensors, in_batches
from raytrain.infer.backends.of_onnx import chosen_outputs
from raytrain.infer.backends.of_torch import order_of, to_outputs
from raytrain.infer.contract import BackendOptions, ModelFile, Outputs

TELEMETRY = "openvino_telemetry"


class OpenVinoModel:
    """One stream that does not bind its threads: whoever starts it has bound the process to its cores.

    Where the batch alone is of any length it is given its full one, and the last is filled up: shapes that are known
    when the graph is compiled make it faster.
    """

    def __init__(self, file: ModelFile, options: BackendOptions):
        openvino = imported(options.device)
        core = openvino.Core()
        try:
            model = core.read_model(io.BytesIO(file.data))
            names = [port.get_any_name() for port in model.inputs]
            self._order = order_of(file.arguments, names, file.source)
            self._rows = _fix_batch(openvino, model, options.batch_size)
            self._compiled = core.compile_model(model, "CPU", _settings(options))
        except RuntimeError as error:
            raise ConfigError(f"OpenVINO cannot load {file.source}: {one_line(error, 300)}") from None
        self._types = [port.element_type.to_dtype() for port in self._compiled.inputs]
        ports = {name: port for port in self._compiled.outputs for name in port.get_names()}
        first = [port.get_any_name() for port in self._compiled.outputs]
        self._outputs = [ports[name] for name in chosen_outputs(first, options, file.source)]

    def __call__(self, *inputs: torch.Tensor) -> Outputs:
        with torch.inference_mode():
            return to_outputs(in_batches(self._call, inputs, self._rows))

    def _call(self, inputs: Tensors) -> Tensors:
        ordered = (inputs[place] for place in self._order)
        pairs = zip(ordered, self._types, strict=True)
        arrays = [each.contiguous().numpy().astype(kind, copy=False) for each, kind in pairs]
        returned = self._compiled(arrays, share_inputs=True)
        return tuple(torch.from_numpy(returned[port]) for port in self._outputs)


def imported(device: str) -> Any:
    """
    Raises:
        ConfigError: it is not installed, or the device is no CPU.
    """
    if torch.device(device).type != "cpu":
        raise ConfigError("inference.backend openvino computes on CPUs: set inference.device: cpu, or use another")
    try:
        with _without_telemetry():
            import openvino
    except ImportError:
        raise ConfigError("inference.backend openvino needs OpenVINO: pip install 'raytrain[openvino]'") from None
    return openvino


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    """Imported as it is, OpenVINO forks the process to tell its maker of it; it takes a package that is not there for
    a no."""
    if TELEMETRY in sys.modules:
        yield
        return
    sys.modules[TELEMETRY] = None
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]


def _settings(options: BackendOptions) -> dict[str, Any]:
    return {
        "INFERENCE_NUM_THREADS": options.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if options.precision == "bf16" else "f32",
        "ENABLE_CPU_PINNING": False,
    }


def _fix_batch(openvino: Any, model: Any, batch_size: int) -> int | None:
    """How many samples it takes from now on; None where it takes any number."""
    shapes = {port.get_any_name(): port.get_partial_shape() for port in model.inputs}
    first = next(iter(shapes.values()))[0]
    if first.is_static:
        return first.get_length()
    if any(axis.is_dynamic for shape in shapes.values() for axis in list(shape)[1:]):
        return None
    model.reshape({name: openvino.PartialShape([batch_size, *list(shape)[1:]]) for name, shape in shapes.items()})
    return batch_size
