"""A module as a file that another runtime loads, and that the file says what the module does."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from raytrain.errors import ConfigError, one_line
from raytrain.infer.contract import BackendOptions, ModelFile

if TYPE_CHECKING:
    import torch

BATCHES = (1, 5)  # that a program is tried with; neither is that of its example
TOLERANCE = 1e-3  # of the largest output: operations are put together, and added up in another order


def safetensors_of(file: ModelFile) -> bytes:
    import torch
    from safetensors.torch import save

    state = torch.load(io.BytesIO(file.data), map_location="cpu", weights_only=True)
    return save({name: value.clone().contiguous() for name, value in state.items()})  # tied ones share memory


def exported_program(file: ModelFile, shape: Sequence[int]) -> bytes:
    """What torch.export.save writes, for any batch size.

    Raises:
        ConfigError: torch cannot export it.
    """
    import torch

    module, out = _plain(file), io.BytesIO()
    try:
        with torch.no_grad():
            axes = {"inputs": ({0: torch.export.Dim("batch", min=1)},)}
            program = torch.export.export(module, (torch.zeros(2, *shape),), dynamic_shapes=axes)
        torch.export.save(program, out)
    except Exception as error:  # noqa: BLE001 - of a module that it cannot trace torch raises anything
        raise ConfigError(
            f"cannot export {file.source} with torch.export for inputs of shape {list(shape)}: "
            f"{one_line(error, 300)}; use --format safetensors"
        ) from None
    return out.getvalue()


def onnx_file(file: ModelFile, shape: Sequence[int]) -> bytes:
    """An ONNX file, for any batch size.

    Raises:
        ConfigError: torch cannot convert it, or onnx is not installed.
    """
    import numpy as np

    from raytrain.infer.backends.convert import converted

    return converted(file, BackendOptions(backend="onnx"), [np.zeros((2, *shape), np.float32)]).data


def check_same(file: ModelFile, written: bytes, kind: str, shape: Sequence[int]) -> None:
    """What was written against the module, for several batch sizes.

    Raises:
        ConfigError: it cannot be run, or says something else.
    """
    import torch

    module = _plain(file)
    random = torch.Generator().manual_seed(0)
    try:
        run = _opened(written, kind)
        apart = []
        for rows in BATCHES:
            given = torch.randn(rows, *shape, generator=random)
            with torch.no_grad():
                wanted, found = module(given), run(given)
            if wanted.shape != found.shape:
                raise ValueError(f"it returns {list(found.shape)} for {list(wanted.shape)}")
            apart.append(float((wanted - found).abs().max() / wanted.abs().max().clamp(min=1e-6)))
    except Exception as error:  # noqa: BLE001 - a runtime raises anything of its own
        raise ConfigError(f"the {kind} file of {file.source} does not run: {one_line(error, 300)}") from None
    if not all(each <= TOLERANCE for each in apart):  # NaN is not
        raise ConfigError(
            f"the {kind} file of {file.source} differs from the model by {max(apart):.2g} of its largest output; use "
            "--format safetensors"
        )


def _opened(written: bytes, kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    if kind == "torch-export":
        return torch.export.load(io.BytesIO(written)).module()
    import onnxruntime

    session = onnxruntime.InferenceSession(written, providers=["CPUExecutionProvider"])
    return lambda given: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: given.numpy()})[0])


def _plain(file: ModelFile) -> torch.nn.Module:
    """The module of a file, which returns its prediction alone."""
    from raytrain.infer.backends.module import First, built

    return First(built(file), file.arguments)
