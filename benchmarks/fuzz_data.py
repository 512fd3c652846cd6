"""Reading damaged data sets and pictures: listed, read sample by sample, and decoded."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

import fuzz_pictures
import fuzz_seeds as seeds

from raytrain.errors import RaytrainError, named

READ, LEFT_OUT, NONE = "read", "some samples left out", "none there"
DECODED_BYTES = 3 * 537 << 20  # of the largest image: what a decoder works on, the pixels, and them in another order
MOST_SAMPLES = 64  # of a damaged data set that are read


def of_data(source: Any) -> str:
    """A data set: listed, read, and its images decoded."""
    from raytrain.data.sources.lengths import lengths_of
    from raytrain.data.sources.open import open_manifest
    from raytrain.data.stages.images import decode_field

    manifest = open_manifest(source)
    assert manifest.num_samples > 0 and manifest.fingerprint
    left_out = 0
    for index in range(min(manifest.num_samples, MOST_SAMPLES)):
        [sample] = manifest.read_many([index])
        assert manifest.describe(index)
        if isinstance(sample, Exception):
            assert named(sample)
            left_out += 1
            continue
        assert {*sample} == {*manifest.schema}, (sample, manifest.schema)
        for name, field in manifest.schema.items():
            if field.is_encoded:
                with contextlib.suppress(ValueError):
                    decode_field(sample[name], field.kind)
    with contextlib.suppress(RaytrainError):
        lengths_of(manifest, next(iter(manifest.schema)))
    return LEFT_OUT if left_out else READ


def source(folder: Path) -> str:
    """By what is there."""
    from raytrain.data import arrays, coco, huggingface, image_list, parquet, webdataset

    names = {each.name for each in folder.iterdir()}
    lists = [name for name in names if name.startswith("list.")]
    if lists:
        return of_data(image_list(str(folder / lists[0])))
    if any(".tar" in name for name in names):
        return of_data(webdataset(str(folder)))
    if "a.parquet" in names:
        return of_data(parquet(str(folder)))
    if {"state.json", "dataset_info.json", "0.arrow"} & names:
        return of_data(huggingface(str(folder)))
    if {"coco.json", "0.jpg"} & names:
        for task in ("detection", "segmentation"):
            what = of_data(coco(str(folder), str(folder / "coco.json"), task=task))
        return what
    return of_data(arrays(str(folder)))


def picture(folder: Path) -> str:
    """By every way that decodes; a stage's errors of one sample count it as corrupt, whatever they are."""
    import numpy as np

    from raytrain.data.stages.encoded.ahead import decode_for
    from raytrain.data.stages.encoded.jpeg import jpeg_head
    from raytrain.data.stages.geometry import resize_field
    from raytrain.data.stages.images import decode_field, decoded_size

    paths = [*folder.iterdir()]
    data = paths[0].read_bytes() if paths else b""
    jpeg_head(data)
    what = READ
    for kind in ("image", "mask"):
        try:
            made = decode_field(data, kind)  # type: ignore[arg-type]
            assert made.ndim == (3 if kind == "image" else 2) and made.dtype.kind in "ub", (made.shape, made.dtype)
            assert decoded_size(data, kind) == made.shape[:2]  # type: ignore[arg-type]
        except ValueError as error:
            assert named(error) == " ".join(named(error).split())
            what = "no image"
    with contextlib.suppress(ValueError):
        made = decode_for({"image": data}, {"image": "image"}, resize_field, {"size": 4})["image"]
        assert made.shape[2] == 3 and made.dtype == np.uint8
    return what


def kept_manifest(folder: Path) -> str:
    """The cache of a source that has not changed."""
    from raytrain.data import parquet
    from raytrain.data.sources.cache import kept_in
    from raytrain.data.sources.open import open_manifest

    table = folder / "t.parquet"
    os.utime(table, ns=(1, 1))
    with kept_in(folder / "kept"):
        kept = [*(folder / "kept").glob("*.arrow")]
        stand_in = kept[0].read_bytes() if kept else b""
        for each in kept:
            each.unlink()
        open_manifest(parquet(str(table)))
        for each in (folder / "kept").glob("*.arrow"):
            each.write_bytes(stand_in)
        manifest = open_manifest(parquet(str(table)))
    manifest.read_many([0])
    return READ


def kept_seeds() -> list[seeds.Files]:
    from raytrain.data import parquet
    from raytrain.data.sources.cache import kept_in
    from raytrain.data.sources.open import open_manifest

    with tempfile.TemporaryDirectory() as name:
        table = Path(name) / "t.parquet"
        table.write_bytes(seeds.tables()[0]["a.parquet"])
        with kept_in(Path(name) / "kept"):
            open_manifest(parquet(str(table)))
        [kept] = (Path(name) / "kept").glob("*.arrow")
        return [{"t.parquet": table.read_bytes(), "kept/a.arrow": kept.read_bytes()}]


def picture_files() -> list[seeds.Files]:
    return [{name: data} for name, data in fuzz_pictures.pictures().items()]
