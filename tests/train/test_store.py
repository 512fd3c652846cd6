"""Stores that fail for real: a process that is killed at every one of its calls, and file systems that are full,
read-only and gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from keeping import keeper_of, save
from patience import patient

from raytrain.simulate.hosts import unavailable
from raytrain.train.checkpoints import shelf

CALLS = ("open", "pwrite", "fsync", "mkdir", "rename", "unlink", "rmdir")
FILES = {name: np.arange(500, dtype=np.uint8) for name in (shelf.object_file(0), shelf.STATE)}


def text(steps: int) -> str:
    names = ("epoch", "updates", "samples", "consumed_in_epoch", "seed")
    facts = shelf.Facts(**dict.fromkeys(names, 0), steps=steps, fingerprint="f", world_size=1)
    return shelf.describe(facts, {name: shelf.digest(data) for name, data in FILES.items()})


def killed_at(number: int, folder) -> tuple[str, bool]:
    """Save a second checkpoint in a process that is killed at its `number`th call, after half of it where it writes.
    The call, and whether there was one."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        left = [number]

        def deadly(name, call):
            def made(*args, **options):
                left[0] -= 1
                if left[0] == 0:
                    if name == "pwrite":
                        call(args[0], args[1][: len(args[1]) // 2], *args[2:])
                    os.write(writer, name.encode())
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return made

        try:
            for name in CALLS:
                setattr(os, name, deadly(name, getattr(os, name)))
            save(keeper_of(folder, "a", keep=1), text(2), FILES)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        call = pipe.read()
    _, status = os.waitpid(child, 0)
    return call, os.WIFSIGNALED(status)


@pytest.mark.process
def test_killed_at_any_call_the_one_before_or_the_whole_new_one_is_there(tmp_path):
    seen = []
    for number in range(1, 100):
        folder = tmp_path / str(number)
        assert save(keeper_of(folder, "a", keep=1), text(1), FILES) is None
        call, was_killed = killed_at(number, folder)
        found = shelf.latest(folder)
        shelf.check_digests(found, shelf.read_facts(found))
        steps = shelf.read_facts(found).steps
        assert steps == (1 if "rename" not in seen else 2), (seen, call)
        if not was_killed:
            break
        seen.append(call)
        again = keeper_of(folder, "b", keep=1)
        assert save(again, text(3), FILES) is None
        assert [facts.steps for _, facts in shelf.whole(folder)] == [3], "and what was left of it goes"
        assert list(folder.glob("*/part_*")) == []
    assert seen.count("pwrite") == 3 and seen.count("rename") == 1 and seen[-1] == "rmdir", seen


SCENES = {
    "full, and there was something to forget": ([2, 3], 0, None),
    "full for one that is larger": ([3], 1, "No space left on device"),
    "and emptied": ([3, 5], 2, None),
    "full, and there is one alone": ([1], 1, "No space left on device"),
    "and emptied, of one alone": ([3], 2, None),
    "read-only": ([1], 1, "Read-only file system"),
    "and writable again": ([1, 3], 2, None),
    "gone": ([], 1, "No such file or directory"),
    "and back": ([1, 3], 2, None),
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    if unavailable() is not None:
        pytest.skip(unavailable())
    folder = tmp_path_factory.mktemp("store")
    command = ["unshare", "--mount", sys.executable, str(ROOT / "tests" / "failing_store.py"), str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=patient(60), cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.process
@pytest.mark.parametrize("scene", SCENES)
def test_a_store_that_is_full_read_only_or_gone(scenes, scene):
    """Nothing is lost that is not there anew, it is told once and once that it is over, and the end says it."""
    steps, num_told, error = SCENES[scene]
    found = scenes[scene]
    assert (found["steps"], found["drafts"], len(found["told"])) == (steps, [], num_told)
    assert all("training goes on, and it is tried 2 times more" in each for each in found["told"][:1])
    assert all("they can be written again" in each for each in found["told"][1:])
    assert (found["error"] is None) == (error is None) and (error or "") in (found["error"] or "")
    assert found.get("made", []) == [], "nothing is made where it was"
