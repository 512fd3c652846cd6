"""`raytrain cpu-topology`."""

from __future__ import annotations

import json

import pytest
from trees_of_cpus import hybrid, two_sockets
from typer.testing import CliRunner

from raytrain.cli import cores
from raytrain.infer.streams.topology import CpuTopology, read_topology


def shown(monkeypatch, topology: CpuTopology, *options: str) -> str:
    monkeypatch.setattr(cores, "read_topology", lambda: topology)
    result = CliRunner().invoke(cores.app, list(options), env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result.output


def lines(text: str) -> list[str]:
    """Without what aligns columns."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_a_host_with_two_sockets(monkeypatch, tmp_path):
    found = lines(shown(monkeypatch, read_topology(two_sockets(tmp_path), range(16), quota=6)))
    assert found[0] == "8 physical cores, 16 hardware threads that may be used"
    assert found[2:] == [
        "0 0 - 4 0-3 + 8-11 4 x 1 MiB 1 x 16 MiB",
        "1 1 - 4 4-7 + 12-15 4 x 1 MiB 1 x 16 MiB",
        "a quota of its container leaves 6 of them busy at a time",
        "throughput: 6 streams of 1 core, CPUs 0 | 1 | 2 | 4 | 5 | 6",
        "latency: 2 streams of 3 cores, CPUs 0-2 | 4-6",
    ]


def test_kinds_of_cores(monkeypatch, tmp_path):
    found = lines(shown(monkeypatch, read_topology(hybrid(tmp_path), range(8))))
    assert found[2:4] == [
        "0 0 fast 2 0,2 + 1,3 2 x 1 MiB 1 x 16 MiB",
        "0 0 slow 4 4-7 4 x 1 MiB 1 x 16 MiB",
    ]


def test_a_machine_that_says_nothing_is_one_row(monkeypatch, tmp_path):
    found = lines(shown(monkeypatch, read_topology(tmp_path, range(4))))
    assert found[2] == "0 0 - 4 0-3 - -"


def test_json(monkeypatch, tmp_path):
    tree = json.loads(shown(monkeypatch, read_topology(two_sockets(tmp_path), range(16)), "--json"))
    assert tree["cores"][1] == {"cpus": [1, 9], "node": 0, "socket": 0, "l3": 0, "fast": True}
    assert tree["quota"] is None
    assert tree["streams"]["latency"] == [
        {"cpus": [0, 1, 2, 3], "threads": 4, "node": 0},
        {"cpus": [4, 5, 6, 7], "threads": 4, "node": 1},
    ]


@pytest.mark.parametrize("words", ["latency: ", "throughput: "])
def test_this_machine(monkeypatch, words):
    assert words in shown(monkeypatch, read_topology())
