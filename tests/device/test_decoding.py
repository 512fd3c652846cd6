"""`decode` on the device, from the worker's producer through the rank to the batch: what it gives is what the CPU stage
would have given. Here the device is a CPU, whose decoder is torchvision's; the rank is fed by hand, without Ray."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from fed_rank import BROKEN, NO_SCAN, OTHERS, USUAL, Files, Run, jpeg
from pictures import encoded, photo
from PIL import Image
from torchvision.transforms import v2

from raytrain import Pipeline
from raytrain.data import (
    center_crop,
    color_jitter,
    decode,
    from_torch,
    gaussian_blur,
    on_device,
    ragged,
    random_crop,
    random_horizontal_flip,
    random_resized_crop,
    resize,
    stage,
)
from raytrain.data.stages.geometry import center_crop_field
from raytrain.data.stages.registry import parse_stage
from raytrain.device.decoding import torchvisions_decoder
from raytrain.device.forms import FORMS
from raytrain.errors import ConfigError, DataError

WITHIN = 2  # levels of 255, of CPU decoders, whose cosine transforms round in their own ways


def assert_like(device: Run, cpu: Run, within: float) -> None:
    assert device.samples.keys() == cpu.samples.keys() != set()
    for index, sample in cpu.samples.items():
        mine = device.samples[index]
        assert [*mine] == [*sample]
        for name, value in sample.items():
            assert (mine[name].shape, mine[name].dtype) == (value.shape, value.dtype), name
            apart = np.abs(mine[name].astype(float) - value).max()
            assert apart <= (within if name == "image" else 0), (index, name, apart)


ON_CPU, ON_DEVICE = decode(scaled=False), on_device(decode())


def both(stages, dataset, within=WITHIN, **options):
    """The same stages behind `decode` on the device, and all of them on the CPU."""
    device, cpu = Run([ON_DEVICE, *stages], dataset, **options), Run([ON_CPU, *stages], dataset, **options)
    assert_like(device, cpu, within)
    return device, cpu


# --- the same samples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "within"),
    [
        ([center_crop(40)], WITHIN),
        ([random_resized_crop(24), random_horizontal_flip()], 4),
        ([random_horizontal_flip(), random_crop(40)], WITHIN),
        ([resize(32), random_horizontal_flip(), center_crop(28)], 4),
        ([resize(32), random_crop(30)], 4),
        ([gaussian_blur(3), resize((20, 30)), random_horizontal_flip()], 4),
        ([random_resized_crop(24), color_jitter(0.2, 0.2)], 6),
        ([random_crop(100, pad_if_needed=True), v2.RandomHorizontalFlip()], WITHIN),
    ],
    ids=["crop", "resized crop", "flip", "resize", "resize and crop", "blur", "colours", "torchvision"],
)
def test_a_sample_comes_out_as_on_the_cpu(stages, within):
    """Of many sizes, colours and turns: a pixel off its place, or another crop, would be far off."""
    device, _ = both(stages, Files(USUAL), within)
    assert (device.meter.decoded_on_device, device.meter.decoded_on_host) == (len(USUAL), 0)
    assert [*device.meter.device_stage_s][0] == "decode"


def test_what_travels_are_the_files_as_they_were():
    run = Run([ON_DEVICE, center_crop(40)], Files(USUAL))
    assert run.opened.splits["train"].stages == ()
    assert run.meter.wire_bytes - sum(map(len, USUAL)) < 100 * len(USUAL)
    assert {type(batch) for batch in run.batches} and [*run.batches[0]] == ["image", "number"]


def test_images_of_one_size_are_a_batch_at_once():
    device, _ = both([random_horizontal_flip(), center_crop(40)], Files([jpeg(each) for each in range(6)]))
    assert device.meter.decoded_on_device == 6


def test_what_the_devices_decoder_does_not_take_is_left_to_the_cpus():
    """Exactly, as it is the CPU stage's own; the others are the device's."""
    device, cpu = both([random_resized_crop(24), random_horizontal_flip()], Files(USUAL + OTHERS), 4)
    assert (device.meter.decoded_on_device, device.meter.decoded_on_host) == (len(USUAL), len(OTHERS))
    device, cpu = both([random_crop(40)], Files(OTHERS), 0)
    assert device.meter.decoded_on_host == len(OTHERS) and device.failures == cpu.failures == []


def refusing(*refused: bytes):
    """A decoder of batches that refuses those that have one of these files, as nvJPEG does."""

    def decode_jpegs(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
        if any(file.numpy().tobytes() in refused for file in files):
            raise RuntimeError("nvjpegDecodeJpegHost failed: 2")
        return torchvisions_decoder(files, device)

    return decode_jpegs


def test_a_file_that_the_device_refuses_takes_no_other_with_it():
    device = Run([ON_DEVICE, center_crop(40)], Files(USUAL), 7, refusing(USUAL[2], USUAL[9]))
    assert (device.meter.decoded_on_device, device.meter.decoded_on_host) == (len(USUAL) - 2, 2)
    assert_like(device, Run([ON_CPU, center_crop(40)], Files(USUAL)), WITHIN)


def test_pixels_of_another_shape_are_not_trusted():
    device = Run(
        [ON_DEVICE, center_crop(40)],
        Files(USUAL),
        decode_jpegs=lambda files, device: [torch.zeros(1, 9, 9)] * len(files),
    )
    assert device.meter.decoded_on_host == len(USUAL)
    assert_like(device, Run([ON_CPU, center_crop(40)], Files(USUAL)), 0)


def test_masks_are_exact_and_cut_with_their_image():
    sizes = [Image.open(io.BytesIO(data)).size for data in USUAL[:5]]
    values = [np.random.default_rng(n).integers(0, 5, size[::-1], np.uint8) for n, size in enumerate(sizes)]
    masks = [encoded(value, "PNG") for value in values]
    device, _ = both([random_crop(38), random_horizontal_flip()], Files(USUAL[:5], mask=masks))
    assert (device.meter.decoded_on_device, device.meter.decoded_on_host) == (5, 5)
    both([resize((30, 20)), random_crop(18)], Files(USUAL[:5], mask=masks), 4)


def test_masks_of_one_type():
    masks = [encoded(np.zeros((60, 84), kind), "PNG") for kind in ("uint8", "uint16")]
    with pytest.raises(DataError, match="field `mask` is decoded to different types: uint16 and uint8; store"):
        Run([ON_DEVICE, center_crop(9)], Files([USUAL[0]] * 2, mask=masks))


def test_validation_is_decoded_where_training_is():
    found = []
    for first in (ON_DEVICE, ON_CPU):
        stages = [first, random_resized_crop(24)]
        found.append(Run(stages, Files(USUAL[:3]), validation=Files(USUAL), validation_stages=[first, center_crop(40)]))
    assert_like(*found, WITHIN)
    assert found[0].meter.device_stage_s["validation/decode"] > 0 == found[0].meter.decode_s
    assert found[0].meter.decoded_on_device == len(USUAL)


@pytest.mark.parametrize("error", [NotImplementedError("not for 'Byte'"), torch.OutOfMemoryError("9 GiB")])
def test_images_of_many_sizes_go_elsewhere_or_in_halves_too(monkeypatch, error):
    form, calls = FORMS[center_crop_field], []

    def once(*given, **options):
        calls.append(given)
        if len(calls) == 1:
            raise error
        return form(*given, **options)

    monkeypatch.setitem(FORMS, center_crop_field, once)
    both([resize(50), center_crop(40)], Files(USUAL), 4, batch_size=7)
    assert len(calls) > 2


# --- what is no image ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("behind", [[center_crop(40)], [random_crop(40)]], ids=["in the rank", "in the worker too"])
def test_what_cannot_be_decoded_is_left_out_and_counted_as_on_the_cpu(behind):
    files = [*USUAL[:3], *BROKEN, *OTHERS[:2], *USUAL[3:]]
    device, cpu = both(behind, Files(files), batch_size=5)
    assert len(cpu.failures) == len(BROKEN) and sorted(map(str, device.failures)) == sorted(map(str, cpu.failures))
    mine, theirs = ([(b.ids.tolist(), sorted(b.left_out), b.repeated) for b in run.batches] for run in (device, cpu))
    assert mine == theirs
    assert sum(device.meter.nodes.values()) == sum(cpu.meter.nodes.values()) == len(files)


def test_of_a_batch_that_was_filled_up_what_is_left_is_told():
    """Of 7 samples in batches of 5 the last 3 are repeated, of which some are no images."""
    files = [USUAL[0], NO_SCAN, USUAL[1], NO_SCAN, NO_SCAN, USUAL[2], NO_SCAN]
    device, cpu = both([center_crop(40)], Files(files), batch_size=5, tail="pad")
    mine, theirs = ([(b.ids.tolist(), sorted(b.left_out), b.repeated) for b in run.batches] for run in (device, cpu))
    assert mine == theirs and 0 < mine[1][2] < 3 and mine[1][1]


def test_a_sample_that_an_epoch_has_carried_goes_by_its_id():
    """Its key is beyond the ids."""
    files = [NO_SCAN, NO_SCAN, USUAL[0]] * 3
    device, cpu = both([center_crop(40)], Files(files), batch_size=5, tail="carry", epochs=2)
    assert sorted(map(str, device.failures)) == sorted(map(str, cpu.failures))
    carried = [key for batch in device.batches for key in batch.left_out.tolist() if key >= len(files)]
    assert carried and {failure.id for _, failure in device.failures} <= {*range(len(files))}


def halves(sample: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**sample, "half": n, "text": "a" * n, "points": np.arange(2 * n)} for n in range(2)]


def spoilt(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "image": NO_SCAN} if sample["number"] % 3 == 0 and sample["half"] else sample


def test_every_field_loses_the_sample_and_a_part_takes_the_others_with_it():
    behind = [center_crop(40, on="image"), random_horizontal_flip(on="image")]
    found = []
    for first in (on_device(decode(on="image")), decode(scaled=False, on="image")):
        stages = [stage(halves, on="*"), stage(spoilt, on="*"), first, *behind]
        found.append(Run(stages, Files(USUAL[:8]), collate={"points": ragged()}))
    assert sorted(map(str, found[0].failures)) == sorted(map(str, found[1].failures)) and len(found[0].failures) == 3
    for mine, theirs in zip(found[0].batches, found[1].batches, strict=True):
        for name in ("ids", "parts"):
            assert getattr(mine, name).tolist() == getattr(theirs, name).tolist()
        assert sorted(mine.left_out) == sorted(theirs.left_out)
        assert mine["text"] == theirs["text"] and mine["half"].tolist() == theirs["half"].tolist()
        for name in ("lengths", "offsets", "values"):
            assert getattr(mine["points"], name).tolist() == getattr(theirs["points"], name).tolist()
        assert (mine.image - theirs.image).abs().max() <= WITHIN


@pytest.mark.parametrize("stages", [[random_crop(40)], [random_resized_crop(24)], [resize(50), center_crop(45)]])
def test_a_batch_without_an_image_has_a_stand_in(stages):
    """The very first too. The worker draws for a whole header, and the rank finds out."""
    device = Run([ON_DEVICE, *stages], Files([NO_SCAN] * 3), batch_size=2)
    assert [batch.stand_in for batch in device.batches] == [True, True]
    shape = Run([ON_CPU, *stages], Files(USUAL[:1])).batches[0].image.shape
    assert {batch.image.shape for batch in device.batches} == {shape}
    assert all(batch.weight == 0 and not batch.image.any() for batch in device.batches)
    assert len(device.failures) == 3 and sum(len(batch.left_out) for batch in device.batches) == 3
    mixed = Run([ON_DEVICE, *stages], Files([NO_SCAN, USUAL[0], NO_SCAN, BROKEN[0]]), batch_size=1)
    assert sorted(batch.stand_in for batch in mixed.batches) == [False, True, True, True]
    assert {batch.image.shape for batch in mixed.batches} == {shape}


def test_a_stand_in_is_as_large_as_the_mask_beside_it():
    masks = [encoded(np.ones((75, 51), np.uint8), "PNG")] * 2
    stages = [decode(on="mask"), on_device(decode(on="image")), random_crop(40, on=["image", "mask"])]
    [batch] = Run(stages, Files([NO_SCAN] * 2, mask=masks)).batches
    assert batch.stand_in and batch.image.shape == (1, 3, 40, 40) and batch["mask"].shape == (1, 40, 40)


# --- what is refused ----------------------------------------------------------------------------------------------


def brighter(images: torch.Tensor) -> torch.Tensor:
    return images


def unpacked(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, "image": photo()}


VARY = "leaves field `image` in sizes that vary"


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        ([ON_DEVICE], f"{VARY}, and no stage behind it gives one size: `random_resized_crop`"),
        ([ON_DEVICE, resize(8), random_horizontal_flip()], VARY),
        (
            [ON_DEVICE, on_device(brighter), center_crop(8)],
            f"stage 2, `brighter`, works on a whole batch, and `decode` on the device {VARY}",
        ),
        (
            [ON_DEVICE, stage(unpacked, on="image", device=brighter), center_crop(8)],
            "`unpacked`, works on a whole batch",
        ),
        (
            [ON_DEVICE, v2.RandomHorizontalFlip(), center_crop(8)],
            "`torchvision.RandomHorizontalFlip`, works on a whole",
        ),
        (
            [on_device(brighter, on="number"), decode(), center_crop(8)],
            "`decode`, can run on the CPU alone; put it before",
        ),
        ([ON_CPU, ON_DEVICE, center_crop(8)], "is to decode on the device, and field `image` is uint8(?, ?, 3) image"),
        ([ON_DEVICE, stage(brighter), center_crop(8)], "`brighter`, can run on the CPU alone"),
    ],
)
def test_what_cannot_be_is_told_before_anything_starts(stages, told):
    with pytest.raises(ConfigError) as error:
        Pipeline(from_torch(Files(USUAL)), stages).open(0)
    assert told in str(error.value) and "\n" not in str(error.value)


def test_validation_without_a_size_is_told_of():
    with pytest.raises(ConfigError, match="data.validation_stages: `decode` .*validation has the stages of training"):
        Pipeline(from_torch(Files(USUAL)), [ON_DEVICE, random_crop(9)], validation=from_torch(Files(USUAL))).open(0)
    own = {"validation_stages": [ON_DEVICE, center_crop(9)]}
    Pipeline(from_torch(Files(USUAL)), [ON_DEVICE, random_crop(9)], validation=from_torch(Files(USUAL)), **own).open(0)


def test_an_array_in_the_place_of_a_file_is_told():
    with pytest.raises(
        DataError, match=r"field `image` of .* is \(40, 60, 3\) uint8, and `decode` on the device takes"
    ):
        Run([stage(unpacked, on="*"), on_device(decode(on="image")), center_crop(9)], Files(USUAL))


def test_a_job_file_puts_it_there_and_measurement_does_not():
    assert parse_stage({"decode": {"place": "device"}}) == ON_DEVICE
    assert not decode().may_move and decode().movable
    opened = Pipeline(from_torch(Files(USUAL)), [decode(), center_crop(9), random_horizontal_flip()]).open(0)
    assert opened.on_device["train"].cuts == (2, 3), "the flip alone"


NO_NVJPEG = "decode_jpegs_cuda: torchvision not compiled with nvJPEG/CUDA support"


def test_a_torchvision_without_the_decoder_is_told_at_the_first_batch():
    def decode_jpegs(files, device):
        raise RuntimeError(NO_NVJPEG)

    with pytest.raises(DataError) as error:
        Run([ON_DEVICE, center_crop(9)], Files(USUAL), decode_jpegs=decode_jpegs)
    assert str(error.value) == (
        f"`decode` cannot run on cpu: RuntimeError: {NO_NVJPEG}; leave it to the CPU (without `place: device`), or "
        "install the CUDA build of torchvision"
    )


def test_too_little_memory_is_told():
    def decode_jpegs(files, device):
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    with pytest.raises(DataError, match="has not the memory for a batch's images as `decode` leaves them .tried to"):
        Run([ON_DEVICE, center_crop(9)], Files(USUAL), decode_jpegs=decode_jpegs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_samples():
    files = Files([*USUAL, *OTHERS, *BROKEN])
    for stages in ([center_crop(40)], [random_resized_crop(24), random_horizontal_flip()]):
        gpu, cpu = Run([ON_DEVICE, *stages], files, device="cuda"), Run([ON_CPU, *stages], files)
        assert gpu.samples.keys() == cpu.samples.keys() and len(gpu.failures) == len(BROKEN)
        assert gpu.meter.decoded_on_device >= len(USUAL) // 2
        for index, sample in cpu.samples.items():
            assert np.abs(gpu.samples[index]["image"] - sample["image"]).mean() <= 4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nvjpeg_gives_the_pixels_within_a_few_levels():
    device = torch.device("cuda")
    files = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in USUAL]
    found = torchvisions_decoder(files, device)
    for mine, theirs in zip(found, torchvisions_decoder(files, torch.device("cpu")), strict=True):
        assert mine.device.type == "cuda" and mine.shape == theirs.shape
        assert (mine.cpu().float() - theirs.float()).abs().mean() <= 2
