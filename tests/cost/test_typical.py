"""Estimated device seconds: by hand, against figures that others published, and marked as what they are."""

from __future__ import annotations

import pytest
import torch
from conftest import ROOT
from money import profile

from raytrain.config.learning import Model
from raytrain.cost import typical
from raytrain.cost.bounds import Bounds
from raytrain.cost.instances import catalog
from raytrain.cost.planner import plan
from raytrain.cost.profile import Figure
from raytrain.cost.typical import PEAKS, Peak, typical_s, with_typical
from raytrain.errors import ConfigError
from raytrain.study.flops import training_work
from raytrain.study.profile_file import with_accelerators, with_estimates

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
    """70 TFLOPS at 35 % are 24.5: 49 GFLOP take 2 ms. In fp32 it has half as many, TF32 or not."""
    assert typical_s(49e9, 0.0, "A10G", "bf16") == pytest.approx(0.002)
    assert typical_s(49e9, 0.0, "A10G", "fp16") == pytest.approx(0.002)
    assert typical_s(49e9, 0.0, "A10G", "fp32") == pytest.approx(0.004)


@pytest.mark.parametrize(
    ("gpu", "precision", "convolutions", "tera_per_s"),
    [
        ("T4", "fp16", 0.0, 65.0),
        ("T4", "bf16", 0.0, 8.1),
        ("V100", "fp16", 0.0, 125.0),
        ("V100", "bf16", 0.0, 15.7),
        ("A100", "bf16", 0.0, 312.0),
        ("A100", "bf16", 1.0, 312.0),
        ("A100", "fp32", 0.0, 19.5),
        ("A100", "fp32", 1.0, 156.0),
        ("V100", "fp32", 1.0, 15.7),
    ],
)
def test_a_precision_has_the_peak_of_what_computes_it(gpu, precision, convolutions, tera_per_s):
    """Tensor cores know bf16 and TF32 from Ampere on; torch uses TF32 for convolutions and for nothing else."""
    found = typical_s(1e12, 0.0, gpu, precision, convolution_flops=convolutions * 1e12)
    assert found == pytest.approx(1 / (0.35 * tera_per_s))


def test_convolutions_and_matrices_add_up_in_fp32():
    """Half of 312 GFLOP at 156 TFLOPS and half at 19.5: 1 ms and 8 ms at the peak."""
    assert typical_s(312e9, 0.0, "A100", "fp32", convolution_flops=156e9) == pytest.approx(0.009 / 0.35)


def test_torch_uses_tf32_for_convolutions_alone_unless_it_is_told():
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (True, False)


def test_a_small_model_waits_for_its_operators():
    """640 of them for a batch of 64 are ten a sample, 10 us each, unless the computing takes longer."""
    assert typical_s(1e6, 640 / 64, "A10G", "bf16") == pytest.approx(1e-4)
    assert typical_s(49e9, 640 / 64, "A10G", "bf16") == pytest.approx(0.002)


def test_operators_are_counted_for_a_batch_forward_and_backward():
    """A rectifier is one, and so is a linear layer: that its weight and its batch are turned starts no work. Twice
    that backwards."""
    layer = Model(name="torch.nn:Linear", options={"in_features": 5, "out_features": 7})
    work = training_work(layer, 1, 5, 1)
    assert (training_work(Model(name="torch.nn:ReLU"), 1, 5, 1).calls, work.calls) == (3, 3)
    assert (work.flops, work.convolution_flops) == (3 * 2 * 5 * 7, 0)


class Turns(torch.nn.Module):
    """Of images of 2 x 3 x 4 and one channel: seven views and two operators."""

    def forward(self, batch):
        flat = batch.view(-1, 24).reshape(-1, 4, 6)
        turned = flat.transpose(1, 2).permute(0, 2, 1).unsqueeze(1).expand(-1, 5, -1, -1)
        first = turned.split(2, dim=1)[0]
        return torch.relu(first).add(1.0)


