"""The sources, by the module that has them: what `raytrain.data` exports."""

from __future__ import annotations

SOURCE_MODULES = {
    f"raytrain.data.sources.{kind}": (kind,) for kind in ("image_folder", "parquet", "webdataset", "synthetic")
}
