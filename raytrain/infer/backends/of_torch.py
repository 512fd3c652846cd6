"""Torch: a module or an exported program, as it is or compiled."""

from __future__ import annotations

from typing import Any

import torch
from torch.export.passes import move_to_device_pass

from raytrain.errors import ConfigError, one_line
from raytrain.infer.backends.batches import Tensors, in_batches
from raytrain.infer.backends.module import Predictor, built
from raytrain.infer.backends.program_file import load_program
from raytrain.infer.contract import BackendOptions, ModelFile, Outputs

_LINEAR = (torch.nn.Linear, torch.nn.MultiheadAttention, torch.nn.modules.conv._ConvNd)


class TorchModel:
    """Called with tensors on its device.

    bf16 is autocast over weights that are bf16 already where autocast would make them so: alone it converts all of
    them for every batch, as it keeps converted ones for gradients only. What it computes in fp32, such as the
    statistics of a norm, keeps its precision, which a module turned to bf16 as a whole does not.
    """

    def __init__(self, file: ModelFile, options: BackendOptions):
        device = torch.device(options.device)
        self._kind, self._bf16, self._compiled = device.type, options.precision == "bf16", options.backend == "compile"
        self._rows: int | None = None
        self._least = 1
        if file.kind == "export":
            program = Program(file, options.device)
            self._rows, self._least = program.rows, program.least
            module = Predictor(program)
        else:
            module = Predictor(built(file), file.arguments, options.embeddings).to(device)
        self._channels_last = mostly_convolutions(module)
        if self._bf16:
            make_bf16(module)
        if self._channels_last:
            module.to(memory_format=torch.channels_last)
        self._module: Any = module
        if self._compiled:
            check_compiler(device.type)
            self._rows = self._rows or options.batch_size
            # weights as constants let convolutions and norms become one, and be laid out for the CPU beforehand
            self._module = torch.compile(module, options={"freezing": True} if device.type == "cpu" else None)

    def __call__(self, *inputs: torch.Tensor) -> Outputs:
        # what is made in inference mode is of another kind: filled up, the last batch would be compiled for anew
        mode = torch.no_grad() if self._compiled else torch.inference_mode()
        with mode, torch.autocast(self._kind, torch.bfloat16, enabled=self._bf16):
            return to_outputs(in_batches(self._call, inputs, self._rows, self._least))

    def _call(self, inputs: Tensors) -> Tensors:
        if self._channels_last:
            inputs = tuple(t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in inputs)
        return self._module(*inputs)


class Program(torch.nn.Module):
    """An exported program, called with its inputs in the order of `ModelFile.arguments`.

    Attributes:
        rows: samples that it takes, where it takes one number only.
        least: samples that it takes at least.
    """

    def __init__(self, file: ModelFile, device: str = "cpu"):
        super().__init__()
        program = load_program(file.data, file.source)
        if torch.device(device).type != "cpu":
            program = move_to_device_pass(program, device)
        names = list(program.graph_signature.user_inputs)
        self._order = order_of(file.arguments, names, file.source)
        self._positional = program.call_spec.in_spec.child(0).num_leaves
        self._keywords = list(program.call_spec.in_spec.child(1).context or ())
        self.rows, self.least = _batch_of(program, names)
        self.program = program.module()

    def forward(self, *inputs: torch.Tensor) -> Any:
        ordered = [inputs[place] for place in self._order]
        keywords = dict(zip(self._keywords, ordered[self._positional :], strict=True))
        return self.program(*ordered[: self._positional], **keywords)


def _batch_of(program: torch.export.ExportedProgram, names: list[str]) -> tuple[int | None, int]:
    size = next(node.meta["val"].shape[0] for node in program.graph.nodes if node.name == names[0])
    if isinstance(size, int):
        return size, 1
    found = program.range_constraints.get(size.node.expr)
    return None, 1 if found is None else max(int(found.lower), 1)


def order_of(arguments: tuple[str, ...], names: list[str], source: str) -> list[int]:
    """For each of the inputs of a file, by name, its place among the arguments.

    Raises:
        ConfigError: they are others.
    """
    if arguments == ("",) and len(names) == 1:
        return [0]
    if sorted(arguments) != sorted(names):
        told = ", ".join(arguments) if arguments != ("",) else "a field alone"
        raise ConfigError(
            f"model.inputs: {source} takes {', '.join(names)}, and not {told}; name the field of each of them"
        )
    return [arguments.index(name) for name in names]


def to_outputs(tensors: Tensors) -> Outputs:
    output, *more = (each.detach().to("cpu", torch.float32) for each in tensors)
    return Outputs(output, more[0] if more else None)


def make_bf16(module: torch.nn.Module) -> None:
    """The weights that autocast would convert, of linear layers, attention and convolutions."""
    for part in module.modules():
        if isinstance(part, _LINEAR):
            part.to(torch.bfloat16)


def mostly_convolutions(module: torch.nn.Module) -> bool:
    """Whether channels come last: more of its weights are two-dimensional convolutions' than not."""
    total = sum(each.numel() for each in module.parameters())
    convolved = sum(p.weight.numel() for p in module.modules() if isinstance(p, torch.nn.Conv2d))
    return convolved * 2 > total


def check_compiler(kind: str) -> None:
    """
    Raises:
        ConfigError: torch.compile has nothing to compile with.
    """
    if kind == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except (InvalidCxxCompiler, OSError) as error:
            raise ConfigError(
                f"inference.backend compile needs a C++ compiler on every host that predicts on its CPUs, such as g++ "
                f"({one_line(error, 100)}); install one, or use eager, onnx or openvino"
            ) from None
    else:
        try:
            import triton  # noqa: F401
        except ImportError:
            raise ConfigError(
                "inference.backend compile needs Triton on GPUs: pip install triton, or use eager"
            ) from None
