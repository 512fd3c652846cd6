"""How many pixels an image has, by its header, before memory is taken for them."""

from __future__ import annotations

import re
import struct
import warnings
from io import BytesIO

from raytrain.data.stages.encoded.jpeg import jpeg_head
from raytrain.errors import one_line

MOST_PIXELS = 178_956_970  # above it Pillow speaks of a decompression bomb; 512 MiB of RGB
PNG = b"\x89PNG"
_FRAME = re.compile(rb"(?s)\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf]...(?=(.{4}))")
_BY_ITSELF = (b"\xff\xd8", PNG)  # what is decoded although its header cannot be read here: OpenCV says what is wrong


def check_size(data: bytes) -> None:
    """
    Raises:
        ValueError: it has more than MOST_PIXELS pixels, is of no known form, or says that more follows than does, for
            which OpenCV would take up to 2 GB.
    """
    if data.startswith(PNG):
        _check_chunks(data)
    size = size_of(data)
    if size is None:
        if not data.startswith(_BY_ITSELF):
            raise ValueError("not a decodable image")
    elif is_too_large(size):
        height, width = size
        raise ValueError(
            f"{width:,} x {height:,} pixels are more than the {MOST_PIXELS:,} that are decoded; make the image smaller "
            "or cut it into tiles"
        )


def _check_chunks(data: bytes) -> None:
    at = 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        at += 12 + length
        if at > len(data):
            raise ValueError("not a decodable image: it was cut off")


def is_too_large(size: tuple[int, int]) -> bool:
    return size[0] * size[1] > MOST_PIXELS


def size_of(data: bytes) -> tuple[int, int] | None:
    """(height, width); None where its header cannot be read.

    Raises:
        ValueError: Pillow finds it too large.
    """
    if data.startswith(b"\xff\xd8"):
        head = jpeg_head(data)
        return _of_damaged_jpeg(data) if head is None else head.size
    try:
        if data.startswith(PNG):
            width, height = struct.unpack_from(">II", data, 16)
        elif data.startswith(b"BM") and data[14:15] != b"\x0c":
            width, height = map(abs, struct.unpack_from("<ii", data, 18))
        elif data.startswith((b"GIF87a", b"GIF89a")):
            width, height = struct.unpack_from("<HH", data, 6)
        elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            width, height = _of_webp(data)
        else:
            return _by_pillow(data)
    except struct.error:
        return None
    return height, width


def _of_damaged_jpeg(data: bytes) -> tuple[int, int] | None:
    """The largest that anything in it which looks like the start of a frame says: decoders skip what lies before."""
    sizes = [struct.unpack(">HH", each[1]) for each in _FRAME.finditer(data)]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _of_webp(data: bytes) -> tuple[int, int]:
    """Width and height, by which of its three forms it has."""
    form = data[12:16]
    if form == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif form == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    return width, height


def _by_pillow(data: bytes) -> tuple[int, int] | None:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(BytesIO(data)) as picture:
                return picture.height, picture.width
    except Image.DecompressionBombError as error:
        raise ValueError(one_line(error)) from None
    except Exception:  # noqa: BLE001 - of a damaged file it raises anything
        return None