def test_views_are_no_operators():
    assert training_work(Model(name=f"{__name__}:Turns"), 4, 6, 1).calls == 3 * 2


def test_operations_of_convolutions_are_told_from_the_others():
    """ResNet-18 has one matrix, 512 x 1000; a ViT's one convolution makes 192 values of each patch."""
    resnet = training_work(Model(name="resnet18"), 224, 224, 3)
    assert resnet.flops - resnet.convolution_flops == 3 * 2 * 512 * 1000
    vit = training_work(Model(name="vit_tiny_patch16_224"), 224, 224, 3)
    assert vit.convolution_flops == 3 * 2 * 14 * 14 * 16 * 16 * 3 * 192


def test_the_peaks_are_dense_and_of_known_gpus():
    """Tensor cores have more than the rest of a chip; the table names no GPU that the catalog does not."""
    assert set(PEAKS) <= {each.gpu for each in catalog().types.values()}
    assert all(2 <= peak.fp16 / peak.fp32 <= 30 and "data sheet" in peak.source for peak in PEAKS.values())
    assert (PEAKS["H100"].bf16, PEAKS["A100"].bf16, PEAKS["T4"].fp16) == (989.0, 312.0, 65.0)
    for peak in PEAKS.values():  # TF32 has half of bf16's, where there is any
        assert peak.tf32 in (peak.fp32, pytest.approx(peak.bf16 / 2, rel=0.02)) and peak.bf16 in (peak.fp32, peak.fp16)


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
    monkeypatch.setitem(typical.PEAKS, "RTX 3090", Peak(71.0, 71.0, 35.6, 35.6, "NVIDIA GA102 white paper"))
    estimated = 1 / typical_s(training_flops(Model(name=model), 224, 224, 3), 1.0, "RTX 3090", "fp16")
    assert estimated == pytest.approx(images_per_s, rel=1 / 3)


def test_operations_grow_with_the_image_and_need_no_download():
    small = training_flops(Model(name="resnet18", options={"pretrained": True}), 112, 112, 3)
    assert training_flops(Model(name="resnet18"), 224, 224, 3) == pytest.approx(4 * small, rel=0.1)


def test_estimates_are_marked_and_only_where_no_gpu_was_measured():
    found = with_estimates(profile(**ON_CPU, job=job()), catalog())
    assert found.accelerator_s_per_sample["CPU"].value == 0.05
    flops = training_flops(Model(name="vit_tiny_patch16_224"), 224, 224, 3)
    assert found.accelerator_s_per_sample["T4"].value == pytest.approx(flops / (8.1e12 * 0.35))
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


def staged(*stages):
    return {"train": FOLDER, "stages": list(stages)}


NOISE = {"kind": "synthetic", "num_samples": 9, "shape": [48, 32, 3]}
FLAT = {"kind": "parquet", "path": "x", "shapes": {"image": [40, 24, 3], "label": [1]}}
PHOTO = {"kind": "synthetic", "num_samples": 9, "fields": {"photo": {"shape": [64, 48, 3]}, "image": {"shape": [9]}}}
GREYS = {"grayscale": {"num_output_channels": 1}}
TOLD = {"name": "timm.models:VisionTransformer", "options": {"img_size": 32, "patch_size": 16, "depth": 1}}


