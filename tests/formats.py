"""The same images in other formats."""

from __future__ import annotations

import io
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq


def write_parquet(path, folder, *, struct=False, labels="numbers", rows_a_group=3):
    files = sorted(folder.glob("*/*.jpg"))
    images = [{"bytes": f.read_bytes(), "path": f.name} if struct else f.read_bytes() for f in files]
    names = [f.parent.name for f in files]
    label = names if labels == "text" else [sorted(set(names)).index(n) for n in names]
    path.mkdir()
    half = len(files) // 2
    for number, part in enumerate((slice(0, half), slice(half, None))):
        table = pa.table({"image": images[part], "label": label[part]})
        pq.write_table(table, path / f"{number}.parquet", row_group_size=rows_a_group)
    return path


def write_shards(path, folder, *, label=lambda number: str(number).encode(), extension="cls"):
    path.mkdir()
    files = sorted(folder.glob("*/*.jpg"))
    classes = sorted({f.parent.name for f in files})
    for number, part in enumerate((files[::2], files[1::2])):
        with tarfile.open(path / f"{number}.tar", "w") as tar:
            for position, file in enumerate(part):
                for name, data in (
                    (f"{position:04d}.jpg", file.read_bytes()),
                    (f"{position:04d}.{extension}", label(classes.index(file.parent.name))),
                ):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return path
