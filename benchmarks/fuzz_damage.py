"""What becomes of a valid file or text when it is damaged: bytes, trees of values, and containers from the inside.

Each function is given its random numbers and draws from nothing else.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import yaml

MOST_BYTES = 1 << 20  # of a damaged file
DEEP = 20_000
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 255, 65_536, 2**31, 2**63, -(2**63) - 1, 10**40),
    *(0.0, -0.0, 0.5, -1.5, 1e-320, 1e-9, 1e15, 1e308, -1e308),
    *(
        "",
        " ",
        "\n",
        "a\nb",
        "\x00",
        "\x1b[31mred",
        "\u202e",
        "é",
        "🦙" * 40,
        "x" * 5_000,
        "null",
        "nan",
        "1e999",
        "-1",
    ),
    *(
        "../../etc/passwd",
        "/",
        "/dev/zero",
        "file:///etc/passwd",
        "s3://",
        "[bold]",
        "[/]",
        "{0}",
        "%s",
        "a:b",
        "a.b:c",
    ),
    *("resize", "cpu", "ml.g5.xlarge", "ml.x", "9" * 400, "__proto__", "💥.💥", "\ud800"),
    *([], {}, [[]], [None], {"": None}, {"kind": "own"}, [0] * 300, {"a": {"a": {"a": 1}}}, [[1, 2], [3]]),
)
RAW_JSON = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5_000, "[" * DEEP + "]" * DEEP, '{"a":' * DEEP + "1"),
    *('"\\ud800"', '{"a": 1, "a": 2}', "", "'x'", "0x1F", "01", "[1,]", "\ufeff", "tru", '"\\x"', "1.", "9" * 400),
)
_ALIASES = [f"&{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
A_BILLION = f"[&a [{', '.join('x' * 10)}], {', '.join(_ALIASES)}]"  # of 90 nodes
RAW_YAML = (
    *(".nan", ".inf", "-.inf", "1e999", "9" * 5_000, "[" * 3_000 + "]" * 3_000, "2001-99-99", "2001-01-01", "12:99:99"),
    *("!!python/object/apply:os.getcwd []", "!!binary '!'", "!!timestamp x", "!!int x", "!!float y", "!!set {a}"),
    *("&a [*a]", "{<<: 3}", "{<<: &b {<<: *b}}", "? [a]", "{[1]: 2}", "{{}: 1}", "!x y", "|\n  a\n b", "*nobody", "@"),
    *('"\\ud800"', '"\\x00"', "0o9", "0b2", "1_000", "!!omap [a: 1, a: 2]", "!!pairs [a]", "--- 1", "%YAML 9.9", "\t"),
    *("`", "on", A_BILLION),
)
TEXT = (
    b"\n",
    b"\x00",
    b"\xff\xfe",
    b",",
    b'"',
    b"\t",
    b"{",
    b"}",
    b"[",
    b":",
    b"-",
    b"#",
    b"9" * 500,
    b"\xed\xa0\x80",
    b"nan",
)
WORDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 50_000)
_HOLE = "\u241f{}\u241f"


def of_bytes(data: bytes, draw: Random, others: Sequence[bytes] = ()) -> bytes:
    """One to four times cut, flipped, repeated, or mixed with another file."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(_BYTES)(data, draw, others)[:MOST_BYTES]
    return data


def _flip(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    made = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8, 64)) if made else 0):
        made[_at(made, draw)] ^= 1 << draw.randrange(8)
    return bytes(made)


def _at(data: bytes | bytearray, draw: Random) -> int:
    """Headers are hit as often as all the rest."""
    return draw.randrange(min(len(data), 64) if draw.random() < 0.5 else len(data))


