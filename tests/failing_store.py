"""What becomes of checkpoints on a real file system that fails: unshare --mount python failing_store.py FOLDER

A tmpfs of 4 MiB, which is filled, made read-only and unmounted; a state of 1 MiB. After a call that has failed it
is mended, where it is to be, so that the next try finds it so. Prints, by what was done, the steps of the
checkpoints that are there afterwards and what was told.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from keeping import asked, keeper_of

from raytrain.train.checkpoints import shelf
from raytrain.train.checkpoints.writer import Writer

MIB = 1 << 20


class Weights:
    def __init__(self, mib):
        self.state = {"w": torch.rand(mib * MIB // 4)}

    def state_dict(self):
        return self.state


def mount(*words) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def fill(folder: Path, but: int) -> Path:
    """With a file, but for so many bytes."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "ballast").write_bytes(bytes(free - but))
    return folder / "ballast"


class Run:
    """Of one attempt, of which `keep` checkpoints are kept."""

    def __init__(self, folder: Path, name: str, keep: int):
        self.told, self.mend, self.folder = [], None, folder / name
        self.keeper = keeper_of(self.folder, "attempt", keep)
        self.writer = Writer(self.ask, self.told.append, waits_s=(0, 0))

    def ask(self, method: str, *args):
        why = asked(self.keeper)(method, *args)()
        if why is not None and self.mend is not None:
            self.mend()
            self.mend = None
        return lambda: why

    def save(self, step: int, mib: int = 1, mend=None) -> None:
        self.mend = mend
        names = ("epoch", "updates", "samples", "consumed_in_epoch", "seed")
        facts = shelf.Facts(**dict.fromkeys(names, 0), steps=step, fingerprint="f", world_size=1)
        self.writer(facts, {}, [Weights(mib)])
        self.error = self.writer.close()

    def outcome(self) -> dict:
        found = []
        for path, facts in shelf.whole(self.folder):
            shelf.check_digests(path, facts)
            found.append(facts.steps)
        drafts = [path.name for path in self.folder.glob("*/part_*")]
        error = None if self.error is None else str(self.error)
        return {"steps": found, "told": list(self.told), "error": error, "drafts": drafts}


def main(here: Path) -> dict:
    real, store = here / "real", here / "store"
    real.mkdir()
    store.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "tmpfs", real)
    mount("--bind", real, store)
    found = {}

    run = Run(store, "full", keep=2)
    run.save(1)
    run.save(2)
    ballast = fill(store, MIB // 2)
    run.save(3)
    found["full, and there was something to forget"] = run.outcome()
    run.save(4, mib=2)
    found["full for one that is larger"] = run.outcome()
    run.save(5, mib=2, mend=ballast.unlink)
    found["and emptied"] = run.outcome()
    shutil.rmtree(run.folder)

    run = Run(store, "alone", keep=1)
    run.save(1)
    ballast = fill(store, MIB // 2)
    run.save(2)
    found["full, and there is one alone"] = run.outcome()
    run.save(3, mend=ballast.unlink)
    found["and emptied, of one alone"] = run.outcome()

    run = Run(store, "read_only", keep=2)
    run.save(1)
    mount("-o", "remount,bind,ro", store)
    run.save(2)
    found["read-only"] = run.outcome()
    run.save(3, mend=lambda: mount("-o", "remount,bind,rw", store))
    found["and writable again"] = run.outcome()

    shutil.rmtree(run.folder)
    run = Run(store, "gone", keep=2)
    run.save(1)
    subprocess.run(["umount", store], check=True)
    run.save(2)
    found["gone"] = run.outcome() | {"made": os.listdir(store)}
    run.save(3, mend=lambda: mount("--bind", real, store))
    found["and back"] = run.outcome()
    return found


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
