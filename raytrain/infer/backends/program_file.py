"""Files of `torch.export.save`, looked through before torch loads them.

`torch.export.load` warns that it executes what is in a file: it unpickles sample inputs and constants, hands
expressions to sympy, which evaluates them as Python, loads compiled code, takes any attribute of torch as the target of
a node, and writes names into code of its own. All of that has a plain form, which is what `torch.export.save` writes
for tensors and their shapes; a file with anything else is refused.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from raytrain.errors import ConfigError, one_line

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_PARTS = re.compile(
    r"(archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/model\.json|extra/.*"
    r"|data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|data/sample_inputs/model\.pt)"
)
_PAYLOAD = re.compile(r"(weight|tensor)_\d+")
_TARGET = re.compile(
    r"torch\.ops\.[a-z]\w*\.([a-zA-Z]\w*|_[a-z]\w*|__i?(and|or|xor|lshift|rshift)__)(\.[a-zA-Z]\w*)?"
    r"|torch\.sym_\w+|torch\._sym_\w+|math\.[a-z]\w*|_operator\.(?!attrgetter|methodcaller|itemgetter|call)[a-z]\w*"
)
_NAME = re.compile(r"[\w.]*")  # becomes a word of generated code
_TREE = re.compile(r"(?!.*(__|default_factory))[\w\s\"\\\[\]{},:.]*")  # so does an argument's; others name modules
_NUMBER_OR_SYMBOL = re.compile(r"\b\d+\.\d*|'\w*'")
_EXPRESSION = re.compile(r"[\w\s+\-*/(),<>=&|~%]*")
_CALL_OF_PYTHON = re.compile(r"\b[a-z_]\w*\s*\(|__")  # torch's and sympy's functions begin with a capital


def load_program(data: bytes, told: str) -> ExportedProgram:
    """
    Raises:
        ConfigError: as `check_program`, or this torch cannot load it.
    """
    check_program(data, told)
    import torch

    try:
        return torch.export.load(io.BytesIO(data))
    except Exception as error:  # noqa: BLE001 - of a file of another version torch raises anything
        raise ConfigError(
            f"torch {torch.__version__} cannot load {told}: {one_line(error, 200)}; save it again with this version"
        ) from None


def check_program(data: bytes, told: str) -> None:
    """
    Raises:
        ConfigError: it is no file of `torch.export.save`, or loading it could execute code.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            parts = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if "models/model.json" not in parts:
                raise ConfigError(f"{told} is no file of torch.export.save, of torch 2.8 or later")
            packed = [name for name, info in parts.items() if info.file_size > len(data)]
            unplain = f"a packed part {packed[0][:80]!r}" if packed else _unplain(archive, parts)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 - of a damaged archive zipfile raises anything
        raise ConfigError(f"{told} is no file of torch.export.save, or was cut off: {one_line(error, 200)}") from None
    if unplain is not None:
        raise ConfigError(
            f"{told} holds {unplain}, and is not loaded since that could execute code: export a program of tensors and "
            "torch's own operations"
        )


def _unplain(archive: zipfile.ZipFile, parts: dict[str, zipfile.ZipInfo]) -> str | None:
    """The first thing in it that could execute code."""
    for name, info in parts.items():
        if not _PARTS.fullmatch(name):
            return f"a part {name[:80]!r}"
        if name.endswith(".json"):
            for what in map(_unplain_value, _nested(json.loads(archive.read(info)))):
                if what is not None:
                    return what
        if name.endswith(".pt") and info.file_size and not _is_plain_pickle(archive.read(info)):
            return "sample inputs that are no plain values"
    return None


def _unplain_value(value: dict[str, Any]) -> str | None:
    if value.get("use_pickle"):
        return "pickled values"
    if "path_name" in value and not _PAYLOAD.fullmatch(str(value["path_name"])):
        return f"a payload {str(value['path_name'])[:80]!r}"
    for target in ([value["target"]] if "inputs" in value and "target" in value else []) + [value.get("as_operator")]:
        if target is not None and not _TARGET.fullmatch(str(target)):
            return f"the operation {str(target)[:80]!r}"
    for key, text in value.items():
        form = _TREE if key in ("in_spec", "out_spec") else _NAME if key.endswith("name") else None
        if form is not None and isinstance(text, str) and not form.fullmatch(text):
            return f"the name {text[:80]!r}"
    text = _NUMBER_OR_SYMBOL.sub("1", str(value.get("expr_str", "")))
    if not _EXPRESSION.fullmatch(text) or _CALL_OF_PYTHON.search(text):
        return f"the expression {text[:80]!r}"
    return None


def _nested(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
    for each in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _nested(each)


def _is_plain_pickle(data: bytes) -> bool:
    import torch

    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # noqa: BLE001 - of a damaged file torch raises anything
        return False
    return True
