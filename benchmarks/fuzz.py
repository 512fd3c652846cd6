"""Does a user ever see a traceback, wait for ever, or run out of memory for a file that is damaged or malicious?

    python benchmarks/fuzz.py --cases 100000             # the long form, some ten minutes on two cores
    python benchmarks/fuzz.py --only parquet --cases 500 # some targets, comma-separated; --keep: into the results
    python benchmarks/fuzz.py --again parquet:123        # one case, in this process, with its traceback

Every file and text that comes from outside is made valid (`fuzz_seeds.py`), damaged by seeded random numbers
(`fuzz_damage.py`), and read as a command reads it (`fuzz_targets.py`). Right is: it is read, or refused by one of
raytrain's errors in one line, which names the file where a target says so. Anything else fails: another exception, a
process that dies, more than LIMIT_S seconds, or more memory than a target allows. A failing case is printed with its
number and kept in benchmarks/results/fuzz/ (not committed); the same --seed makes the same cases.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import psutil
from fuzz_damage import of_files
from fuzz_targets import TARGETS, Target
from harness import RESULTS, write

from raytrain.errors import RaytrainError, named

LIMIT_S, STILL_S = 10.0, 60.0  # of CPU time, and of doing nothing
ROOM_BYTES = 3 << 30  # of address space
START_S = 180.0  # of a process, imports and valid files included
MOST_CHARACTERS = 4_000  # of a message
SMOKE = 400  # cases of the short form, which leaves out what imports torch
KEPT = RESULTS / "fuzz"
NOBODY = {"XDG_CACHE_HOME": "/nonexistent", "XDG_CONFIG_HOME": "/nonexistent", "COLUMNS": "120"}  # has no files here
GOOD = "refused in one line"


def made(name: str, target: Target, valid: list[dict[str, bytes]], seed: int, number: int) -> dict[str, bytes]:
    """The files of a case. The first cases of a target are its valid samples."""
    if number < len(valid):
        return valid[number]
    draw = Random(f"{seed}/{name}/{number}")
    return of_files(draw.choice(valid), draw, target.of)


def put(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def verdict(target: Target, folder: Path) -> tuple[str, str | None]:
    """What came of it, and what is wrong with that."""
    try:
        return target.read(folder), None
    except RaytrainError as error:
        told = error.told()
        if len(told.splitlines()) != 1:
            return "many lines", told
        if len(told) > MOST_CHARACTERS:
            return "a long message", told[:300]
        if not told.isprintable():
            return "an unprintable message", ascii(told)
        if target.named and not any(each in told for each in target.named):
            return "names no file", told
        return GOOD, None
    except BaseException as error:  # noqa: BLE001 - that is the question
        where = traceback.extract_tb(error.__traceback__)
        ours = [each for each in where if "/raytrain/" in each.filename]
        last = f"{Path((ours or where)[-1].filename).name}:{(ours or where)[-1].lineno}"
        return f"{type(error).__name__} at {last}", named(error)


def child(name: str, seed: int, first: int, last: int) -> None:
    """Cases from `first` to before `last`, each told before and after, in a folder of its own."""
    target = TARGETS[name]
    say = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what libraries print
    if target.torch:
        import torch  # noqa: F401 - maps gigabytes
    valid = target.seeds()
    with tempfile.TemporaryDirectory(prefix="raytrain-fuzz-") as scratch:
        for number in range(first, last):
            print(json.dumps({"begins": number}), file=say)
            print(json.dumps(one(name, target, valid, seed, number, Path(scratch))), file=say)
            if number == first:  # what is imported for the first case is none of its growth
                resource.setrlimit(resource.RLIMIT_AS, (_of_status("VmSize:") + ROOM_BYTES, resource.RLIM_INFINITY))


def one(
    name: str, target: Target, valid: list[dict[str, bytes]], seed: int, number: int, scratch: Path
) -> dict[str, Any]:
    """A case, in a folder below `scratch`, and what is wrong with what came of it."""
    folder = scratch / "case"
    put(folder, made(name, target, valid, seed, number))
    os.chdir(folder)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak
    before, started = _of_status("VmHWM:"), time.perf_counter()
    what, wrong = verdict(target, folder)
    taken_s, grown = time.perf_counter() - started, _of_status("VmHWM:") - before
    if wrong is None and grown > target.most_bytes:
        what, wrong = "memory", f"{grown >> 20} MB"
    if wrong is None and number < min(target.sure, len(valid)) and what == GOOD:
        what, wrong = "a valid file was refused", verdict(target, folder)[0]
    os.chdir(scratch)
    shutil.rmtree(folder)
    return {"number": number, "what": what, "wrong": wrong, "s": taken_s, "bytes": grown}


def _of_status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(key))


def cases_of(name: str, seed: int, count: int) -> list[dict[str, Any]]:
    """All of a target's cases, in processes that are started anew when one dies, hangs or grows."""
    found: list[dict[str, Any]] = []
    first = 0
    while first < count:
        words = [sys.executable, __file__, "--child", name, str(seed), str(first), str(count)]
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors)
            first, rows, end = _watched(process, first)
            found += rows
            if end is None and process.wait() == 0:
                break
            process.kill()
            code = process.wait()
            errors.seek(0)
            if not rows and end is None:
                raise SystemExit(f"{name}: {errors.read().decode(errors='replace')[-2000:]}")
            what = end or f"died of {-code}"
            found.append({"number": first, "what": what, "wrong": what, "s": LIMIT_S if end else 0.0, "bytes": 0})
        first += 1
    return found


