"""Estimated device seconds: by hand, against figures that others published, and marked as what they are."""

from __future__ import annotations

import pytest
from conftest import ROOT
from money import profile

from raytrain.config import Model
from raytrain.cost import typical
from raytrain.cost.instances import catalog
from raytrain.cost.planner import Bounds, plan
from raytrain.cost.profile import Figure
from raytrain.cost.typical import PEAKS, Peak, typical_s, with_typical
from raytrain.errors import ConfigError
from raytrain.planning import with_accelerators, with_estimates
from raytrain.train.flops import training_work

ON_CPU = {"accelerator_s_per_sample": {"CPU": Figure.once(0.05)}}


def training_flops(model, *image):
    return training_work(model, *image).flops


def job(**changes):
    return {
        "name": "toy",
        "model": {"name": "vit_tiny_patch16_224"},
        "data": {"train": {"kind": "image_folder", "path": "x"}, "stages": ["decode", {"resize": {"size": 224}}]},
        "training": {"epochs": 10, "precision": "bf16"},
        **changes,
    }


def test_seconds_by_hand():
    """70 TFLOPS at 35 % are 24.5: 49 GFLOP take 2 ms. In fp32 it has half as many."""
    assert typical_s(49e9, 0.0, "A10G", "bf16") == pytest.approx(0.002)
    assert typical_s(49e9, 0.0, "A10G", "fp16") == pytest.approx(0.002)
    assert typical_s(49e9, 0.0, "A10G", "fp32") == pytest.approx(0.004)


def test_a_small_model_waits_for_its_operators():
    """640 of them for a batch of 64 are ten a sample, 10 us each, unless the computing takes longer."""
    assert typical_s(1e6, 640 / 64, "A10G", "bf16") == pytest.approx(1e-4)
    assert typical_s(49e9, 640 / 64, "A10G", "bf16") == pytest.approx(0.002)


def test_operators_are_counted_for_a_batch_forward_and_backward():
    """A rectifier is one; a linear layer, which also turns its weight and its batch, is four; twice that backwards."""
    layer = Model(name="torch.nn:Linear", options={"in_features": 5, "out_features": 7})
    work = training_work(layer, 1, 5, 1)
    assert (training_work(Model(name="torch.nn:ReLU"), 1, 5, 1).calls, work.calls) == (3, 12)
    assert work.flops == 3 * 2 * 5 * 7


def test_the_peaks_are_dense_and_of_known_gpus():
    """Tensor cores have more than the rest of a chip; the table names no GPU that the catalog does not."""
    assert set(PEAKS) <= {each.gpu for each in catalog().types.values()}
    assert all(2 <= peak.half / peak.single < 31 and "data sheet" in peak.source for peak in PEAKS.values())
    assert (PEAKS["H100"].half, PEAKS["A100"].half, PEAKS["T4"].half) == (989.0, 312.0, 65.0)


@pytest.mark.parametrize(
    ("model", "giga_macs"),
    [("resnet18", 1.81), ("resnet50", 4.09), ("vit_tiny_patch16_224", 1.26), ("vit_small_patch16_224", 4.6)],
)  # fmt: skip
def test_operations_are_those_of_the_papers(model, giga_macs):
    """Papers count a multiplication and an addition as one, and the forward pass alone."""
    flops = training_flops(Model(name=model), 224, 224, 3)
    assert flops == pytest.approx(3 * 2 * giga_macs * 1e9, rel=0.02)


@pytest.mark.parametrize(("model", "images_per_s"), [("resnet50", 1218.01), ("vit_small_patch16_224", 1057.92)])
def test_the_share_of_peak_is_what_others_measured(model, images_per_s, monkeypatch):
    """timm's training benchmark on an RTX 3090, whose dense peak is 71 TFLOPS: within a third."""
    monkeypatch.setitem(typical.PEAKS, "RTX 3090", Peak(71.0, 35.6, "NVIDIA GA102 white paper"))
    estimated = 1 / typical_s(training_flops(Model(name=model), 224, 224, 3), 1.0, "RTX 3090", "fp16")
    assert estimated == pytest.approx(images_per_s, rel=1 / 3)


def test_operations_grow_with_the_image_and_need_no_download():
    small = training_flops(Model(name="resnet18", options={"pretrained": True}), 112, 112, 3)
    assert training_flops(Model(name="resnet18"), 224, 224, 3) == pytest.approx(4 * small, rel=0.1)


