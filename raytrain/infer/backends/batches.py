"""Batches for a model that takes so many samples and no other number."""

from __future__ import annotations

from collections.abc import Callable

import torch

Tensors = tuple[torch.Tensor, ...]


def in_batches(call: Callable[[Tensors], Tensors], inputs: Tensors, rows: int | None, least: int = 1) -> Tensors:
    """What `call` says of the inputs, (samples, ...) each, given `rows` at a time: the last ones are filled up with
    copies of the last sample, whose outputs are cut off.

    Args:
        rows: that `call` takes; None for any number from `least` on.
    """
    num = len(inputs[0])
    if rows is None:
        return _cut(call(_filled(inputs, max(num, least))), num)
    if num <= rows:
        return _cut(call(_filled(inputs, rows)), num)
    parts = [
        _cut(call(_filled(tuple(each[at : at + rows] for each in inputs), rows)), min(rows, num - at))
        for at in range(0, num, rows)
    ]
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def _filled(inputs: Tensors, rows: int) -> Tensors:
    more = rows - len(inputs[0])
    if not more:
        return inputs
    return tuple(torch.cat([each, each[-1:].expand(more, *each.shape[1:])]) for each in inputs)


def _cut(outputs: Tensors, rows: int) -> Tensors:
    return outputs if len(outputs[0]) == rows else tuple(each[:rows] for each in outputs)
