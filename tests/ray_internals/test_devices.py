"""GPUs in the public way; test_network.py and test_load.py have the other."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from raytrain.ray_internals import devices


@pytest.mark.parametrize("count", [0, 3])
def test_torch_counts(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert devices.usable_gpus(public=True) == count


def test_figures_need_the_package(monkeypatch):
    monkeypatch.setattr(devices.ctypes, "CDLL", lambda _: None)  # there is a driver
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert devices.find_gpus(public=True) is None
    package = SimpleNamespace(NVMLError=OSError, nvmlInit=lambda: None, nvmlDeviceGetCount=lambda: 0)
    monkeypatch.setitem(sys.modules, "pynvml", package)
    assert devices.find_gpus(public=True).read() == (None, None)
