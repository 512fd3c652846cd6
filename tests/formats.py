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


def write_tar(path, members):
    """A shard of these members, bytes by name, in order."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def write_shards(path, folder, *, label=lambda number: str(number).encode(), extension="cls"):
    path.mkdir()
    files = sorted(folder.glob("*/*.jpg"))
    classes = sorted({f.parent.name for f in files})
    for number, part in enumerate((files[::2], files[1::2])):
        members = {}
        for position, file in enumerate(part):
            members[f"{position:04d}.jpg"] = file.read_bytes()
            members[f"{position:04d}.{extension}"] = label(classes.index(file.parent.name))
        write_tar(path / f"{number}.tar", members)
    return path


def write_list(path, rows, delimiter=","):
    """CSV with a header, of a list of dicts."""
    lines = [delimiter.join(rows[0]), *(delimiter.join(map(str, row.values())) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path
