"""ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from raytrain.errors import ConfigError, one_line
from raytrain.infer.backends.batches import Tensors, in_batches
from raytrain.infer.backends.module import LOGITS
from raytrain.infer.backends.of_torch import order_of, to_outputs
from raytrain.infer.contract import BackendOptions, ModelFile, Outputs

EMBEDDINGS = "embeddings"
CUDA = "CUDAExecutionProvider"
_TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}


class OnnxModel:
    """Called with tensors on its device, which are bound to its inputs where they lie; outputs come on the CPU."""

    def __init__(self, file: ModelFile, options: BackendOptions):
        self._session = _session(file, options)
        inputs = self._session.get_inputs()
        self._names = [each.name for each in inputs]
        self._order = order_of(file.arguments, self._names, file.source)
        self._types = [_TYPES.get(each.type, torch.float32) for each in inputs]
        first = inputs[0].shape[0] if inputs[0].shape else None
        self._rows = first if isinstance(first, int) else None
        self._outputs = chosen_outputs([each.name for each in self._session.get_outputs()], options, file.source)
        device = torch.device(options.device)
        self._device, self._number = device.type, device.index or 0

    def __call__(self, *inputs: torch.Tensor) -> Outputs:
        with torch.inference_mode():
            return to_outputs(in_batches(self._call, inputs, self._rows))

    def _call(self, inputs: Tensors) -> Tensors:
        binding: Any = self._session.io_binding()
        held = []  # until it has run
        for name, place, dtype in zip(self._names, self._order, self._types, strict=True):
            tensor = inputs[place].to(dtype).contiguous()
            held.append(tensor)
            kind = np.dtype(str(dtype).removeprefix("torch."))
            binding.bind_input(name, self._device, self._number, kind, tuple(tensor.shape), tensor.data_ptr())
        for name in self._outputs:
            binding.bind_output(name, "cpu")
        if self._device == "cuda":
            torch.cuda.current_stream().synchronize()
        self._session.run_with_iobinding(binding)
        return tuple(torch.from_numpy(each) for each in binding.copy_outputs_to_cpu())


def chosen_outputs(names: list[str], options: BackendOptions, source: str) -> list[str]:
    """The one called `logits`, else the first, and the embeddings where they are asked for.

    Raises:
        ConfigError: it has none.
    """
    output = LOGITS if LOGITS in names else names[0]
    if not options.embeddings:
        return [output]
    if EMBEDDINGS not in names:
        raise ConfigError(
            f"model.embeddings: {source} has no output of the name {EMBEDDINGS!r} (it has {', '.join(names)}); leave "
            "it out, or export the model with one"
        )
    return [output, EMBEDDINGS]


def _session(file: ModelFile, options: BackendOptions) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError("inference.backend onnx needs ONNX Runtime: pip install 'raytrain[onnx]'") from None
    on_gpu = torch.device(options.device).type != "cpu"
    if on_gpu and CUDA not in onnxruntime.get_available_providers():
        raise ConfigError(
            "inference.backend onnx: this ONNX Runtime computes on CPUs only; pip install onnxruntime-gpu in the place "
            "of onnxruntime on the hosts with GPUs, or set inference.device: cpu"
        )
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = options.threads, 1
    settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    settings.log_severity_level = 3
    number = torch.device(options.device).index or 0
    providers: list[Any] = [(CUDA, {"device_id": number})] if on_gpu else ["CPUExecutionProvider"]
    try:
        return onnxruntime.InferenceSession(file.data, settings, providers=providers)
    except Exception as error:  # noqa: BLE001 - it raises a dozen kinds without a common one
        raise ConfigError(f"ONNX Runtime cannot load {file.source}: {one_line(error, 300)}") from None
