"""Into ONNX and int8, and one line for every back end that cannot take a model."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import small_models
import torch

from raytrain.config.inference import PredictingModel
from raytrain.errors import ConfigError
from raytrain.infer.backends import convert, of_torch
from raytrain.infer.backends.convert import converted
from raytrain.infer.backends.find import find_model
from raytrain.infer.backends.load import load
from raytrain.infer.backends.module import built
from raytrain.infer.backends.of_openvino import imported
from raytrain.infer.contract import BackendOptions

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("one_thread")]
EXAMPLE = (np.ones((3, 3, 2), np.float32),)


@pytest.fixture(scope="module")
def sums():
    return find_model(PredictingModel(name="small_models:sums"))


@pytest.fixture(scope="module")
def sums_in_onnx(sums):
    return converted(sums, BackendOptions("onnx"), EXAMPLE)


@pytest.fixture(scope="module")
def onnx_file(sums_in_onnx, tmp_path_factory):
    """As a user has it, of the sums, with a free batch."""
    path = tmp_path_factory.mktemp("onnx") / "sums.onnx"
    path.write_bytes(sums_in_onnx.data)
    return path


def of_file(path, **section):
    return find_model(PredictingModel(file=str(path), **section))


def test_it_is_another_file_once_it_is_converted(sums, sums_in_onnx):
    file = sums_in_onnx
    assert (file.kind, file.model, file.precision, file.arguments) == ("onnx", None, "fp32", ("",))
    assert file.digest and file.digest != sums.digest
    assert converted(file, BackendOptions("openvino"), EXAMPLE) == file
    assert converted(sums, BackendOptions(), EXAMPLE) == sums


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("fixed", [False, True])
def test_an_onnx_file_is_computed_as_it_is(onnx_file, tmp_path, backend, fixed):
    if fixed:
        model = onnx.load(onnx_file)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
        onnx_file = tmp_path / "fixed.onnx"
        onnx.save(model, onnx_file)
    options = BackendOptions(backend, batch_size=8)
    model = load(converted(of_file(onnx_file), options, EXAMPLE), options)
    for num in (1, 4, 8, 9):
        x = torch.arange(num * 6.0).reshape(num, 3, 2)
        torch.testing.assert_close(model(x).output, x.sum((1, 2)).repeat(2, 1).T)


@pytest.mark.parametrize("rows", [torch.export.Dim.AUTO, None], ids=["any number", "three only"])
def test_an_exported_program_becomes_onnx(tmp_path, rows):
    shapes = ({0: rows} if rows else {},)
    program = torch.export.export(small_models.sums().eval(), (torch.ones(3, 3, 2),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "sums.pt2")
    file = converted(of_file(tmp_path / "sums.pt2"), BackendOptions("onnx"), EXAMPLE)
    for backend in ("onnx", "openvino"):
        model = load(file, BackendOptions(backend, batch_size=8))
        for num in (1, 3, 8):
            x = torch.arange(num * 6.0).reshape(num, 3, 2)
            torch.testing.assert_close(model(x).output, x.sum((1, 2)).repeat(2, 1).T)


def test_the_output_called_logits_is_the_one(onnx_file, tmp_path):
    model = onnx.load(onnx_file)
    model.graph.node.append(onnx.helper.make_node("Neg", [model.graph.output[0].name], ["logits"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None))
    onnx.save(model, tmp_path / "two.onnx")
    for backend in ("onnx", "openvino"):
        options = BackendOptions(backend)
        two = load(converted(of_file(tmp_path / "two.onnx"), options, EXAMPLE), options)
        assert two(torch.ones(1, 3, 2)).output.tolist() == [[-6, -6]]


def test_inputs_are_cast_to_what_the_file_takes(onnx_file):
    for backend in ("onnx", "openvino"):
        options = BackendOptions(backend)
        model = load(of_file(onnx_file), options)
        assert model(torch.ones(2, 3, 2, dtype=torch.float64)).output.tolist() == [[6, 6], [6, 6]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "eager"}, "inference.backend eager cannot take .*sums.onnx, an ONNX file; use onnx or openvino"),
        ({"backend": "compile"}, "inference.backend compile cannot take"),
        ({"backend": "onnx", "precision": "bf16"}, "ONNX Runtime has hardly any operation in it"),
        ({"backend": "openvino", "device": "cuda:0"}, "openvino computes on CPUs: set inference.device: cpu"),
        ({"backend": "onnx", "embeddings": True}, r"sums.onnx has no output of the name 'embeddings' \(it has output"),
    ],
)
def test_what_an_onnx_file_cannot(onnx_file, options, message):
    with pytest.raises(ConfigError, match=message):
        converted(of_file(onnx_file), BackendOptions(**options), EXAMPLE)


@pytest.mark.parametrize("backend", ["eager", "compile"])
def test_int8_is_not_for_torch(sums, backend):
    with pytest.raises(ConfigError, match=f"int8 is for the back ends onnx and openvino, and not for {backend}"):
        converted(sums, BackendOptions(backend, "int8"), EXAMPLE)


def test_embeddings_that_a_model_does_not_have(sums, tmp_path):
    for backend in ("eager", "onnx"):
        with pytest.raises(ConfigError, match=r"Sums has no forward_features and forward_head\(pre_logits\)"):
            converted(sums, BackendOptions(backend, embeddings=True), EXAMPLE)
    torch.export.save(torch.export.export(small_models.sums(), (torch.ones(2, 2),)), tmp_path / "sums.pt2")
    with pytest.raises(ConfigError, match="is an exported program, which has its outputs only"):
        converted(of_file(tmp_path / "sums.pt2"), BackendOptions(embeddings=True), EXAMPLE)


def test_onnx_files_that_are_none(onnx_file, tmp_path):
    bad = tmp_path / "bad.onnx"
    for data, message in ((b"\xff" * 9, "is no ONNX file, or was cut off"), (b"", "it has no inputs or no outputs")):
        bad.write_bytes(data)
        with pytest.raises(ConfigError, match=message):
            converted(of_file(bad), BackendOptions("onnx"), EXAMPLE)
    bad.write_bytes(b"\xff" * 9)
    with pytest.raises(ConfigError, match="ONNX Runtime cannot load .*bad.onnx"):
        load(of_file(bad), BackendOptions("onnx"))
    with pytest.raises(ConfigError, match="OpenVINO cannot load .*bad.onnx"):
        load(of_file(bad), BackendOptions("openvino"))
    model = onnx.load(onnx_file)
    weight = onnx.numpy_helper.from_array(np.ones(9, np.float32), "w")
    model.graph.initializer.append(weight)
    onnx.external_data_helper.set_external_data(model.graph.initializer[-1], "w.bin")
    bad.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="keeps its weights in other files; save it with external_data=False"):
        converted(of_file(bad), BackendOptions("onnx"), EXAMPLE)
    with pytest.raises(ConfigError, match="sums.onnx takes input, and not image; name the field of each"):
        converted(of_file(onnx_file, inputs={"image": "x"}), BackendOptions("onnx"), EXAMPLE)


def test_a_module_that_cannot_be_traced(sums):
    text = replace(sums, model=sums.model.model_copy(update={"options": {"how": "text"}}))
    with pytest.raises(ConfigError, match="cannot convert .* to ONNX: .*; use inference.backend eager or compile"):
        converted(text, BackendOptions("onnx"), EXAMPLE)


def test_weights_that_no_onnx_file_holds(sums, monkeypatch):
    proto = SimpleNamespace(ByteSize=lambda: 3_000_000_000)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: SimpleNamespace(model_proto=proto))
    with pytest.raises(ConfigError, match="has 3.0 GB of weights, and an ONNX file holds 2.1 GB; use"):
        converted(sums, BackendOptions("onnx"), EXAMPLE)


def test_what_cannot_be_quantized(onnx_file):
    """Calibration is given an input more than there is."""
    with pytest.raises(ConfigError, match="int8: cannot quantize .*sums.onnx: "):
        converted(of_file(onnx_file), BackendOptions("onnx", "int8"), (*EXAMPLE, *EXAMPLE))


def test_openvino_tells_nobody_of_its_import():
    """By a process of its own, which a test that is pure would notice as well."""
    imported("cpu")
    assert "openvino_telemetry" not in sys.modules and "openvino" in sys.modules


@pytest.mark.parametrize(
    ("package", "backend", "message"),
    [
        ("onnxruntime", "onnx", r"inference.backend onnx needs ONNX Runtime: pip install 'raytrain\[onnx\]'"),
        ("openvino", "openvino", r"inference.backend openvino needs OpenVINO: pip install 'raytrain\[openvino\]'"),
    ],
)
def test_a_package_that_is_missing(onnx_file, monkeypatch, package, backend, message):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=message):
        load(of_file(onnx_file), BackendOptions(backend))


def test_a_package_that_converting_needs(sums, monkeypatch):
    monkeypatch.setattr(convert, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(ConfigError, match=r"inference.backend onnx needs onnxscript: pip install 'raytrain\[onnx\]'"):
        converted(sums, BackendOptions("onnx"), EXAMPLE)


def test_a_gpu_without_its_onnx_runtime(onnx_file):
    with pytest.raises(ConfigError, match="this ONNX Runtime computes on CPUs only; pip install onnxruntime-gpu"):
        load(of_file(onnx_file), BackendOptions("onnx", device="cuda:0"))


def test_nothing_to_compile_with(monkeypatch):
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none():
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(ConfigError, match=r"compile needs a C\+\+ compiler on every host"):
        of_torch.check_compiler("cpu")
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ConfigError, match="compile needs Triton on GPUs"):
        of_torch.check_compiler("cuda")


@pytest.mark.parametrize("sides_vary", [False, True])
def test_images_of_several_sizes(sides_vary):
    file = find_model(PredictingModel(name="small_models:pooled"))
    options = BackendOptions("onnx")
    model = load(converted(file, options, (np.ones((2, 3, 8, 8), np.float32),), sides_vary=sides_vary), options)
    assert model(torch.ones(3, 3, 8, 8)).output.shape == (3, 4)
    images = torch.rand(3, 3, 9, 12)
    if sides_vary:
        torch.testing.assert_close(model(images).output, built(file)(images), rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(Exception, match="Expected: 8"):
            model(images)


COMPILED = """
import sys, torch, small_models
from raytrain.infer.backends.find import find_model
from raytrain.infer.backends.load import load
from raytrain.infer.backends.module import built
from raytrain.infer.backends.of_openvino import imported
from raytrain.infer.contract import BackendOptions
from torch._dynamo.utils import counters

file = find_model(small_models.section("encoder"))
plain, model = (load(file, BackendOptions(each, batch_size=4)) for each in ("eager", "compile"))
for num, length in ((4, 12), (4, 12), (2, 12), (1, 12), (4, 9), (3, 9), (4, 7), (2, 20)):
    arrays, _ = small_models.samples("encoder", num, length=length)
    inputs = [torch.from_numpy(each) for each in arrays]
    torch.testing.assert_close(model(*inputs).output, plain(*inputs).output, rtol=1e-4, atol=1e-4)
print(counters["stats"]["unique_graphs"])
"""


@pytest.mark.process
def test_compiled_it_is_the_same_and_compiled_twice_at_most():
    """For the first shape, and for any length; shorter batches are filled up."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, cwd="tests")
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) <= 2
