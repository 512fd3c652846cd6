"""A JPEG that is decoded as small as the next stage allows, against the whole of it."""

from __future__ import annotations

import io
import struct
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import sklearn
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pictures import encoded, photo, rng
from PIL import Image

from raytrain.data.samples.fields import Field, Schema
from raytrain.data.stages.encoded.jpeg import ORIENTATION, jpeg_head, upright_size
from raytrain.data.stages.geometry import random_horizontal_flip, random_resized_crop, resize
from raytrain.data.stages.images import decode, decode_field, decoded_size
from raytrain.data.stages.settling import settle
from raytrain.data.stages.stage import stage
from raytrain.device.decoding import torchvisions_decoder, upright

PHOTOS = Path(sklearn.__file__).parent / "datasets" / "images"  # china.jpg and flower.jpg, 427 x 640
JPEG = Field("bytes", (), "image")
CROP = random_resized_crop(24)


def run(stages, seed=0, **fields):
    """The sample behind the first stage, that behind all, and the numbers that are drawn next."""
    schema = {name: JPEG if isinstance(value, bytes) else value[1] for name, value in fields.items()}
    sample = {name: value if isinstance(value, bytes) else value[0] for name, value in fields.items()}
    made = settle(stages, Schema(schema), "data.stages").cpu
    generator, first = rng(seed), None
    for each in made:
        sample = each(sample, generator if each.random else None)
        first = first or dict(sample)
    return first, sample, generator.random()


def both(data, behind, seed=0):
    """What comes of a JPEG, scaled and whole; the same shape, and the same numbers are drawn behind."""
    (_, one, drawn), (_, other, expected) = (
        run([decode(scaled=scaled), behind], seed, image=data) for scaled in (True, False)
    )
    assert drawn == expected
    assert one.keys() == other.keys() == {"image"}
    assert (one["image"].shape, one["image"].dtype) == (other["image"].shape, other["image"].dtype)
    return one["image"], other["image"]


def apart(one, other):
    """Mean and largest difference, grey levels."""
    difference = np.abs(one.astype(int) - other)
    return difference.mean(), difference.max()


