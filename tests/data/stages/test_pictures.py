"""Every kind of picture is decoded as Pillow does it, and one that is too large is refused before it takes memory."""

from __future__ import annotations

import io
import re
import struct
import tracemalloc
import zlib
from functools import cache

import cv2
import numpy as np
import pytest
from pictures import encoded, photo, rng
from PIL import Image, ImageOps

from raytrain.data.stages.encoded.ahead import decode_for
from raytrain.data.stages.encoded.canvas import MOST_PIXELS, size_of
from raytrain.data.stages.geometry import resize_field
from raytrain.data.stages.images import decode_field, decoded_size
from raytrain.device.decoding import _usual

PICTURE = Image.fromarray(photo(24, 32))


def saved(picture: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def as_pillow_has_it(data: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def frames(form: str) -> bytes:
    return saved(PICTURE, form, save_all=True, append_images=[PICTURE.rotate(180)], duration=50)


KINDS = {
    "jpeg": saved(PICTURE, "JPEG"),
    "grey jpeg": saved(PICTURE.convert("L"), "JPEG"),
    "progressive": saved(PICTURE, "JPEG", progressive=True),
    "cmyk jpeg": saved(PICTURE.convert("CMYK"), "JPEG"),
    "cmyk tiff": saved(PICTURE.convert("CMYK"), "TIFF"),
    "png": saved(PICTURE, "PNG"),
    "alpha": saved(PICTURE.convert("RGBA"), "PNG"),
    "grey and alpha": saved(PICTURE.convert("LA"), "PNG"),
    "palette": saved(PICTURE.quantize(16), "PNG", transparency=0),
    "bits": saved(PICTURE.convert("1"), "PNG"),
    "animated png": frames("PNG"),
    "animated webp": frames("WEBP"),
    "animated gif": saved(PICTURE.quantize(16), "GIF", save_all=True, append_images=[PICTURE.rotate(180).quantize(16)]),
    "webp": saved(PICTURE.convert("RGBA"), "WEBP", lossless=True),
    "bmp": saved(PICTURE, "BMP"),
    "ppm": saved(PICTURE, "PPM"),
    "tiff": saved(PICTURE, "TIFF", compression="tiff_lzw"),
    "jpeg 2000": saved(PICTURE, "JPEG2000"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_as_pillow_converts_to_rgb(kind):
    made = decode_field(KINDS[kind], "image")
    expected = as_pillow_has_it(KINDS[kind])
    assert made.shape == expected.shape and made.dtype == np.uint8
    most = 1 if kind == "cmyk jpeg" else 0  # in which OpenCV rounds otherwise
    assert np.abs(made.astype(int) - expected).max() <= most
    assert size_of(KINDS[kind]) == (24, 32) == decoded_size(KINDS[kind], "image")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_it_upright(form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(PICTURE, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    assert (decode_field(data, "image") == as_pillow_has_it(data)).all()


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_of_sixteen_bits_the_upper_eight(suffix, channels):
    values = rng().integers(0, 65536, (24, 32, *channels), np.uint16)
    data = cv2.imencode(suffix, values)[1].tobytes()
    upper = (values >> 8).astype(np.uint8)
    expected = upper[..., ::-1] if channels else np.repeat(upper[..., None], 3, axis=2)
    difference = np.abs(decode_field(data, "image").astype(int) - expected)
    assert difference.max() <= (suffix == ".tif" and channels == (3,)), "in which OpenCV rounds"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _of_50_000(entry: re.Match[bytes]) -> bytes:
    return entry[1] + struct.pack("<I", 50_000)


@cache
def bombs() -> dict[str, bytes]:
    """Each a few kilobytes that say 50,000 x 50,000, or as much as their form can."""
    packed = zlib.compress(bytes(1 << 20))
    head = struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    jpeg, webp = KINDS["jpeg"], KINDS["animated webp"]
    frame = jpeg.index(b"\xff\xc0") + 5
    return {
        "png": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b""),
        "jpeg": jpeg[:frame] + struct.pack(">HH", 50_000, 50_000) + jpeg[frame + 4 :],
        "jpeg with bytes too many": jpeg[:2]
        + b"junk"
        + jpeg[2:frame]
        + struct.pack(">HH", 50_000, 50_000)
        + jpeg[frame + 4 :],
        "webp": webp[:24] + b"\xff\xff\0" * 2 + webp[30:],
        "gif": b"GIF89a" + struct.pack("<HH", 50_000, 50_000) + KINDS["animated gif"][10:],
        "bmp": KINDS["bmp"][:18] + struct.pack("<ii", 50_000, -50_000) + KINDS["bmp"][26:],
        "ppm": b"P6\n50000 50000\n255\n" + bytes(1_000),
        "tiff": re.sub(rb"(?s)([\x00\x01]\x01[\x03\x04]\x00\x01\x00{3}).{4}", _of_50_000, KINDS["tiff"]),
    }


@pytest.mark.parametrize("kind", ["image", "mask"])
def test_a_bomb_is_refused_before_it_takes_memory(kind):
    for form, data in bombs().items():
        tracemalloc.start()  # NumPy's memory, OpenCV's images included
        try:
            with pytest.raises(ValueError, match="pixels are more than|decompression bomb"):
                decode_field(data, kind)
            with pytest.raises(ValueError, match="pixels are more than|decompression bomb"):
                decoded_size(data, kind)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20, form
        finally:
            tracemalloc.stop()


def test_a_bomb_is_refused_wherever_it_would_be_decoded():
    import torch

    data = bombs()["jpeg"]
    with pytest.raises(ValueError, match=r"50,000 x 50,000 pixels are more than the 178,956,970 that are decoded"):
        decode_for({"image": data}, {"image": "image"}, resize_field, {"size": 4})
    assert _usual(torch.frombuffer(bytearray(data), dtype=torch.uint8)) is None, "left to the CPU's, which refuses it"
    assert _usual(torch.frombuffer(bytearray(KINDS["jpeg"]), dtype=torch.uint8)) is not None


@pytest.mark.parametrize("name", [b"IDAT", b"eXIf", b"iCCP", b"tEXt", b"acTL"])
def test_a_chunk_that_says_it_is_2_gb_takes_none(name):
    data = KINDS["png"]
    wild = data[:33] + struct.pack(">I", 2**31 - 1) + name + data[33:]
    tracemalloc.start()
    try:
        for kind in ("image", "mask"):
            with pytest.raises(ValueError, match="not a decodable image: it was cut off"):
                decode_field(wild, kind)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_is_pillows():
    assert MOST_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_cut_off_is_no_image(kind):
    """Anywhere but in its last bytes, which some forms can do without."""
    data = KINDS[kind]
    for end in (0, 1, 8, 20, len(data) // 2):
        with pytest.raises(ValueError):
            decode_field(data[:end], "image")


def test_a_form_that_nobody_stores_pictures_in():
    """OpenCV would decode it, of whatever size it says to be."""
    data = cv2.imencode(".hdr", photo().astype(np.float32))[1].tobytes()
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) is not None
    with pytest.raises(ValueError, match="not a decodable image"):
        decode_field(data, "image")


def test_a_wrong_extension_does_not_matter(tmp_path):
    from raytrain.data import image_folder
    from raytrain.data.sources.open import open_manifest

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(KINDS["png"])
    (tmp_path / "a" / "y.png").write_bytes(encoded(photo(24, 32)))
    samples = open_manifest(image_folder(tmp_path)).read_many([0, 1])
    assert [decode_field(each["image"], "image").shape for each in samples] == [(24, 32, 3)] * 2