def here(name: str, seed: int, count: int) -> list[dict[str, Any]]:
    """A few, in this process."""
    valid = TARGETS[name].seeds()
    with tempfile.TemporaryDirectory(prefix="raytrain-fuzz-") as scratch:
        return [one(name, TARGETS[name], valid, seed, number, Path(scratch)) for number in range(count)]


def _watched(process: Any, first: int) -> tuple[int, list[dict[str, Any]], str | None]:
    """The case that it is at, those that ended, and whether it hangs."""
    rows: list[dict[str, Any]] = []
    at, buffer, started = first, b"", False
    began, began_cpu_s = time.monotonic(), 0.0
    while True:
        ready, _, _ = select.select([process.stdout], [], [], 1.0)
        if not ready:
            own_s, all_s = _cpu_s(process.pid) - began_cpu_s, time.monotonic() - began
            if started and (own_s > LIMIT_S or all_s > STILL_S) or all_s > START_S:
                return at, rows, "hang"
            continue
        data = os.read(process.stdout.fileno(), 1 << 16)
        if not data:
            return at, rows, None
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        for line in map(json.loads, lines):
            if "begins" in line:
                at, started = line["begins"], bool(rows)
                began, began_cpu_s = time.monotonic(), _cpu_s(process.pid)
            else:
                rows.append(line)
                at = line["number"] + 1


def _cpu_s(number: int) -> float:
    """Of a process: others that keep the machine busy are none of its doing."""
    try:
        times = psutil.Process(number).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return times.user + times.system


def keep(name: str, seed: int, rows: list[dict[str, Any]]) -> None:
    """The files of failing cases, one of each kind."""
    valid, seen = TARGETS[name].seeds(), set[str]()
    for row in rows:
        if row["wrong"] is not None and row["what"] not in seen:
            seen.add(row["what"])
            folder = KEPT / f"{name}-{seed}-{row['number']}"
            shutil.rmtree(folder, ignore_errors=True)
            put(folder, made(name, TARGETS[name], valid, seed, row["number"]))
            print(
                f"  {name}:{row['number']} --seed {seed}: {row['what']}: {row['wrong'][:300]}\n    {folder}", flush=True
            )


def again(which: str, seed: int) -> None:
    """One case here, its error uncaught."""
    name, _, number = which.partition(":")
    target = TARGETS[name]
    with tempfile.TemporaryDirectory(prefix="raytrain-fuzz-") as scratch:
        put(Path(scratch), made(name, target, target.seeds(), seed, int(number)))
        os.chdir(scratch)
        print(target.read(Path(scratch)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2_000, help="of all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="targets, comma-separated")
    parser.add_argument("--keep", action="store_true", help="with --only, beside the results of the other targets")
    parser.add_argument("--again", metavar="TARGET:NUMBER")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--smoke", action="store_true")
    asked = parser.parse_args()
    asked.cases = SMOKE if asked.smoke else asked.cases
    warnings.simplefilter("ignore")
    if asked.child:
        return child(asked.child[0], *map(int, asked.child[1:]))
    if asked.again:
        return again(asked.again, asked.seed)
    os.environ.update(NOBODY)
    names = asked.only.split(",") if asked.only else [n for n in TARGETS if not (asked.smoke and TARGETS[n].torch)]
    total = sum(TARGETS[name].share for name in names)
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        count = max(asked.cases * TARGETS[name].share // total, 1)
        began = time.perf_counter()
        each = here(name, asked.seed, count) if asked.smoke else cases_of(name, asked.seed, count)
        wrong = [row for row in each if row["wrong"] is not None]
        rows[name] = {
            "cases": len(each),
            "wrong": len(wrong),
            "outcomes": dict(Counter(row["what"] for row in each).most_common()),
            "longest_s": round(max(row["s"] for row in each), 3),
            "most_bytes": max(row["bytes"] for row in each),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(f"{name}: {rows[name]}", flush=True)
        keep(name, asked.seed, wrong)
    if asked.keep:
        kept = json.loads((RESULTS / "fuzz.json").read_text())
        rows = {name: {**kept["rows"], **rows}[name] for name in TARGETS if name in {**kept["rows"], **rows}}
    cases, wrong_cases, seconds = (sum(row[key] for row in rows.values()) for key in ("cases", "wrong", "seconds"))
    print(f"{cases} cases, {wrong_cases} wrong, in {seconds:.0f} s")
    if asked.keep or not (asked.smoke or asked.only):
        about = {
            "seed": asked.seed,
            "cases": cases,
            "wrong": wrong_cases,
            "seconds": round(seconds),
            "limit_s": LIMIT_S,
        }
        print(write("fuzz", rows, {}, **about))
    raise SystemExit(1 if wrong_cases else 0)


if __name__ == "__main__":
    main()
