"""What copies of a model need, against what the allocator hands out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import small_models
import torch

from raytrain.errors import ConfigError
from raytrain.infer.backends.memory import CONTEXT_BYTES, MemoryEstimate, check_fits, estimated
from raytrain.infer.backends.module import Predictor, built
from raytrain.infer.contract import BackendOptions

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = BackendOptions(batch_size=16)


def measured_peak(file, inputs) -> int:
    """Bytes that torch's CPU allocator had handed out at once in a forward pass, the inputs included."""
    module = Predictor(built(file), file.arguments)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profile:
        kept = module(*inputs)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    assert kept and most > 0
    return most + sum(each.nbytes for each in inputs)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_a_batch_is_estimated_within_a_tenth_of_what_is_measured(trained, name):
    (images,), _ = small_models.samples(name, 16)
    estimate = estimated(trained(name), OPTIONS, (images[:1],))
    assert estimate.batch_bytes == pytest.approx(measured_peak(trained(name), (torch.from_numpy(images),)), rel=0.1)
    twice = estimated(trained(name), BackendOptions(batch_size=32), (images[:1],))
    assert twice.batch_bytes == pytest.approx(2 * estimate.batch_bytes, rel=0.02)


def test_weights_are_those_of_the_precision(trained):
    arrays, _ = small_models.samples("encoder", 2)
    module = built(trained("encoder"))
    whole = sum(each.nbytes for each in [*module.parameters(), *module.buffers()])
    full = estimated(trained("encoder"), OPTIONS, arrays)
    assert full.weights_bytes == whole and full.context_bytes == 0
    half = estimated(trained("encoder"), BackendOptions(precision="bf16", batch_size=16), arrays)
    assert 0.5 * whole <= half.weights_bytes < 0.7 * whole
    assert estimated(trained("encoder"), BackendOptions("onnx", "int8"), arrays).weights_bytes == whole // 4


def test_a_program_and_an_onnx_file(trained, tmp_path):
    from raytrain.config.inference import PredictingModel
    from raytrain.infer.backends.find import find_model

    (images,), _ = small_models.samples("vit", 4)
    program = torch.export.export(built(trained("vit")), (torch.from_numpy(images),))
    torch.export.save(program, tmp_path / "vit.pt2")
    file = find_model(PredictingModel(file=str(tmp_path / "vit.pt2")))
    of_module = estimated(trained("vit"), BackendOptions(batch_size=4), (images,))
    of_program = estimated(file, BackendOptions(batch_size=99), (images,))
    assert of_program.weights_bytes == pytest.approx(of_module.weights_bytes, rel=0.01)
    assert of_program.batch_bytes == pytest.approx(of_module.batch_bytes, rel=0.25), "four at once, freed sooner"
    onnx = replace(file, kind="onnx", data=b"onnx" * 1000)
    of_onnx = estimated(onnx, BackendOptions("onnx", device="cuda:0"), (images,))
    assert of_onnx == MemoryEstimate(len(onnx.data), None, CONTEXT_BYTES)


def test_nothing_is_computed(trained):
    """A batch that no machine could hold."""
    images = np.zeros((1, 3, 32, 32), np.float32)
    estimate = estimated(trained("vit"), BackendOptions(batch_size=10**9), (images,))
    assert estimate.batch_bytes > 10**13


def test_copies_that_fit_and_those_that_do_not():
    estimate = MemoryEstimate(350_000_000, 2_100_000_000, 500_000_000)
    check_fits(2, estimate, 8_000_000_000, 256)
    check_fits(2, estimate, estimate.total_bytes * 2, 256)
    message = (
        r"4 tasks x \(0.35 GB weights \+ 2.1 GB for a batch of 256 \+ 0.50 GB context\) = 11.8 GB, but the GPU has "
        r"8.0 GB; at most 2 fit; lower inference.tasks_per_gpu or inference.batch_size"
    )
    with pytest.raises(ConfigError, match=message):
        check_fits(4, estimate, 8_000_000_000, 256)
    with pytest.raises(ConfigError, match="0.50 GB context.* not one fits; lower inference.batch_size"):
        check_fits(1, estimate, 2_000_000_000, 256)
    with pytest.raises(ConfigError, match=r"2 tasks x \(5.0 GB weights\) = 10.0 GB"):
        check_fits(2, MemoryEstimate(5_000_000_000, None), 8_000_000_000, 256)
