"""What the public way leaves to Ray; test_finding.py has the other."""

from __future__ import annotations

import pytest

from raytrain.cluster import finding
from raytrain.ray_internals.entry import address_of_this_machine, knock


def test_ray_looks_for_the_cluster_itself(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAYTRAIN_PUBLIC_RAY", "1")
    assert address_of_this_machine(public=True) == "auto"
    assert finding.find("auto") == "auto"


@pytest.mark.parametrize("found", [False, True])
def test_nobody_is_shown_a_token(found):
    knock("127.0.0.1:1", found, public=True)  # no connection is tried, so that nothing is refused