def _word(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    form = draw.choice(("<B", "<H", ">H", "<I", ">I", "<Q", ">Q"))
    size = struct.calcsize(form)
    if len(data) < size:
        return data
    at = min(_at(data, draw), len(data) - size)
    return data[:at] + struct.pack(form, draw.choice(WORDS) % (1 << 8 * size)) + data[at + size :]


def _cut(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _drop(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    start = draw.randrange(len(data) + 1)
    return data[:start] + data[start + draw.choice((1, 4, 64, 4096)) :]


def _double(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    start = draw.randrange(len(data) + 1)
    part = data[start : start + draw.choice((1, 16, 512))]
    return data[:start] + part * draw.choice((2, 3, 100)) + data[start + len(part) :]


def _put(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return (
        data[:at] + (draw.choice(TEXT) if draw.random() < 0.5 else draw.randbytes(draw.choice((1, 4, 32)))) + data[at:]
    )


def _splice(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    other = draw.choice(others) if others else data
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def _noise(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    return draw.randbytes(draw.choice((0, 1, 100, 4096)))


def _number(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    """Another one in the place of one that stands there as text."""
    found = [*re.finditer(rb"-?\d+(\.\d+)?", data)]
    if not found:
        return data
    one = draw.choice(found)
    other = draw.choice((b"0", b"-1", b"1e999", b"NaN", b"9" * 5_000, b"0.0", b"1e-320", b"18446744073709551616"))
    return data[: one.start()] + other + data[one.end() :]


_BYTES: tuple[Callable[[bytes, Random, Sequence[bytes]], bytes], ...] = (
    *(_flip, _flip, _word, _word, _cut, _drop, _double, _put, _splice, _number, _noise),
)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in it."""
    for key in [*tree] if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


def of_tree(tree: Any, draw: Random, raw: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Another tree, and what is to stand in the place of some texts of it, as it is."""
    tree, holes = copy.deepcopy(tree), dict[str, str]()
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        found = [*places(tree)]
        if not found:
            return draw.choice(VALUES), holes
        into, key = draw.choice(found)
        what = draw.randrange(12)
        if what > 7:
            into[key] = copy.deepcopy(draw.choice([each for each in VALUES if _alike(each, into[key])]))
        elif what < 3:
            into[key] = copy.deepcopy(draw.choice(VALUES))
        elif what == 3:
            holes[_HOLE.format(len(holes))] = draw.choice(raw)
            into[key] = [*holes][-1]
        elif what == 4:
            del into[key]
        elif what == 5:
            other, place = draw.choice(found)
            into[key] = copy.deepcopy(other[place])
        elif what == 6 and isinstance(into, dict):
            name = draw.choice([each for each in VALUES if isinstance(each, str)] + [str(key) + "s", str(key)[:-1]])
            into[name] = into.pop(key)
        else:
            _grow(into, key, draw)
    return tree, holes


def _alike(one: Any, other: Any) -> bool:
    """Numbers are, so that more of what is damaged gets past the first look at its types."""
    number = (int, float)
    return type(one) is type(other) or (type(one) in number and type(other) in number)


def _grow(into: Any, key: Any, draw: Random) -> None:
    if isinstance(into, list):
        into.insert(key, copy.deepcopy(into[key]))
    elif isinstance(into[key], int | float) and not isinstance(into[key], bool):
        into[key] = into[key] * draw.choice((-1, 0, 1e-12, 1e12, 1e300))
    else:
        into[str(key) + draw.choice(("?", "2", "\n"))] = draw.choice(VALUES)


def of_json(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    if draw.random() < 0.3:
        return of_bytes(data, draw, others)
    if not data.strip():
        return draw.choice(RAW_JSON).encode()
    tree, holes = of_tree(json.loads(data), draw, RAW_JSON)
    return _filled(json.dumps(tree, indent=draw.choice((None, 1))), holes, r'"{}"').encode("utf-8", "surrogatepass")


def of_lines(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    """Of JSON objects, a line each."""
    lines = data.splitlines()
    if draw.random() < 0.3 or not lines:
        return of_bytes(data, draw, others)
    at = draw.randrange(len(lines))
    lines[at] = of_json(lines[at], draw, others)
    return b"\n".join(lines) + b"\n"


def of_yaml(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    if draw.random() < 0.3:
        return of_bytes(data, draw, others)
    tree, holes = of_tree(yaml.safe_load(data), draw, RAW_YAML)
    if draw.random() < 0.5:
        text = json.dumps(tree)  # which is YAML too
    else:
        text = yaml.safe_dump(tree, allow_unicode=True, width=10**6)
    text = re.sub(r"\\u241f", "\u241f", text)
    return _filled(text, holes, r"""["']?{}["']?""").encode("utf-8", "surrogatepass")


def _filled(text: str, holes: dict[str, str], form: str) -> str:
    for hole, raw in holes.items():
        for each in (hole, json.dumps(hole).strip('"')):
            text = re.sub(form.format(re.escape(each)), lambda _, raw=raw: raw, text)  # type: ignore[misc]
    return text


def of_zip(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    """From the inside, with its sums as they should be, half of the time."""
    if draw.random() < 0.4:
        return of_bytes(data, draw, others)
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", draw.choice((0, 0, 8))) as new:
        members = {info.filename: old.read(info) for info in old.infolist()}
        name = draw.choice([*members])
        for each, content in members.items():
            if each == name:
                content = (of_json if each.endswith(".json") else of_bytes)(content, draw, [*members.values()])
            if each != name or draw.random() < 0.9:
                new.writestr(each, content)
    return file.getvalue()


def of_png(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    """Chunk by chunk, with their sums as they should be."""
    if draw.random() < 0.3 or not data.startswith(b"\x89PNG"):
        return of_bytes(data, draw, others)
    at, made = 8, bytearray(data[:8])
    chunks = []
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    number = draw.randrange(len(chunks))
    for place, (kind, body) in enumerate(chunks):
        body = of_bytes(body, draw, [each for _, each in chunks])[:65_536] if place == number else body
        made += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return bytes(made)


def of_tar(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    """A header, with its sum as it should be, half of the time."""
    if draw.random() < 0.5 or len(data) < 512 or data.startswith(b"\x1f\x8b"):
        return of_bytes(data, draw, others)
    heads = [at for at in range(0, len(data) - 511, 512) if data[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return of_bytes(data, draw, others)
    at = draw.choice(heads)
    start, size = draw.choice(((0, 100), (124, 12), (124, 12), (156, 1), (156, 1), (157, 100), (257, 8), (345, 155)))
    forms = (b"7" * size, b"\x80" + b"\xff" * (size - 1), b"\xff" * size, b"-1", b"0" * size, draw.randbytes(size))
    field = draw.choice((*forms, draw.choice((b"L", b"x", b"g", b"S", b"1", b"2", b"5", b"7"))))[:size].ljust(
        size, b"\0"
    )
    head = bytearray(data[at : at + 512])
    head[start : start + size] = field
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return data[:at] + bytes(head) + data[at + 512 :]


def of_text(data: bytes, draw: Random, others: Sequence[bytes]) -> bytes:
    """Words as one types them, a line each."""
    lines = data.splitlines() or [b""]
    at = draw.randrange(len(lines))
    words = [str(each).encode("utf-8", "surrogatepass") for each in VALUES] + [each.encode() for each in RAW_YAML]
    kind = draw.randrange(4)
    if kind == 0:
        key, _, _ = lines[at].partition(b"=")
        lines[at] = key + b"=" + draw.choice(words).replace(b"\n", b" ")
    elif kind == 1:
        parts = re.split(rb"([=,.:x])", lines[at])
        parts[draw.randrange(len(parts))] = draw.choice(words).replace(b"\n", b" ")
        lines[at] = b"".join(parts)
    else:
        lines[at] = of_bytes(lines[at], draw, others)
    return b"\n".join(lines)


BY_SUFFIX: dict[str, Callable[[bytes, Random, Sequence[bytes]], bytes]] = {
    ".json": of_json,
    ".jsonl": of_lines,
    ".yaml": of_yaml,
    ".npz": of_zip,
    ".pt": of_zip,
    ".pt2": of_zip,
    ".png": of_png,
    ".tar": of_tar,
    ".txt": of_text,
}


def of_files(files: dict[str, bytes], draw: Random, of: Sequence[str] = ()) -> dict[str, bytes]:
    """One of some files damaged; of a checkpoint with the digests that then belong to it, half of the time."""
    name = draw.choice([each for each in files if not of or each in of])
    damage = BY_SUFFIX.get(name[name.rfind(".") :], of_bytes)
    made = {**files, name: damage(files[name], draw, [*files.values()])}
    for about in [each for each in files if each.endswith("checkpoint.json") and name.endswith(".pt")]:
        if draw.random() < 0.7:
            tree = json.loads(files[about])
            tree["sha256"][name.rpartition("/")[2]] = hashlib.sha256(made[name]).hexdigest()
            made[about] = json.dumps(tree).encode()
    if draw.random() < 0.02:
        del made[name]
    return made
