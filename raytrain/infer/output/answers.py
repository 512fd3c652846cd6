"""From what a model says to the columns that are written."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from raytrain.errors import PredictionError
from raytrain.infer.contract import Outputs, Wanted


def answers(keys: np.ndarray, said: Outputs, wanted: Wanted) -> tuple[pa.Table, np.ndarray]:
    """The rows of a batch, and the ids of those that have none: of classes, where the softmax of the output is no
    number. A row has `id` and

    - of classes, `prediction` (the name of the likeliest, or its number where it has none), `prediction_index` beside a
      name, `probability`, and of the likeliest few `top` and `top_probability`, or `probabilities` of all;
    - of raw output, `output`, float32, in C order;
    - `embedding`, float32, where there is one.

    Probabilities are the softmax of the output, in float32.

    Args:
        keys: (samples,) ids.

    Raises:
        PredictionError: the output is not a row of numbers for each sample, or has other classes than there are names.
    """
    columns: dict[str, pa.Array] = {"id": pa.array(keys, pa.int64())}
    good = np.ones(len(keys), dtype=bool)
    output = said.output.to(torch.float32)
    if output.ndim == 0 or len(output) != len(keys):
        raise PredictionError(
            f"the model returned a tensor of shape {tuple(output.shape)} for {len(keys)} samples; it must have one row "
            "for each"
        )
    if wanted.task == "raw":
        columns["output"] = _lists(output.reshape(len(keys), -1).numpy(), wanted.alike)
    else:
        shares = _shares(output, wanted)
        good = ~shares.isnan().any(dim=1).numpy()
        columns |= _of_classes(shares, wanted)
    if said.embeddings is not None:
        columns["embedding"] = _lists(said.embeddings.to(torch.float32).reshape(len(keys), -1).numpy(), wanted.alike)
    rows = pa.table(columns)
    return rows if good.all() else rows.filter(pa.array(good)), keys[~good]


def _shares(output: torch.Tensor, wanted: Wanted) -> torch.Tensor:
    """Probabilities, (samples, classes), float32."""
    if output.ndim != 2:
        raise PredictionError(
            f"the model returned a tensor of shape {tuple(output.shape)}, which is not (samples, classes); write it as "
            "it is with model.task: raw"
        )
    count = output.shape[1]
    if count == 1:
        raise PredictionError(
            "the model returned one number a sample, and the softmax of one is always 1; write it as it is with "
            "model.task: raw"
        )
    _check_names(wanted, count)
    return output.softmax(dim=1)


def _of_classes(shares: torch.Tensor, wanted: Wanted) -> dict[str, pa.Array]:
    count = shares.shape[1]
    most = wanted.probabilities if isinstance(wanted.probabilities, int) else 1
    top_shares, top = (each.numpy() for each in shares.topk(min(most, count), dim=1))
    columns = {"prediction": _named(top[:, 0], wanted.classes, count)}
    if wanted.classes:
        columns["prediction_index"] = pa.array(top[:, 0], pa.int64())
    columns["probability"] = pa.array(top_shares[:, 0])
    if wanted.probabilities == "all":
        columns["probabilities"] = _lists(shares.numpy(), True)
    elif wanted.probabilities != "none":
        names = _named(top.reshape(-1), wanted.classes, count)
        columns["top"] = pa.FixedSizeListArray.from_arrays(names, top.shape[1])
        columns["top_probability"] = _lists(top_shares, True)
    return columns


def _check_names(wanted: Wanted, count: int) -> None:
    """
    Raises:
        PredictionError: names are of other classes than the `count` of the model.
    """
    names = len(wanted.classes)
    if names > count or (wanted.all_named and 0 < names < count):
        raise PredictionError(
            f"there are {names:,} names of classes, and the model returned {count:,} numbers a sample; give "
            "model.classes one name for each, or leave it out for numbers"
        )


def _named(numbers: np.ndarray, classes: Sequence[str], count: int) -> pa.Array:
    """Classes that the model knows beyond those that have a name go by their numbers."""
    if not classes:
        return pa.array(numbers, pa.int64())
    names = pa.array([*classes, *map(str, range(len(classes), count))], pa.string())
    return names.take(pa.array(numbers))


def _lists(rows: np.ndarray, alike: bool) -> pa.Array:
    """(samples, numbers) as a list each, of one length where they are so in every batch."""
    values = pa.array(np.ascontiguousarray(rows).reshape(-1))
    if alike:
        return pa.FixedSizeListArray.from_arrays(values, rows.shape[1])
    ends = np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1]
    return pa.ListArray.from_arrays(pa.array(ends), values)
