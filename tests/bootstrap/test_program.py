"""How the user's program is called and what counts as its last error."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from patience import patient, wait_for

from raytrain.bootstrap.program import CONNECTED, Program, command, exit_status, failure_text, last_error
from raytrain.errors import ConfigError
from raytrain.ray_internals.entry import again


def test_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train.py", "train.sh"):
        Path(name).touch()
    assert command(["train.py", "a", "--b"]) == [sys.executable, "-u", "train.py", "a", "--b"]
    assert command(["train.sh", "a"]) == ["bash", "train.sh", "a"]
    assert command(["env", "x"])[1:] == ["x"]
    with pytest.raises(ConfigError, match="there is no program to run; name it after --"):
        command([])
    with pytest.raises(ConfigError, match="there is no program 'gone.py' in "):
        command(["gone.py"])
    with pytest.raises(ConfigError, match="there is no command 'no-such-thing' on this host's PATH"):
        command(["no-such-thing"])


def test_connected_programs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("train.py").touch()
    assert command(["train.py", "a"], True) == [sys.executable, "-u", "-m", CONNECTED, "train.py", "a"]
    with pytest.raises(ConfigError, match="--connect is for a .py program, and 'train.sh' is none"):
        command(["train.sh"], True)


def test_init_in_a_connected_program():
    calls = []
    init = again(lambda *given, **options: calls.append((given, options)), lambda: True, lambda: calls.append("left"))
    init()
    init(address="auto")
    init(namespace="own")
    same = {"ignore_reinit_error": True}
    assert calls == [((), same), ((), {"address": "auto", **same}), "left", ((), {"namespace": "own", **same})]


HANDLED = "import logging, sys\ntry: 1 / 0\nexcept Exception: logging.exception('handled')\n"


def run(code: str, *words: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, *words, "-c", code], capture_output=True, text=True)
    return done.returncode, failure_text("p.py", done.returncode, done.stderr)


@pytest.mark.process
@pytest.mark.parametrize(
    ("code", "status", "text"),
    [
        ("raise ValueError('bad value')", 1, "ValueError: bad value"),
        ("raise ValueError('two\\nlines')", 1, "ValueError: two lines"),
        ("assert 1 == 2", 1, "AssertionError"),
        ("try: 1 / 0\nexcept Exception as e: raise RuntimeError('outer') from e", 1, "RuntimeError: outer"),
        ("import json; json.loads('{')", 1, "json.decoder.JSONDecodeError: Expecting property name"),
        ("raise ExceptionGroup('several', [ValueError('a'), TypeError('b')])", 1, "ExceptionGroup: several (2 sub-"),
        ("def f(:", 1, "SyntaxError: invalid syntax"),
        ("import sys; sys.exit('not enough data')", 1, "not enough data"),
        ("import sys; sys.exit(3)", 3, "p.py ended with exit code 3"),
        ("import sys; print('\\x1b[31mred\\x1b[0m', file=sys.stderr); sys.exit(4)", 4, "red"),
        ("import os; os.kill(os.getpid(), 9)", 137, "p.py was ended by SIGKILL (often: out of memory)"),
        ("import os; os.kill(os.getpid(), 15)", 143, "p.py was ended by SIGTERM"),
        (f"{HANDLED}print('it goes on', file=sys.stderr)\nsys.exit('fatal')", 1, "ZeroDivisionError: division"),
        (f"{HANDLED}for n in range(30): print(n, file=sys.stderr)\nsys.exit('fatal')", 1, "fatal"),
    ],
)
def test_the_last_error_of_real_programs(code, status, text):
    returncode, said = run(code)
    assert exit_status(returncode) == status
    assert said.startswith(text)


def test_what_ray_forwards_after_an_exception_is_not_the_error():
    text = (
        "Traceback (most recent call last):\n  File 'x'\nOSError: disk full\n(raylet) a worker died\n(f pid=7) bye\n\n"
    )
    assert last_error(text) == "OSError: disk full"
    assert last_error("") == ""
    bars = "  0%|  | 0/10 [00:00]Traceback (most recent call last):\n  File 'x'\nOSError: gone\n 30%|# | 3/10 [00:01]"
    assert last_error(bars) == "OSError: gone"
    ranks = "[rank0]: Traceback (most recent call last):\n[rank0]:   File 'x'\n[rank0]: OSError: gone\n"
    assert last_error(ranks) == "OSError: gone"
    ignored = (
        "Traceback (most recent call last):\n  File 'x'\nOSError: gone\nException ignored in: <x>\nTypeError: no\n"
    )
    assert last_error(ignored) == "OSError: gone"
    blank = "Traceback (most recent call last):\n  File 'x'\nOSError: cannot load\n\npass a token\n"
    assert last_error(blank) == "OSError: cannot load pass a token"
    assert last_error(blank, returncode=3) == "pass a token"  # Python ends with 1 for an exception
    crash = "Fatal Python error: Segmentation fault\n\nThread 0x1:\nExtension modules: numpy (total: 1)\n"
    assert last_error(crash, returncode=-11) == "Fatal Python error: Segmentation fault"
    assert len(last_error("x" * 5000)) == 1000


def live(code: str, suffix: str, tmp_path: Path, during=lambda program: None) -> tuple[int, Program]:
    path = tmp_path / f"program{suffix}"
    path.write_text(code)
    path.chmod(0o755)

    async def whole() -> tuple[int, Program]:
        program = await Program.start([str(path)], dict(os.environ))
        await asyncio.to_thread(during, program)
        return await program.wait(), program

    return asyncio.run(whole())


@pytest.mark.process
def test_a_program_has_its_own_session_and_unbuffered_output(tmp_path, capfd):
    code = "import os, sys; print(os.getsid(0) == os.getpid(), os.environ['PYTHONUNBUFFERED']); sys.exit('said')"
    status, program = live(code, ".py", tmp_path)
    out, err = capfd.readouterr()
    assert (status, out, err) == (1, "True 1\n", "said\n")
    assert program.name == "program.py" and program.failure(status) == "said"


@pytest.mark.process
def test_a_data_loaders_worker_is_not_told_but_a_shells_command_is(tmp_path, capfd):
    code = f"""
