"""From the description of a data set to its manifest. Runs once, in the driver.

A source is a frozen value; nothing is listed or opened before `open_manifest`. Paths are local or `s3://…`, `gs://…`
(whatever pyarrow's file systems know).
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.fs

from raytrain.config.data import (
    AnySource,
    ImageFolderSource,
    OwnSource,
    ParquetSource,
    SyntheticSource,
    WebDatasetSource,
)
from raytrain.data.sources.image_folder import open_image_folder
from raytrain.data.sources.manifest import Manifest
from raytrain.data.sources.own import Samples, open_own, open_samples
from raytrain.data.sources.parquet import open_parquet
from raytrain.data.sources.readers import NoiseReader
from raytrain.data.sources.webdataset import open_webdataset
from raytrain.errors import DataError


def open_manifest(source: AnySource | Samples, *, seed: int = 0, classes: tuple[str, ...] = ()) -> Manifest:
    """List what the source holds.

    Args:
        source: the description.
        seed: of a synthetic source.
        classes: names by label, of the training split, so that a validation split numbers them alike.

    Raises:
        DataError: nothing there, a class folder without images, an unreadable file, a missing column or label.
    """
    match source:
        case ImageFolderSource():
            manifest = open_image_folder(source, classes)
        case ParquetSource():
            manifest = open_parquet(source, classes)
        case WebDatasetSource():
            manifest = open_webdataset(source)
        case SyntheticSource():
            labels = pa.array(np.arange(source.num_samples, dtype=np.int64) % source.num_classes)
            manifest = Manifest(pa.table({"label": labels}), NoiseReader(source.shape, seed))
        case OwnSource():
            manifest = open_own(source, classes)
        case _:
            manifest = open_samples(source, type(source).__name__, classes)
    if manifest.num_samples == 0:
        raise DataError(
            f"{getattr(source, 'path', None) or getattr(source, 'kind', type(source).__name__)} holds no samples"
        )
    return manifest