@pytest.mark.parametrize(
    ("changes", "images"),
    [
        ({}, "224x224"),
        ({"data": {"train": FOLDER, "stages": [{"resize": {"size": [32, 64]}}, "random_vertical_flip"]}}, "32x64"),
        ({"data": {"train": NOISE}}, "48x32"),
        ({"data": {"train": FLAT}}, "40x24"),
        ({"data": {"train": FLAT, "stages": [{"resize": {"size": 12}}]}}, "20x12"),
        ({"data": {"train": NOISE, "stages": [{"resize": {"size": 64}}]}}, "96x64"),
        ({"data": {"train": NOISE, "stages": [{"resize": {"size": 64, "max_size": 72}}]}}, "72x48"),
        ({"data": {"train": NOISE, "stages": [{"torchvision": {"transform": "Resize", "size": 64}}]}}, "96x64"),
        ({"data": {"train": NOISE, "stages": [{"resize": {"size": 64, "on": ["depth"]}}]}}, "48x32"),
        ({"data": {"train": NOISE, "stages": [{"resize": {"size": 64, "on": ["depth", "image"]}}]}}, "96x64"),
        ({"data": {"train": PHOTO}, "training": {"epochs": 1, "task": {"input": "photo"}}}, "64x48"),
        ({"data": {"train": NOISE, "stages": [{"resize": {"size": 99}}, {"center_crop": {"size": 16}}]}}, "16x16"),
        ({"data": None, "model": TOLD}, "32x32"),
        ({"data": staged({"torchvision": {"transform": "CenterCrop", "size": [64]}})}, "64x64"),
        ({"data": staged({"torchvision": {"transform": "Resize", "size": [48, 64]}})}, "48x64"),
        ({"data": staged({"torchvision": {"transform": "RandomCrop", "size": 40}})}, "40x40"),
        ({"data": staged({"random_resized_crop": {"size": 40}})}, "40x40"),
        ({"data": staged({"resize": {"size": 96}}, {"mine:erase": {"size": 3}})}, "96x96"),
        ({"data": staged({"resize": {"size": 96}}, {"torchvision": {"transform": "Mine", "size": 3}})}, "96x96"),
        ({"data": staged({"random_crop": {"size": 80}}, "to_uint8")}, "80x80"),
        ({"data": {"train": NOISE, "stages": [{"resize": {"size": 64}}, {"random_crop": {"size": 32}}]}}, "32x32"),
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
        (
            {"data": None},
            "the size of its images is not in its job: no stage resizes to a `size`, the model has no img_size",
        ),
        ({"data": staged({"mine:erase": {"size": 3}})}, "no stage resizes to a `size`"),
        (
            {"data": staged({"resize": {"size": [1, 2, 3]}})},
            "stage 'resize': size must be one or two positive whole numbers (given: [1, 2, 3])",
        ),
        ({"data": staged({"resize": {"size": 0}})}, "stage 'resize': size must be one or two positive"),
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


def test_grey_images_have_one_channel():
    """A model of one has no answer to three."""
    grey = {"name": "resnet18", "options": {"in_chans": 1}}
    found = with_estimates(
        profile(**ON_CPU, job=job(model=grey, data=staged(GREYS, {"resize": {"size": 64}}))), catalog()
    )
    assert "on 64x64 images" in found.estimated
    with pytest.raises(ConfigError, match="cannot be counted for images of 64x64"):
        with_estimates(profile(**ON_CPU, job=job(model=grey, data=staged({"resize": {"size": 64}}))), catalog())


def test_every_gpu_with_a_peak_has_an_estimate():
    found = with_typical(profile(**ON_CPU), catalog(), flops=1e12, calls_per_sample=0.0, precision="fp32", model="x")
    assert found.accelerator_s_per_sample["T4"].value == pytest.approx(1 / (8.1 * 0.35))


def test_the_documentations_table_is_the_one_that_is_used():
    """docs/costs.md, where H100 and H200 share a column."""
    lines = (ROOT / "docs" / "costs.md").read_text().splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("| | T4 |"))
    names, *rows = ([cell.strip() for cell in lines[n].split("|")[2:-1]] for n in (start, *range(start + 2, start + 6)))
    found = {}
    for name, *peaks in zip(names, *rows, strict=True):
        found |= {each: tuple(map(float, peaks)) for each in name.split(", ")}
    assert found == {name: (peak.fp16, peak.bf16, peak.fp32, peak.tf32) for name, peak in PEAKS.items()}