import signal, subprocess, sys, time, os
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
def stop(*_):
    print("child lives", child.poll() is None, flush=True)
    child.kill()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
open({str(tmp_path / "ready")!r}, "w").close()
time.sleep(600)
"""

    def stop(program: Program) -> None:
        wait_for((tmp_path / "ready").exists, 20, "the program is ready")
        program.signal(signal.SIGTERM)

    assert live(code, ".py", tmp_path, stop)[0] == 0
    assert capfd.readouterr().out == "child lives True\n"
    (tmp_path / "inner.py").write_text(code)
    for suffix in (".sh", ""):  # without a suffix the process goes by the script's name
        (tmp_path / "ready").unlink()
        shell = f"#!/bin/bash\n{sys.executable} {tmp_path / 'inner.py'}\necho not reached\n"
        status, program = live(shell, suffix, tmp_path, stop)
        assert status == -signal.SIGTERM and program.is_shell
        # the command still writes its checkpoint when the shell has gone
        wait_for(lambda left=program: not left.group_lives(), 20, "the command ends")
        assert capfd.readouterr().out == "child lives True\n"


@pytest.mark.process
def test_a_background_process_that_holds_standard_error_does_not_hold_the_end(tmp_path):
    began = time.monotonic()
    status, program = live("sleep 600 &\nexit 5\n", ".sh", tmp_path)
    assert status == 5 and time.monotonic() - began < patient(30)
    assert program.group_lives()
    program.kill()


@pytest.mark.process
def test_a_program_that_cannot_be_executed(tmp_path):
    path = tmp_path / "program"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    with pytest.raises(ConfigError, match="cannot be executed: No such file or directory"):
        asyncio.run(Program.start([str(path)], dict(os.environ)))
