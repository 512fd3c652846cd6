"""What the bootstrap decides before anything is started, and what it does when the machine is at its end."""

from __future__ import annotations

import asyncio
import errno

import pytest

from raytrain.cluster import bootstrap
from raytrain.cluster.roster import local
from raytrain.cluster.this_host import Options
from raytrain.errors import ClusterError


def test_a_machine_without_room_for_temporary_files(monkeypatch):
    def full(prefix: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(bootstrap.tempfile, "mkdtemp", full)
    with pytest.raises(ClusterError, match="no folder for temporary files on laptop: .*No space left"):
        asyncio.run(bootstrap._live(Options(program=("true",)), local("laptop"), "", None, []))


def test_a_failure_file_that_cannot_be_written_does_not_change_the_end(monkeypatch, capsys):
    def full(text: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(bootstrap.environ, "write_failure", full)
    bootstrap.tell_failure("why")
    assert "the failure file cannot be written: [Errno 30] Read-only file system" in capsys.readouterr().err


def test_a_token_is_made_for_one_host_and_none_when_insecure(monkeypatch):
    monkeypatch.setattr(bootstrap.environ, "read_token", lambda file: None)
    made = {bootstrap._token(Options(program=("true",)), local("laptop")) for _ in range(2)}
    assert len(made) == 2 and all(len(token) == 64 for token in made)
    assert bootstrap._token(Options(program=("true",), insecure=True), local("laptop")) == ""