def test_estimates_are_marked_and_only_where_no_gpu_was_measured():
    found = with_estimates(profile(**ON_CPU, job=job()), catalog())
    assert found.accelerator_s_per_sample["CPU"].value == 0.05
    flops = training_flops(Model(name="vit_tiny_patch16_224"), 224, 224, 3)
    assert found.accelerator_s_per_sample["T4"].value == pytest.approx(flops / (65e12 * 0.35))
    calls = training_work(Model(name="vit_tiny_patch16_224"), 224, 224, 3).calls
    assert found.accelerator_s_per_sample["B200"].value == pytest.approx(calls / 64 * 10e-6)
    assert set(found.accelerator_s_per_sample) == {"CPU", *PEAKS}
    assert found.estimated.startswith("device seconds are ESTIMATES, nothing was measured: 7.5")
    assert "GFLOP to train on a sample (vit_tiny_patch16_224 on 224x224 images), at 35% of what" in found.estimated
    assert plan(found, catalog(), Bounds("us-east-1")).assumptions[0] == found.estimated
    measured = profile(job=job())
    assert with_estimates(measured, catalog()) == measured
    given = with_accelerators(profile(**ON_CPU, job=job()), ["L4=0.5"], catalog())
    assert with_estimates(given, catalog()) == given


FOLDER = {"kind": "image_folder", "path": "x"}
NOISE = {"kind": "synthetic", "num_samples": 9, "shape": [48, 32, 3]}
TOLD = {"name": "timm.models:VisionTransformer", "options": {"img_size": 32, "patch_size": 16, "depth": 1}}


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({}, "224x224"),
        ({"data": {"train": FOLDER, "stages": [{"resize": {"size": [32, 64]}}, "flip"]}}, "32x64"),
        ({"data": {"train": NOISE}}, "48x32"),
        ({"data": {"train": NOISE, "stages": [{"resize": {"size": 99}}, {"center_crop": {"size": 16}}]}}, "16x16"),
        ({"data": None, "model": TOLD}, "32x32"),
    ],
)
def test_the_size_of_the_images_is_the_jobs(changes, images):
    changes = {"model": {"name": "resnet18"}, **changes}
    found = with_estimates(profile(**ON_CPU, job=job(**changes)), catalog())
    assert f" on {images} images)" in found.estimated


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "its job names no model"),
        ({"model": {"name": "no_such_net"}}, "cannot build model 'no_such_net'"),
        ({"data": None}, "the size of its images is not in its job: no stage has a `size`, the model no img_size"),
        ({"model": {"name": "torch.nn:Identity"}}, "torch counts no operations of model 'torch.nn:Identity'"),
        (
            {"model": {"name": "vit_tiny_patch16_224", "options": {"img_size": 64}}},
            "the operations of model 'vit_tiny_patch16_224' cannot be counted for images of 224x224: AssertionError",
        ),
        ({"training": {"epochs": 0}}, "the job of toy"),
    ],
)
def test_what_cannot_be_estimated_names_the_option(changes, message):
    with pytest.raises(ConfigError) as caught:
        with_estimates(profile(**ON_CPU, job=job(**changes)), catalog())
    text = str(caught.value)
    assert text.startswith("toy was measured without a GPU, and device seconds cannot be estimated: ")
    assert message in text
    assert text.endswith("; give those of one GPU for a sample, such as --accelerator A10G=0.0008")


def test_every_gpu_with_a_peak_has_an_estimate():
    found = with_typical(profile(**ON_CPU), catalog(), flops=1e12, calls_per_sample=0.0, precision="fp32", model="x")
    assert found.accelerator_s_per_sample["T4"].value == pytest.approx(1 / (8.1 * 0.35))


def test_the_documentations_table_is_the_one_that_is_used():
    """docs/costs.md, where H100 and H200 share a column."""
    lines = (ROOT / "docs" / "costs.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| | T4 |"))
    names, half, single = ([cell.strip() for cell in lines[n].split("|")[2:-1]] for n in (start, start + 2, start + 3))
    found = {}
    for name, a, b in zip(names, half, single, strict=True):
        found |= {each: (float(a), float(b)) for each in name.split(", ")}
    assert found == {name: (peak.half, peak.single) for name, peak in PEAKS.items()}
