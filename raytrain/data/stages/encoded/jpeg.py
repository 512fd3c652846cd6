"""What the headers of a JPEG file say, without decoding it."""

from __future__ import annotations

import struct
from dataclasses import dataclass

ORIENTATION = 0x0112  # EXIF's tag
_TURNED = (5, 6, 7, 8)  # orientations that swap height and width
_SIZES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, of any kind
_USUAL = (0xC0, 0xC1, 0xC2)  # of Huffman codes: baseline, extended, progressive
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
_END = b"\xff\xd9"
_SHORT = 3  # EXIF's number of the type
UNREADABLE = -1


@dataclass(frozen=True)
class JpegHead:
    """
    Attributes:
        size: (height, width) once turned.
        orientation: as its EXIF data says, from 1 to 8; 1 where that says nothing, or nothing that there is.
        is_usual: any decoder gives the same: grey, or YCbCr of 8 bits, in Huffman codes, up to the end of the file,
            with no EXIF data that one may read otherwise.
    """

    size: tuple[int, int]
    orientation: int
    is_usual: bool


def upright_size(data: bytes | memoryview) -> tuple[int, int] | None:
    """(height, width) once turned as its EXIF data says; None of what is no JPEG file, or a broken one."""
    head = jpeg_head(data)
    return None if head is None else head.size


def jpeg_head(data: bytes | memoryview) -> JpegHead | None:
    """None of what is no JPEG file, or a broken one."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    frame: tuple[int, int, bool] | None = None
    orientation: int | None = None
    is_usual = data[-2:] == _END
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
                return None if frame is None else _head(frame, orientation, is_usual)
            (length,) = struct.unpack_from(">H", data, at)
            if marker in _SIZES:
                frame = _frame(data, at, marker)
                if not frame[0] or not frame[1]:
                    return None
            if marker == 0xE1 and data[at + 2 : at + 8] == b"Exif\0\0":
                is_usual &= orientation is None
                if orientation is None:  # the first counts
                    orientation = _orientation(data[at + 8 : at + length])
            if marker == 0xEE and data[at + 2 : at + 7] == b"Adobe":
                is_usual &= data[at + 13] != 0  # RGB
            at += length
    except (IndexError, struct.error):
        return None


def _head(frame: tuple[int, int, bool], orientation: int | None, is_usual: bool) -> JpegHead:
    height, width, usual_frame = frame
    size = (width, height) if orientation in _TURNED else (height, width)
    known = orientation if orientation is not None and 1 <= orientation <= 8 else 1
    return JpegHead(size, known, is_usual and usual_frame and orientation != UNREADABLE)


def _frame(data: bytes | memoryview, at: int, marker: int) -> tuple[int, int, bool]:
    """Height, width, and whether it is a usual one."""
    bits, height, width, components = struct.unpack_from(">BHHB", data, at + 2)
    ids = bytes(data[at + 8 : at + 8 + 3 * components : 3])
    return height, width, marker in _USUAL and bits == 8 and components in (1, 3) and ids != b"RGB"


def _orientation(tiff: bytes | memoryview) -> int:
    """1 where it says nothing."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None:
        return UNREADABLE
    try:
        magic, first = struct.unpack_from(order + "HI", tiff, 2)
        if magic != 42:
            return UNREADABLE
        (entries,) = struct.unpack_from(order + "H", tiff, first)
        for number in range(entries):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, first + 2 + 12 * number)
            if tag == ORIENTATION:
                return int(value) if kind == _SHORT else UNREADABLE
    except struct.error:
        return UNREADABLE
    return 1
