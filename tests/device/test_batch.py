"""A batch as the training loop sees it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch

from raytrain.device.batch import DeviceBatch, Ragged


def batch() -> DeviceBatch:
    values = torch.arange(12.0).reshape(6, 2)
    points = Ragged(values, torch.tensor([0, 2, 2, 6]), np.array([2, 0, 4]))
    fields = {"image": torch.zeros(3, 1, 2, 2), "label": torch.arange(3), "points": points, "text": ["a", "b", "c"]}
    return DeviceBatch(fields, 3, np.arange(3), 0)


def test_a_batch_is_a_mapping_of_its_fields():
    made = batch()
    assert isinstance(made, Mapping)
    assert list(made) == ["image", "label", "points", "text"] and len(made) == 4 and made.size == 3
    assert made.image is made["image"] and made.label is made["label"]
    assert "mask" not in made and made.get("mask") is None
    assert dict(**made) == made.fields


def test_a_field_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(KeyError) as error:
        batch()["mask"]
    assert error.value.args == ("a batch has no field 'mask'; it has image, label, points, text",)


def test_a_batch_without_an_image_has_no_such_attribute():
    made = DeviceBatch({"tokens": torch.zeros(3, 2)}, 3, np.arange(3), 0)
    assert not hasattr(made, "image") and getattr(made, "label", None) is None
    with pytest.raises(AttributeError, match="a batch has no field 'image'; it has tokens"):
        made.image  # noqa: B018


def test_ragged_values_come_one_by_one_or_as_torchs_nested_tensor():
    points = batch()["points"]
    assert len(points) == 3
    assert [each.tolist() for each in points] == [[[0, 1], [2, 3]], [], [[4, 5], [6, 7], [8, 9], [10, 11]]]
    nested = points.nested()
    assert all(torch.equal(one, other) for one, other in zip(nested.unbind(), points, strict=True))
    assert nested.values().data_ptr() == points.values.data_ptr(), "over the same memory"
