"""What the bootstrap decides before anything is started, and what it does when the machine is at its end."""

from __future__ import annotations

import asyncio
import errno

import pytest

from raytrain.bootstrap import main
from raytrain.bootstrap.host import Options
from raytrain.bootstrap.roster import local
from raytrain.errors import ClusterError


def test_a_machine_without_room_for_temporary_files(monkeypatch):
    def full(prefix: str) -> str:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(main.tempfile, "mkdtemp", full)
    with pytest.raises(ClusterError, match="no folder for temporary files on laptop: .*No space left"):
        asyncio.run(main._live(Options(program=("true",)), local("laptop"), "", None, []))


def test_a_failure_file_that_cannot_be_written_does_not_change_the_end(monkeypatch, capsys):
    def full(text: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(main.environment, "write_failure", full)
    main.tell_failure("why")
    assert "the failure file cannot be written: [Errno 30] Read-only file system" in capsys.readouterr().err


def test_a_token_is_made_for_one_host_and_none_when_insecure(monkeypatch):
    monkeypatch.setattr(main.environment, "read_token", lambda file: None)
    made = {main._token(Options(program=("true",)), local("laptop")) for _ in range(2)}
    assert len(made) == 2 and all(len(token) == 64 for token in made)
    assert main._token(Options(program=("true",), insecure=True), local("laptop")) == ""
