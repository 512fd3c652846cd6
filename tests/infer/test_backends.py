"""Every back end and precision against the plain module in fp32."""

from __future__ import annotations

from functools import cache

import pytest
import small_models
import torch

from raytrain.config.inference import PredictingModel
from raytrain.errors import ConfigError
from raytrain.infer.backends.convert import converted
from raytrain.infer.backends.find import find_model
from raytrain.infer.backends.load import load
from raytrain.infer.backends.module import built
from raytrain.infer.contract import BackendOptions

pytestmark = [pytest.mark.models, pytest.mark.usefixtures("one_thread")]
MODELS = ("vit", "resnet", "encoder")
CONVERTED = MODELS[1:]  # the ViT with its embeddings and in int8 alone, since it takes longest
BATCH = 8
NUM = 256


@pytest.fixture(scope="module")
def files(trained):
    """A model as a back end takes it. Into ONNX it is converted once, and into int8 once."""

    @cache
    def made(name: str, backend: str, precision: str, embeddings: bool):
        file = trained(name)
        if backend == "openvino":
            file = made(name, "onnx", "int8" if precision == "int8" else "fp32", embeddings)
        elif precision == "int8":
            file = made(name, backend, "fp32", embeddings)
        options = BackendOptions(backend, precision, embeddings=embeddings)
        return converted(file, options, small_models.samples(name, 64, seed=1)[0])

    def of(name: str, backend: str, precision: str = "fp32", embeddings: bool = False):
        return made(name, backend, precision, embeddings)

    return of


@pytest.fixture(scope="module")
def ready(files):
    """A model that has been loaded."""

    @cache
    def of(name: str, **options):
        return load(files(name, **options), BackendOptions(batch_size=BATCH, **options))

    return of


@pytest.fixture(scope="module")
def plain(trained):
    """Inputs, and what the module itself says of them."""

    @cache
    def of(name: str, num: int, length: int = 12) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        arrays, _ = small_models.samples(name, num, seed=2, length=length)
        inputs = tuple(map(torch.from_numpy, arrays))
        with torch.no_grad():
            returned = built(trained(name))(*inputs)
        return inputs, returned["logits"] if isinstance(returned, dict) else returned

    return of


def predicted(model, inputs, batch=BATCH) -> torch.Tensor:
    parts = [model(*(each[at : at + batch] for each in inputs)) for at in range(0, len(inputs[0]), batch)]
    assert all(part.output.dtype == torch.float32 and part.output.device.type == "cpu" for part in parts)
    return torch.cat([part.output for part in parts])


def agreement(got: torch.Tensor, want: torch.Tensor) -> float:
    return (got.argmax(1) == want.argmax(1)).float().mean().item()


@pytest.mark.parametrize("name", MODELS)
def test_the_models_have_learnt_what_their_first_choice_is(plain, name):
    arrays, labels = small_models.samples(name, NUM, seed=2)
    _, want = plain(name, NUM)
    assert (want.argmax(1).numpy() == labels).mean() > 0.9


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "eager") for name in MODELS), *((name, kind) for name in CONVERTED for kind in ("onnx", "openvino"))],
)
def test_fp32_is_the_plain_module(ready, plain, name, backend):
    """Of a last, shorter batch as well: 21 samples are 8, 8 and 5."""
    inputs, want = plain(name, 21)
    got = predicted(ready(name, backend=backend), inputs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "onnx", "openvino"])
def test_the_length_of_tokens_varies(ready, plain, backend):
    for length in (5, 12, 30):
        inputs, want = plain("encoder", 3, length)
        got = predicted(ready("encoder", backend=backend), inputs)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", ["eager", "onnx", "openvino"])
def test_a_batch_of_one_and_a_full_one_say_the_same(ready, plain, backend):
    inputs, _ = plain("resnet", 21)
    model = ready("resnet", backend=backend)
    torch.testing.assert_close(predicted(model, inputs, 1), predicted(model, inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "backend"), [*((name, "eager") for name in MODELS), *((name, "openvino") for name in CONVERTED)]
)
def test_bf16_chooses_the_same(ready, plain, name, backend):
    """Eight bits of mantissa: outputs differ by less than 3 % of their spread."""
    inputs, want = plain(name, NUM)
    got = predicted(ready(name, backend=backend, precision="bf16"), inputs)
    assert (got - want).abs().max() < 0.03 * (want.max() - want.min())
    assert agreement(got, want) >= 0.98


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
@pytest.mark.parametrize("name", CONVERTED)
def test_int8_chooses_the_same(ready, plain, name, backend):
    inputs, want = plain(name, NUM)
    got = predicted(ready(name, backend=backend, precision="int8"), inputs)
    assert 0 < (got - want).abs().max() < 0.15 * (want.max() - want.min())
    assert agreement(got, want) >= 0.97


def test_int8_says_what_is_in_it(files, trained, tmp_path):
    linear, every = (files(name, backend="onnx", precision="int8") for name in ("vit", "resnet"))
    assert linear.source.endswith(", linear layers in int8, by the range of each batch")
    assert every.source.endswith(", in int8, by the ranges of 64 samples")
    for file in (linear, every):
        assert file.precision == "int8" and converted(file, BackendOptions("onnx", "int8"), ()) == file
    assert len(linear.data) < 0.6 * len(trained("vit").data)
    (tmp_path / "int8.onnx").write_bytes(linear.data)
    with pytest.raises(ConfigError, match="int8.onnx has been quantized already; say fp32 to use it so"):
        found = find_model(PredictingModel(file=str(tmp_path / "int8.onnx")))
        converted(found, BackendOptions("onnx", "int8"), small_models.samples("vit", 4)[0])


def test_an_exported_program_computes_in_bf16_as_well(plain, trained, tmp_path):
    inputs, want = plain("vit", NUM)
    program = torch.export.export(built(trained("vit")), tuple(each[:BATCH] for each in inputs))
    torch.export.save(program, tmp_path / "vit.pt2")
    file = find_model(PredictingModel(file=str(tmp_path / "vit.pt2")))
    exact = predicted(load(file, BackendOptions(batch_size=BATCH)), inputs)
    torch.testing.assert_close(exact, want, rtol=1e-4, atol=1e-4)
    got = predicted(load(file, BackendOptions(precision="bf16", batch_size=BATCH)), inputs)
    assert 1e-4 < (got - want).abs().max() < 0.03 * (want.max() - want.min())


def test_bf16_weights_are_half_as_large_where_they_are_many(trained):
    from raytrain.infer.backends.of_torch import make_bf16

    for name in MODELS:
        module = built(trained(name))
        make_bf16(module)
        small = sum(each.numel() for each in module.parameters() if each.dtype == torch.bfloat16)
        assert small > 0.75 * sum(each.numel() for each in module.parameters()), name


@pytest.mark.parametrize(
    ("name", "backend"), [("vit", "eager"), ("vit", "onnx"), ("vit", "openvino"), ("resnet", "eager")]
)
def test_embeddings_come_with_the_output(ready, plain, trained, name, backend):
    inputs, want = plain(name, 5)
    got = ready(name, backend=backend, embeddings=True)(*inputs)
    module = built(trained(name))
    with torch.no_grad():
        embedded = module.forward_head(module.forward_features(*inputs), pre_logits=True)
    torch.testing.assert_close(got.output, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got.embeddings, embedded, rtol=1e-4, atol=1e-4)
    assert got.embeddings.ndim == 2


def test_threads_are_those_of_the_options(trained):
    load(trained("vit"), BackendOptions(threads=2))
    assert torch.get_num_threads() == 2
