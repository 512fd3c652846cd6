"""What the headers of a JPEG file say, without decoding it."""

from __future__ import annotations

import struct

ORIENTATION = 0x0112  # EXIF's tag
_TURNED = (5, 6, 7, 8)  # orientations that swap height and width
_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, of any kind
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


def upright_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) once turned as its EXIF data says; None of what is no JPEG file, or a broken one."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    size: tuple[int, int] | None = None
    orientation: int | None = None
    try:
        while True:
            while data[at] == 0xFF and data[at + 1] == 0xFF:  # padding
                at += 1
            if data[at] != 0xFF:
                return None
            marker = data[at + 1]
            at += 2
            if marker in _ALONE:
                continue
            if marker in (0xDA, 0xD9):  # the image, or its end
                return size[::-1] if size is not None and orientation in _TURNED else size
            (length,) = struct.unpack_from(">H", data, at)
            if marker in _SIZES:
                height, width = struct.unpack_from(">HH", data, at + 3)
                if not height or not width:
                    return None
                size = height, width
            if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0" and orientation is None:  # the first counts
                orientation = _orientation(data[at + 8 : at + length])
            at += length
    except (IndexError, struct.error):
        return None


def _orientation(tiff: bytes) -> int:
    """1 where it says nothing."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        (entries,) = struct.unpack_from(order + "H", tiff, first)
        for number in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", tiff, first + 2 + 12 * number)
            if tag == ORIENTATION:
                return int(value)
    except struct.error:
        pass
    return 1
