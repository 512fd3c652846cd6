"""Small valid pictures of every kind, and some whose headers say that they are large."""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image


def photo(height: int = 24, width: int = 32, channels: int = 3, seed: int = 0) -> np.ndarray:
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(picture: Any, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, form, **options)
    return file.getvalue()


def bombs() -> dict[str, bytes]:
    """Pictures whose headers say 50,000 x 50,000, or as many as there can be."""
    jpg, png = encoded(photo(), "JPEG"), encoded(photo(), "PNG")
    frame = jpg.index(b"\xff\xc0") + 5
    head = b"IHDR" + struct.pack(">II", 50_000, 50_000) + png[24:29]
    return {
        "bomb.jpg": jpg[:frame] + struct.pack(">HH", 50_000, 50_000) + jpg[frame + 4 :],
        "bomb2.jpg": jpg[:2] + b"junk" + jpg[2:frame] + struct.pack(">HH", 32_000, 32_000) + jpg[frame + 4 :],
        "bomb.png": png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:],
        "bomb.gif": b"GIF89a" + struct.pack("<HH", 50_000, 50_000) + encoded(photo(channels=1), "GIF")[10:],
        "bomb.bmp": encoded(photo(), "BMP")[:18] + struct.pack("<ii", 50_000, -50_000) + encoded(photo(), "BMP")[26:],
        "bomb.ppm": b"P6\n50000 50000\n255\n" + b"\0" * 999,
    }


@cache
def pictures() -> dict[str, bytes]:
    """By file name: every kind of JPEG and PNG, and what else is decoded."""
    rgb, grey = Image.fromarray(photo()), Image.fromarray(photo(channels=1))
    turned = Image.Exif()
    turned[0x0112] = 6
    frames: dict[str, Any] = {"save_all": True, "append_images": [Image.fromarray(photo(seed=1))], "duration": 50}
    deep = Image.fromarray(photo(channels=1).astype(np.uint16) * 257)
    return {
        "rgb.jpg": encoded(rgb, "JPEG"),
        "grey.jpg": encoded(grey, "JPEG"),
        "progressive.jpg": encoded(rgb, "JPEG", progressive=True, restart_marker_blocks=2),
        "cmyk.jpg": encoded(rgb.convert("CMYK"), "JPEG"),
        "turned.jpg": encoded(rgb, "JPEG", exif=turned),
        "rgb.png": encoded(rgb, "PNG"),
        "alpha.png": encoded(rgb.convert("RGBA"), "PNG"),
        "palette.png": encoded(rgb.convert("P"), "PNG"),
        "deep.png": encoded(deep, "PNG"),
        "one.png": encoded(grey.convert("1"), "PNG"),
        "turned.png": encoded(rgb, "PNG", exif=turned),
        "animated.png": encoded(rgb, "PNG", **frames),
        "animated.gif": encoded(rgb.convert("P"), "GIF", **frames),
        "animated.webp": encoded(rgb, "WEBP", **frames),
        "rgb.webp": encoded(rgb, "WEBP", lossless=True),
        "rgb.tif": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "rgb.bmp": encoded(rgb, "BMP"),
        "rgb.ppm": encoded(rgb, "PPM"),
        "rgb.jp2": encoded(rgb, "JPEG2000"),
        **bombs(),
    }
