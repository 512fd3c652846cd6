"""Whether so many copies of a model fit into a GPU's memory, before any is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain.errors import ConfigError
from raytrain.infer.contract import BackendOptions, ModelFile

if TYPE_CHECKING:
    import torch

CONTEXT_BYTES = 500_000_000
"""Of a process on a GPU, for CUDA's context and the kernels that torch has loaded: an assumption, not measured here.
What NVIDIA's tools show of a process that has done little is from 0.3 to 0.5 GB, by card and driver."""
GB = 1e9


@dataclass(frozen=True)
class MemoryEstimate:
    """Of one process with one copy.

    Attributes:
        weights_bytes: in the precision that they are kept in.
        batch_bytes: of a batch and what is computed of it, at its peak; None where nobody knows.
        context_bytes: of CUDA; 0 on a CPU.
    """

    weights_bytes: int
    batch_bytes: int | None
    context_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + (self.batch_bytes or 0) + self.context_bytes


def estimated(file: ModelFile, options: BackendOptions, example: Sequence[np.ndarray]) -> MemoryEstimate:
    """Of a file as `find_model` returns it. Nothing is computed, and no memory taken but for the weights.

    A batch's share is the peak of the tensors that live at once in a forward pass of eager torch, without what kernels
    take for themselves (workspaces of convolutions): within 10 % of what the CPU's allocator hands out for a ViT and a
    ResNet, as tests/infer/test_backends_memory.py measures. Of an ONNX file it is not known.

    Args:
        example: (samples, ...) each, in the order of `ModelFile.arguments`.

    Raises:
        ConfigError: as `load`.
    """
    context = 0 if options.device == "cpu" else CONTEXT_BYTES
    if file.kind == "onnx":
        return MemoryEstimate(len(file.data), None, context)
    weights, batch = _of_torch(file, options, example)
    return MemoryEstimate(weights // 4 if options.precision == "int8" else weights, batch, context)


def _of_torch(file: ModelFile, options: BackendOptions, example: Sequence[np.ndarray]) -> tuple[int, int]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from raytrain.infer.backends.module import Predictor, built
    from raytrain.infer.backends.of_torch import Program, make_bf16

    bf16 = options.precision == "bf16"
    if file.kind == "export":
        program = Program(file)
        module, rows = Predictor(program), program.rows or max(options.batch_size, program.least)
    else:
        module, rows = Predictor(built(file), file.arguments, options.embeddings), options.batch_size
    if bf16:
        make_bf16(module)
    weights = sum({each.data_ptr(): each.nbytes for each in [*module.parameters(), *module.buffers()]}.values())
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    state = {name: fake.from_tensor(each) for name, each in module.state_dict().items()}
    with fake:
        inputs = [torch.empty((rows, *each.shape[1:]), dtype=torch.from_numpy(each[:0]).dtype) for each in example]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16), _peak_of_live(inputs) as peak:
            torch.func.functional_call(module, state, tuple(inputs))
    return weights, peak.most


def _peak_of_live(inputs: Sequence[torch.Tensor]) -> Any:
    """A context that notes in `most` how many bytes of storage there were at once, the inputs' included."""
    import weakref

    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Live(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.known: set[int] = set()
            self.now = self.most = sum(each.untyped_storage().nbytes() for each in inputs)
            self.before = [each.untyped_storage() for each in inputs]

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            given = {id(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if is_tensor(each)}
            returned = func(*args, **(kwargs or {}))
            for each in tree_leaves(returned):
                if is_tensor(each):
                    storage = each.untyped_storage()
                    if id(storage) not in self.known and id(storage) not in given:
                        self.add(storage)
            return returned

        def add(self, storage: Any) -> None:
            number, size = id(storage), storage.nbytes()
            self.known.add(number)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.drop, number, size)

        def drop(self, number: int, size: int) -> None:
            self.known.discard(number)
            self.now -= size

    def is_tensor(value: Any) -> bool:
        import torch

        return isinstance(value, torch.Tensor)

    return Live()


def check_fits(n: int, estimate: MemoryEstimate, total_bytes: int, batch_size: int) -> None:
    """
    Args:
        n: processes that share a GPU.
        total_bytes: of its memory.

    Raises:
        ConfigError: they do not fit, with the arithmetic.
    """
    each = estimate.total_bytes
    if n * each <= total_bytes:
        return
    batch = "" if estimate.batch_bytes is None else f" + {_gb(estimate.batch_bytes)} for a batch of {batch_size}"
    context = f" + {_gb(estimate.context_bytes)} context" if estimate.context_bytes else ""
    most = total_bytes // each
    mend = f"at most {most} fit; lower inference.tasks_per_gpu or" if most else "not one fits; lower"
    raise ConfigError(
        f"{n} tasks x ({_gb(estimate.weights_bytes)} weights{batch}{context}) = {_gb(n * each)}, but the GPU has "
        f"{_gb(total_bytes)}; {mend} inference.batch_size"
    )


def _gb(size: int) -> str:
    return f"{size / GB:.2f} GB" if size < GB else f"{size / GB:.1f} GB"
