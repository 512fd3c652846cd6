"""Annotations in the form of COCO: images with the boxes, classes and outlines of what is on them."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.config.data import CocoSource
from raytrain.data.samples.fields import BYTES, Field, Sample, Schema
from raytrain.data.sources.files import Listing, Place, check_paths, described, filesystem_of, is_local, path_of
from raytrain.data.sources.kinds.image_folder import refuse_unreadable
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.readers import FileReader
from raytrain.errors import DataError, one_line

PART = list[Any] | dict[str, Any]
LONGEST = 1 << 20  # pixels: what lies further out is none of an image's


def _is_id(value: Any) -> bool:
    return (type(value) is int and abs(value) < 1 << 62) or _is_name(value)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and (value.isascii() or value == value.encode(errors="replace").decode())


def _is_side(value: Any) -> bool:
    return isinstance(value, int | float) and 1 <= value <= LONGEST


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_coordinate, value))


def _is_coordinate(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= LONGEST


FORMS = {
    "id": _is_id,
    "image_id": _is_id,
    "category_id": _is_id,
    "file_name": _is_name,
    "height": _is_side,
    "width": _is_side,
    "bbox": _is_box,
}


def coco(
    images: Place,
    annotations: Place,
    *,
    task: Literal["detection", "segmentation"] = "detection",
    limit: int | None = None,
    weights: str | None = None,
) -> CocoSource:
    """Images and a JSON file of COCO's form.

    Args:
        images: their folder.
        annotations: the JSON file.
        task: `detection` gives `image` (encoded), `boxes`, float32 (number, 4) of left, top, right and bottom in
            pixels, and `labels`, int64 (number,), the place of the category among those of the file, sorted by their
            ids; crowds are left out. `segmentation` gives `image` and `mask`, uint8 (height, width), 0 where nothing
            is, else the category's place from 1; what comes later in the file lies on top.
        limit, weights: see `raytrain.config.data.BuiltIn`.
    """
    return described(
        CocoSource,
        "coco",
        images=path_of(images),
        annotations=path_of(annotations),
        task=task,
        limit=limit,
        weights=weights,
    )


def open_coco(source: CocoSource, like: Schema | None, seed: int) -> Manifest:
    tree = _tree(source.annotations)
    _check_keys(source, tree)
    categories = sorted(tree["categories"], key=lambda each: each["id"])
    number = {each["id"]: place for place, each in enumerate(categories)}
    classes = tuple(str(each.get("name", each["id"])) for each in categories)
    if like is not None:
        before = like["labels" if source.task == "detection" else "mask"].classes
        own = classes if source.task == "detection" else ("background", *classes)
        if before != own:
            raise DataError(f"{source.annotations} has other categories than the training data")
    by_image: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for each in tree["annotations"]:
        if each["category_id"] not in number:
            raise DataError(f"{source.annotations}: annotation {each.get('id')} has no known category")
        by_image[each["image_id"]].append(each)
    images = tree["images"]
    filesystem, root = filesystem_of(source.images)
    keys = [str(each["file_name"]) for each in images]
    check_paths(keys, f"{source.annotations}, `file_name`", foreign=not is_local(source.annotations))
    refuse_unreadable(Listing(filesystem, root, [], source.images), keys)
    image = Field(BYTES, (), "image")
    if source.task == "segmentation":
        if len(classes) > 255:
            raise DataError(f"{source.annotations} has {len(classes)} categories; a mask of uint8 has room for 255")
        parts = [[_part(a, number) for a in by_image[each["id"]]] for each in images]
        rows = pa.table(
            {
                "key": keys,
                "height": pa.array([int(each["height"]) for each in images]),
                "width": pa.array([int(each["width"]) for each in images]),
                "parts": pa.array([json.dumps(each) for each in parts]),
            }
        )
        mask = Field("uint8", (None, None), "mask", ("background", *classes))
        reader: FileReader = MaskReader(filesystem, root, {"image": "key"})
        return Manifest(rows, reader, Schema({"image": image, "mask": mask}))
    seen = [[a for a in by_image[each["id"]] if not a.get("iscrowd")] for each in images]
    boxes = [[_corners(a["bbox"]) for a in each] for each in seen]
    labels = [[number[a["category_id"]] for a in each] for each in seen]
    rows = pa.table(
        {
            "key": keys,
            "boxes": pa.array(boxes, pa.list_(pa.list_(pa.float32(), 4))),
            "labels": pa.array(labels, pa.list_(pa.int64())),
        }
    )
    fields = {
        "image": image,
        "boxes": Field("float32", (None, 4), "boxes"),
        "labels": Field("int64", (None,), classes=classes),
    }
    return Manifest(rows, FileReader(filesystem, root, {"image": "key"}), Schema(fields), ("boxes", "labels"))


def _check_keys(source: CocoSource, tree: dict[str, Any]) -> None:
    """
    Raises:
        DataError: an entry lacks what is read of it.
    """
    wanted = {
        "categories": ["id"],
        "images": ["id", "file_name", *(["height", "width"] if source.task == "segmentation" else [])],
        "annotations": ["image_id", "category_id", *(["bbox"] if source.task == "detection" else [])],
    }
    for name, keys in wanted.items():
        for number, each in enumerate(tree[name]):
            where = f"{source.annotations}: {name}[{number}]"
            if not isinstance(each, dict):
                raise DataError(f"{where} is no JSON object")
            if lacks := [key for key in keys if key not in each]:
                raise DataError(f"{where} has no `{lacks[0]}`")
            for key in keys:
                if not FORMS[key](each[key]):
                    raise DataError(f"{where} has a `{key}` of another form: {str(each[key])[:60]}")
    for ids in ([each["id"] for each in tree[name]] for name in ("categories", "images")):
        if len({*map(type, ids)}) > 1:
            raise DataError(f"{source.annotations}: some ids are numbers, and others text")


@dataclass(frozen=True)
class MaskReader(FileReader):
    """Draws the mask: columns `height`, `width` and `parts` (JSON: of each thing its class and outlines or runs)."""

    def read(self, rows: pa.Table, index: int) -> Sample:
        sample = super().read(rows, index)
        shape = rows.column("height")[index].as_py(), rows.column("width")[index].as_py()
        mask = np.zeros(shape, np.uint8)
        for number, part in json.loads(rows.column("parts")[index].as_py()):
            draw(mask, number, part)
        sample["mask"] = mask
        return sample


def draw(mask: np.ndarray, number: int, part: PART) -> None:
    """Put a class where a thing is.

    Args:
        part: outlines, each a list of x and y in turns, or runs, `{"size": [height, width], "counts": …}`.

    Raises:
        ValueError: runs of another size, or that do not fill it.
    """
    import cv2

    if isinstance(part, list):
        outlines = [np.rint(np.reshape(each, (-1, 2))) for each in part if len(each) >= 6]
        if not all((np.abs(each) <= LONGEST).all() for each in outlines):
            raise ValueError(f"an outline that leaves the image by more than {LONGEST:,} pixels")
        if outlines:
            cv2.fillPoly(mask, [each.astype(np.int32) for each in outlines], number)
        return
    height, width = part["size"]
    if (height, width) != mask.shape:
        raise ValueError(f"runs of {height} x {width} on an image of {mask.shape[0]} x {mask.shape[1]}")
    counts = part["counts"]
    runs = np.array(unpacked(counts) if isinstance(counts, str) else counts, np.int64)
    if runs.sum() != height * width:
        raise ValueError("runs that do not fill the image")
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    mask[inside.reshape(width, height).T] = number  # column by column


def unpacked(text: str) -> list[int]:
    """COCO's packed runs: numbers of 5 bits a letter, from the third on as differences to the one before the last."""
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[at]) - 48
            value |= (bits & 0x1F) << 5 * shift
            more, at, shift = bool(bits & 0x20), at + 1, shift + 1
            if not more and bits & 0x10:
                value |= -1 << 5 * shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
    return counts


def _part(annotation: dict[str, Any], number: dict[Any, int]) -> tuple[int, PART]:
    return number[annotation["category_id"]] + 1, annotation.get("segmentation") or []


def _corners(box: list[float]) -> list[float]:
    left, top, width, height = box
    return [left, top, left + width, top + height]


def _tree(path: str) -> dict[str, Any]:
    filesystem, name = filesystem_of(path)
    try:
        with filesystem.open_input_stream(name) as stream:
            tree = json.loads(stream.read())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the path in the job file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {one_line(error)}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(tree, dict) or key not in tree:
            raise DataError(f"{path} is not in COCO's form: it has no `{key}`")
        if not isinstance(tree[key], list):
            raise DataError(f"{path} is not in COCO's form: `{key}` is no list")
    return tree  # type: ignore[no-any-return]