def factor(data, behind, seed=0):
    first, *_ = run([decode(), behind], seed, image=data)
    whole = upright_size(data)
    [found] = [f for f in (1, 2, 4, 8) if first["image"].shape[:2] == tuple(-(-side // f) for side in whole)]
    return found


def ramps(height, width):
    """Red tells the column, green the row."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns * 255 / width, rows * 255 / height, np.full((height, width), 128)], axis=2).astype("u1")


def mosaic(name, number):
    """A photograph and its mirror images, `number` in a row and a column, as one JPEG."""
    image = np.asarray(Image.open(PHOTOS / name).convert("RGB"))
    row = np.concatenate([image[:, :: (-1) ** n] for n in range(number)], axis=1)
    return encoded(np.concatenate([row[:: (-1) ** n] for n in range(number)]), quality=90)


# --- how much smaller ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"size": 201}, 1),
        ({"size": 200}, 2),
        ({"size": 101}, 2),
        ({"size": 100}, 4),
        ({"size": 51}, 4),
        ({"size": 50}, 8),
        ({"size": 3}, 8),
        ({"size": 900}, 1),
        ({"size": (100, 301)}, 1),
        ({"size": (100, 300)}, 2),
        ({"size": (201, 100)}, 1),
        ({"size": 201, "max_size": 202}, 2),
        ({"size": 50, "interpolation": "bicubic"}, 8),
        ({"size": 50, "interpolation": "nearest"}, 1),
    ],
)
def test_an_image_of_400_x_600_is_decoded_as_small_as_resize_allows(options, expected):
    assert factor(encoded(photo(400, 600)), resize(**options)) == expected
    if expected == 1:
        assert np.array_equal(*both(encoded(photo(400, 600)), resize(**options)))


@pytest.mark.parametrize(("scale", "expected"), [(1, 8), (1 / 4, 4), (1 / 16, 2), (1 / 64, 1), (0.24, 2), (0.98, 4)])
def test_what_a_crop_keeps_tells_how_small(scale, expected):
    """Of 192 x 192, a square of `scale`, to 24."""
    behind = random_resized_crop(24, scale=(scale, scale), ratio=(1, 1))
    assert factor(encoded(photo(192, 192)), behind) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(0, 9))
@example(1, 90, 4, 0)
def test_any_size_comes_out_as_it_would_have(height, width, size, seed):
    data = encoded(ramps(height, width))
    for behind in (resize(size), resize((size, 7)), random_resized_crop((size, 9))):
        both(data, behind, seed)


def test_a_side_that_would_vanish_fails_where_it_would_have():
    data, behind = encoded(photo(1, 1000)), resize(8, max_size=16)
    told = []
    for scaled in (True, False):
        made = settle([decode(scaled=scaled), behind], Schema({"image": JPEG}), "data.stages").cpu
        sample = made[0]({"image": data}, None)
        with pytest.raises(Exception, match="resize|size") as caught:
            made[1](sample, None)
        told.append(str(caught.value))
    assert told[0] == told[1]


# --- when never ---------------------------------------------------------------------------------------------------

MASK = encoded(np.tile(np.arange(4, dtype=np.uint8).repeat(48), (192, 1)), "PNG")
NEVER = {
    "asked not to": ([decode(scaled=False), resize(24)], {}),
    "something between": ([decode(), random_horizontal_flip(), resize(24)], {}),
    "nothing behind": ([decode()], {}),
    "a function behind": ([decode(), stage(lambda image: image[::8, ::8])], {}),
    "a mask beside": ([decode(), CROP], {"seg": (MASK, Field("bytes", (), "mask"))}),
    "boxes beside": ([decode(), CROP], {"boxes": (np.ones((1, 4), "f4"), Field("float32", (None, 4), "boxes"))}),
    "two images": ([decode(), CROP], {"other": encoded(photo(192, 192, 1))}),
    "another field": ([decode(on="image"), resize(8, on="other")], {"other": (photo(), Field("uint8", (40, 60, 3)))}),
}


@pytest.mark.parametrize("why", NEVER)
def test_it_is_decoded_whole(why):
    stages, fields = NEVER[why]
    data = encoded(photo(192, 192))
    first, sample, _ = run(stages, image=data, **fields)
    assert first["image"].shape == (192, 192, 3)
    _, expected, _ = run([decode(scaled=False, on=stages[0].on), *stages[1:]], image=data, **fields)
    assert sample.keys() == expected.keys() == {"image", *fields}
    assert all(np.array_equal(sample[name], expected[name]) for name in sample)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF"])
def test_what_is_no_jpeg_is_decoded_whole(kind):
    data = encoded(photo(192, 192), kind)
    assert run([decode(), CROP], image=data)[0]["image"].shape == (192, 192, 3)
    assert np.array_equal(*both(data, CROP))


def test_an_array_passes():
    image = photo(192, 192)
    first, *_ = run([decode(), resize(24)], image=(image, Field("uint8", (None, None, 3), "image")))
    assert first["image"] is image


# --- how near -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_the_crop_is_that_of_the_whole_image(seed):
    """A pixel of the small image, up to 8 of 600, moves the ramps by 3.4 levels; its box is cut to whole ones."""
    one, other = both(encoded(ramps(400, 600), quality=95), CROP, seed)
    assert apart(one, other)[1] <= 5


def test_on_a_smooth_scene_hardly_anything_differs():
    noise = rng(3).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    data = encoded(cv2.resize(noise, (1800, 1200), interpolation=cv2.INTER_CUBIC), quality=90)
    for size, mean, most in ((500, 0.5, 4), (224, 0.5, 4), (100, 0.5, 4)):
        found = apart(*both(data, resize(size)))
        assert found[0] <= mean and found[1] <= most, found
    for seed in range(5):
        found = apart(*both(data, random_resized_crop(224), seed))
        assert found[0] <= 1 and found[1] <= 8, found


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize(("number", "expected"), [(2, 2), (4, 4), (5, 8)])
def test_photographs_resized_to_224(name, number, expected):
    """Measured: means of 0.5 to 3.4 grey levels and at most 45, of 255. An eighth is shrunk by 1.19 more."""
    data = mosaic(name, number)
    assert factor(data, resize(224)) == expected
    mean, most = apart(*both(data, resize(224)))
    assert mean <= 4 and most <= 64, (mean, most)


@pytest.mark.parametrize("name", ["china.jpg", "flower.jpg"])
@pytest.mark.parametrize("number", [2, 4])
def test_photographs_cropped_to_224(name, number):
    """Measured over crops: means of 1.5 to 3.6 grey levels, 6.4 of the worst crop; edges by up to 103, half of it by
    cutting the box to whole pixels of the small image."""
    data = mosaic(name, number)
    found = np.array([apart(*both(data, random_resized_crop(224), seed)) for seed in range(6)])
    assert found[:, 0].mean() <= 5 and found[:, 0].max() <= 8 and found[:, 1].max() <= 128, found


# --- what files may be --------------------------------------------------------------------------------------------


def segments(data):
    """Of a JPEG up to its first scan: where each begins, and where the scan does."""
    at, found = 2, [2]
    while data[at + 1] != 0xDA:
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
        found.append(at)
    return found


def turned(orientation, order="<", magic=42):
    first = b"II" if order == "<" else b"MM"
    exif = struct.pack(order + "2sHIHHHIHH", first, magic, 8, 1, ORIENTATION, 3, 1, orientation, 0)
    return b"Exif\0\0" + exif + bytes(4)


def with_exif(data, body, at=2):
    return data[:at] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[at:]


WHOLE = encoded(ramps(160, 240), quality=95)


def of_mode(mode, **options):
    Image.fromarray(ramps(160, 240)).convert(mode).save(file := io.BytesIO(), "JPEG", quality=95, **options)
    return file.getvalue()


def behind_its_size(data, body):
    """EXIF data behind the header that has the size, which OpenCV finds there too."""
    starts = segments(data)
    size = next(b for a, b in pairwise(starts) if 0xC0 <= data[a + 1] <= 0xC2)
    return with_exif(data, body, size)


FILES = {
    "grey": of_mode("L"),
    "CMYK": of_mode("CMYK"),
    "progressive": of_mode("RGB", progressive=True),
    "4:4:4": of_mode("RGB", subsampling=0),
    "restarts": of_mode("RGB", restart_marker_blocks=2),
    "bytes behind": WHOLE + bytes(99),
    "padding": WHOLE[:2] + b"\xff\xff\xff" + WHOLE[2:],
    "a comment": WHOLE[:2] + b"\xff\xfe\x00\x04\xff\xd8" + WHOLE[2:],
    "EXIF of nothing": with_exif(WHOLE, b"Exif\0\0"),
    "EXIF cut off": with_exif(WHOLE, turned(6)[:20]),
    "EXIF twice": with_exif(with_exif(WHOLE, turned(6)), turned(1)),
    "EXIF behind": behind_its_size(WHOLE, turned(6)),
    "another orientation": with_exif(WHOLE, turned(9)),
    **{f"turned {each}": with_exif(WHOLE, turned(each)) for each in range(9)},
    **{f"turned {each}, big endian": with_exif(WHOLE, turned(each, ">")) for each in (3, 6)},
}


READ_OTHERWISE = {  # by OpenCV than by us
    "EXIF of another version": with_exif(WHOLE, turned(6, magic=43)),
    "EXIF cut off, and whole": with_exif(with_exif(WHOLE, turned(6)), turned(1)[:20]),
}


@pytest.mark.parametrize("what", FILES | READ_OTHERWISE)
def test_any_jpeg_comes_out_as_it_would_have(what):
    """Pictures of which every pixel tells its place: one that were turned or cut otherwise would be far off."""
    for seed, behind in enumerate((resize(40), resize((20, 60)), CROP, CROP, CROP)):
        one, other = both((FILES | READ_OTHERWISE)[what], behind, seed)
        assert apart(one, other)[1] <= 8


@pytest.mark.parametrize("what", FILES)
def test_these_are_scaled(what):
    assert factor(FILES[what], resize(20)) == 8


UNUSUAL = ("CMYK", "bytes behind", "EXIF of nothing", "EXIF cut off", "EXIF twice", *READ_OTHERWISE)


@pytest.mark.parametrize("what", FILES | READ_OTHERWISE)
def test_what_is_usual_comes_out_the_same_of_another_decoder(what):
    """Turned as our reading of its EXIF data says; so a GPU's decoder may have it."""
    data = (FILES | READ_OTHERWISE)[what]
    head = jpeg_head(data)
    assert head.is_usual == (what not in UNUSUAL)
    if head.is_usual:
        [planes] = torchvisions_decoder([torch.frombuffer(bytearray(data), dtype=torch.uint8)], torch.device("cpu"))
        image = upright(planes.permute(1, 2, 0), head.orientation).numpy()
        assert image.shape[:2] == head.size and apart(image, decode_field(data, "image"))[1] <= 2


def test_three_channels_may_be_no_usual_ones():
    """Nor are four, whatever their colours; and Adobe's data says what three are."""
    by_adobe = [WHOLE[:2] + b"\xff\xee\x00\x0eAdobe" + bytes([0, 100, 0, 0, 0, 0, n]) + WHOLE[2:] for n in (0, 1)]
    four = FILES["CMYK"].replace(by_adobe[0][2:18], by_adobe[1][2:18])
    assert four != FILES["CMYK"]
    found = [jpeg_head(data).is_usual for data in (*by_adobe, of_mode("RGB", keep_rgb=True), four, WHOLE[:-2], WHOLE)]
    assert found == [False, True, False, False, False, True]


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_the_size_is_that_of_the_whole_image(kind):
    """By the header, or where that may be read otherwise, decoded for it."""
    masks = {each: encoded(ramps(40, 60)[:, :, 0], each) for each in ("PNG", "TIFF")}
    for what, data in (FILES | READ_OTHERWISE | masks if kind == "image" else masks).items():
        assert decoded_size(data, kind) == decode_field(data, kind).shape[:2], what
    with pytest.raises(ValueError, match="not a decodable image"):
        decoded_size(WHOLE[:900], kind)


def outcome(data, scaled):
    try:
        return run([decode(scaled=scaled), resize(20)], image=data)[1]["image"].shape
    except (ValueError, cv2.error) as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("kind", ["baseline", "progressive"])
@pytest.mark.parametrize("share", [0.001, 0.02, 0.05, 0.3, 0.7, 0.95, 0.999])
def test_a_truncated_file_is_corrupt_either_way(kind, share):
    data = encoded(photo(200, 300), progressive=kind == "progressive")
    cut = data[: int(len(data) * share)]
    assert outcome(cut, True) == outcome(cut, False) == "ValueError: not a decodable image"


SCAN = st.integers(segments(WHOLE)[-1], len(WHOLE) - 1)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(SCAN, st.integers(0, 255)), min_size=1, max_size=6))
def test_a_file_with_wrong_bytes_is_as_corrupt_or_whole_as_without(wrong):
    data = bytearray(WHOLE)
    for place, byte in wrong:
        data[place] = byte
    assert outcome(bytes(data), True) == outcome(bytes(data), False)


@given(st.binary(max_size=80))
def test_headers_of_anything_are_told_or_not(data):
    for start in (b"", b"\xff\xd8", WHOLE[:20], with_exif(b"\xff\xd8", turned(6)[:18] + data)):
        found = upright_size(start + data)
        assert found is None or min(found) > 0
