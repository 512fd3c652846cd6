"""A model in the process that calls it, whatever computes."""

from __future__ import annotations

import contextlib

from raytrain.infer.contract import BackendOptions, LoadedModel, ModelFile


def load(file: ModelFile, options: BackendOptions) -> LoadedModel:
    """Of a file that `converted` has made for these options. Sets torch's threads of this process.

    Raises:
        ConfigError: a package is missing, or it cannot compute so here.
    """
    import torch

    torch.set_num_threads(options.threads)
    with contextlib.suppress(RuntimeError):  # of a process that has computed already
        torch.set_num_interop_threads(1)
    if options.backend == "onnx":
        from raytrain.infer.backends.of_onnx import OnnxModel

        return OnnxModel(file, options)
    if options.backend == "openvino":
        from raytrain.infer.backends.of_openvino import OpenVinoModel

        return OpenVinoModel(file, options)
    from raytrain.infer.backends.of_torch import TorchModel

    return TorchModel(file, options)
