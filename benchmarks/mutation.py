"""Would the tests notice? Small errors are put into the arithmetic, one at a time, and the tests without Ray are run.

    python benchmarks/mutation.py --mutants 320            # half an hour on two cores
    python benchmarks/mutation.py --only 'raytrain/cost/*' --mutants 60
    python benchmarks/mutation.py --again                  # what survived the run that is kept, after tests were added

Each worker has a copy of the tree, imports what is large once, and forks a process for every mutant. Survivors are
printed with the line before and after; results/mutation_survivors.yaml says of those that were looked into why they
survive. What only runs with Ray is left out (LEFT_OUT), and so are messages, assertions, annotations and descriptions.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import ctypes
import fnmatch
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "benchmarks" / "results" / "mutation.json"
TREE = ROOT  # what is mutated: the copy that `main` makes, so that the sources may change while it runs
LOOP = ["tests/train/test_context.py", "tests/train/test_loop.py", "tests/train/test_resume.py"]
LOOP += ["tests/train/test_arithmetic.py"]
DISK = ["tests/train/test_keeper.py", "tests/train/test_loop.py", "tests/train/test_resume.py"]
TESTS = {
    "raytrain/train/checkpoints/shelf.py": DISK,
    "raytrain/train/checkpoints/keeper.py": DISK,
    "raytrain/train/checkpoints/checkpoint.py": DISK,
    "raytrain/train/models.py": ["tests/train/test_loop.py"],
    "raytrain/train/ledger.py": ["tests/train/test_ledger.py", "tests/train/test_resume.py"],
    "raytrain/train/*.py": LOOP,
    "raytrain/data/order.py": ["tests/data/test_order.py", "tests/data/test_router.py", "tests/train/test_resume.py"],
    "raytrain/data/samples/*.py": ["tests/data/samples", "tests/data/test_producer.py"],
    "raytrain/data/feed.py": ["tests/data/test_feed_decisions.py"],
    "raytrain/data/pace.py": ["tests/data/test_pace.py", "tests/data/test_router.py"],
    "raytrain/data/router.py": ["tests/data/test_pace.py", "tests/data/test_router.py"],
    "raytrain/data/stream.py": ["tests/data/test_pace.py", "tests/data/test_router.py"],
    "raytrain/cost/*.py": ["tests/cost"],
}
LEFT_OUT = {  # files, and classes and functions in them, that need Ray
    "raytrain/train/trainer.py": "*",
    "raytrain/data/stream.py": ("Stream", "_cause", "FeedOptions"),
    "raytrain/train/checkpoints/keeper.py": ("read",),
    "raytrain/train/contract.py": "*",
}
NAMED = {  # errors that tests once did not notice, or that would be the worst, by file: what, text, text instead
    "raytrain/train/modules.py": [
        (
            "gradients are not exchanged",
            "return DistributedDataParallel(module, ",
            "return (lambda m, **_: m)(module, ",
        ),
    ],
    "raytrain/train/update.py": [
        ("no division by the window", "(batch.size * self._ctx.world_size / planned)", "1.0"),
        ("stand-ins at full weight", "torch.nan_to_num(loss) * 0.0", "loss"),
        ("no correction for holes", "gradient.mul_(correction)", "pass"),
        ("no clipping", "torch.nn.utils.clip_grad_norm_(self._parameters(), self._clip_norm)", "pass"),
        ("the schedule stands still", "self._scheduler.step()", "pass"),
        ("the schedule moves without an update", "if stepped and self._scheduler", "if self._scheduler"),
    ],
    "raytrain/train/loop.py": [
        ("decay of all parameters", '"weight_decay": 0.0', '"weight_decay": settings.weight_decay'),
        ("no smoothing", ", label_smoothing=training.label_smoothing", ""),
        ("validation of the own rank", "ctx.sum_over_ranks(loss, correct, count)", "(loss, correct, count)"),
    ],
    "raytrain/train/context.py": [
        ("no autocast", "if dtype else contextlib.nullcontext()", "if False else contextlib.nullcontext()"),
        ("weights of 1", "batch.weight = own * self.world_size / batch.step_samples", "pass"),
        ("no random state is restored", "self._restore_rng()", "pass"),
        (
            "a ledger without what was before",
            "Ledger(num_train, *(restored.ledger if restored else ()))",
            "Ledger(num_train)",
        ),
        ("samples counted from the resume", "facts.samples if facts else 0", "0"),
        ("each rank evaluates its own buffers", "modules.broadcast_buffers(self._modules)", "pass"),
        (
            "stand-ins reach BatchNorm",
            "modules.frozen_statistics(self._modules, self.world_size) if alone",
            "modules and contextlib.nullcontext() if alone",
        ),
        ("the restored state is kept", "self._restored = None  #", "pass  #"),
        ("BatchNorm keeps what was skipped", "modules.put_buffers_back(self._modules, self._before[1])  #", "pass  #"),
        ("BatchNorm keeps what a stop threw away", "checkpoint.set_rng_state(self._before[0])", "return"),
    ],
    "raytrain/train/checkpoints/checkpoint.py": [
        ("the first object is restored alone", "in zip(objects, readers,", "in zip(objects[:1], readers[:1],"),
        ("restored readers are kept", "readers.clear()", "pass"),
        ("no random state of a GPU", 'state["cuda"] = torch.cuda.get_rng_state()', "pass"),
    ],
    "raytrain/train/checkpoints/keeper.py": [
        ("drafts under a final name", "self._own / DRAFT, self", 'self._own / "checkpoint_1", self'),
        ("files not synchronised", "os.fsync(file.fileno())", "pass"),
        ("the draft's folder not synchronised", "_sync_folder(draft)", "pass"),
        ("the folders above not synchronised", "                _sync_folder(folder)", "                pass"),
    ],
}
SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Add: ast.Sub, ast.Sub: ast.Add,
    ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip
NAMES = {"min": "max", "max": "min", "any": "all", "all": "any"}
MOST_BYTES = 4 << 30
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>
SLOWER, GRACE_S = 4, 30.0  # a mutant that takes longer than the tests do without it hangs


@dataclass(frozen=True)
class Mutant:
    file: str
    number: int
    line: int
    what: str


class Mutator(ast.NodeTransformer):
    """Counts the places of a tree where something can be changed, and changes the one that is `wanted`."""

    def __init__(self, left_out: tuple[str, ...] | str, wanted: int = -1):
        self._left_out, self._wanted = left_out, wanted
        self.found: list[tuple[int, str]] = []

    def _here(self, node: ast.AST, what: str) -> bool:
        self.found.append((node.lineno, what))
        return len(self.found) - 1 == self._wanted

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if node.name in self._left_out:
            return node
        node.args.defaults = [self.visit(each) for each in node.args.defaults]
        node.args.kw_defaults = [each and self.visit(each) for each in node.args.kw_defaults]
        node.body = self._all(node.body)
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if node.name not in self._left_out:
            node.body = self._all(node.body)
        return node

    def _all(self, body: list[ast.stmt]) -> list[ast.stmt]:
        return [self.visit(each) for each in body]

    def _kept(self, node: ast.AST) -> ast.AST:
        return node

    visit_Raise = visit_Assert = visit_JoinedStr = visit_Import = visit_ImportFrom = _kept

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = node.value and self.visit(node.value)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if type(node.ops[0]) in SWAPPED and self._here(node, "another comparison"):
            node.ops[0] = SWAPPED[type(node.ops[0])]()
        return self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        sides = (node.left, node.right)
        text = any(isinstance(each, ast.Constant | ast.JoinedStr) and not _number(each) for each in sides)
        if type(node.op) in SWAPPED and not text and self._here(node, "another operator"):
            node.op = SWAPPED[type(node.op)]()
        return self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        if type(node.op) in SWAPPED and self._here(node, "another operator"):
            node.op = SWAPPED[type(node.op)]()
        if self._here(node, "left out"):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        if self._here(node, "and for or"):
            node.op = SWAPPED[type(node.op)]()
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.AST:
        if isinstance(node.op, ast.Not | ast.USub) and self._here(node, "without its sign"):
            return self.visit(node.operand)
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool) and self._here(node, "the other truth"):
            return ast.copy_location(ast.Constant(not node.value), node)
        if _number(node) and self._here(node, "another number"):
            return ast.copy_location(ast.Constant(0 if node.value == 1 else node.value + 1), node)
        return node

    def visit_Return(self, node: ast.Return) -> ast.AST:
        empty = node.value is None or (isinstance(node.value, ast.Constant) and node.value.value is None)
        if not empty and self._here(node, "None returned"):
            return ast.copy_location(ast.Return(ast.Constant(None)), node)
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST:
        if ast.unparse(node.test) == "TYPE_CHECKING":
            return node
        return self._forced(node)

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        return self._forced(node)

    def _forced(self, node: Any) -> ast.AST:
        for value in (True, False):
            if self._here(node, f"always {value}"):
                node.test = ast.copy_location(ast.Constant(value), node.test)
                return node
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        if isinstance(node.value, ast.Constant):
            return node
        if isinstance(node.value, ast.Call) and self._here(node, "left out"):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if isinstance(node.targets[0], ast.Attribute | ast.Subscript) and self._here(node, "left out"):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name in ("Field", "ConfigError", "CheckpointError", "cast"):
            return node
        if name in NAMES and self._here(node, f"{NAMES[name]} for {name}"):
            node.func.id = NAMES[name]
        if node.keywords and node.keywords[-1].arg and self._here(node, f"without {node.keywords[-1].arg}"):
            node.keywords.pop()
        return self.generic_visit(node)


def _number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool)


def tests_of(file: str) -> list[str]:
    return next(tests for pattern, tests in TESTS.items() if fnmatch.fnmatch(file, pattern))


def mutants_of(file: str) -> list[Mutant]:
    left_out = LEFT_OUT.get(file, ())
    if left_out == "*":
        return []
    mutator = Mutator(left_out)
    mutator.visit(ast.parse((TREE / file).read_text()))
    return [Mutant(file, number, line, what) for number, (line, what) in enumerate(mutator.found)]


def named_of(file: str) -> list[Mutant]:
    source = (TREE / file).read_text()
    places = [(source[: source.index(text)].count("\n") + 1, what) for what, text, _ in NAMED.get(file, ())]
    return [Mutant(file, -1 - number, *place) for number, place in enumerate(places)]


def mutated(mutant: Mutant) -> tuple[str, str, str]:
    """The file's text, and the changed line (or its statement's first) before and after, as the parser prints them."""
    source = (TREE / mutant.file).read_text()
    if mutant.number < 0:
        _, text, instead = NAMED[mutant.file][-1 - mutant.number]
        return source.replace(text, instead, 1), text, instead
    before = ast.unparse(ast.parse(source))
    tree = Mutator(LEFT_OUT.get(mutant.file, ()), mutant.number).visit(ast.parse(source))
    after = ast.unparse(ast.fix_missing_locations(tree))
    assert before != after
    first = next(
        pair for pair in zip_longest(before.splitlines(), after.splitlines(), fillvalue="") if len(set(pair)) > 1
    )
    return after, *first


def again(rows: list[dict[str, Any]]) -> list[Mutant]:
    """The survivors of an earlier run that can still be made: the same change of the same line."""
    survivors = {(row["file"], row["before"], row["after"]) for row in rows if row["verdict"] == "survived"}
    found = []
    for file in sorted({file for file, *_ in survivors}):
        for mutant in named_of(file) + mutants_of(file):
            _, before, after = mutated(mutant)
            if (file, before.strip(), after.strip()) in survivors:
                survivors.discard((file, before.strip(), after.strip()))
                found.append(mutant)
    return found


def drawn(files: list[str], count: int, seed: int) -> list[Mutant]:
    """A fair share for every file by what can be changed in it, and at least three."""
    dice = random.Random(seed)
    by_file = {file: found for file in files if (found := mutants_of(file))}
    total = sum(map(len, by_file.values()))
    chosen = []
    for found in by_file.values():
        share = min(max(round(count * len(found) / total), 3), len(found))
        chosen += dice.sample(found, share)
    return dice.sample(chosen, len(chosen))


# --- a worker ---


def work(folder: Path) -> None:
    """Mutants in, verdicts out, a line of JSON each. What is imported here cannot be mutated: nothing of ours is."""
    os.chdir(folder)
    sys.dont_write_bytecode = True
    sys.path[:0] = [str(folder), str(folder / "tests")]
    import boto3  # noqa: F401 - what is large, once
    import cv2  # noqa: F401
    import hypothesis.strategies  # noqa: F401
    import moto  # noqa: F401
    import numpy  # noqa: F401
    import pyarrow  # noqa: F401
    import pytest  # noqa: F401
    import timm  # noqa: F401
    import torch

    torch.set_num_threads(1)
    assert not any(name.startswith("raytrain") for name in sys.modules)
    for line in sys.stdin:
        task = json.loads(line)
        path = folder / task["file"] if task["file"] else None
        text = path.read_text() if path else ""
        if path:
            path.write_text(task["text"])
        began = time.monotonic()
        verdict = _forked(task["tests"], task["limit_s"])
        if path:
            path.write_text(text)
        print(json.dumps({"verdict": verdict, "seconds": round(time.monotonic() - began, 1)}), flush=True)


def _forked(tests: list[str], limit_s: float) -> str:
    child = os.fork()
    if not child:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a mutant that hangs does not outlive a stopped run
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))  # some mutants collect things without end
        null = os.open(os.environ.get("MUTATION_OUTPUT", os.devnull), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(null, stream)
        import pytest

        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--hypothesis-profile=mutation"]
        os._exit(int(pytest.main([*options, "--timeout=0", "-m", "pure or ranks", *tests])))
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            _end(child)
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    _end(child)
    os.waitpid(child, 0)
    return "timed out"


def _end(session: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def copy_tree(folder: Path) -> Path:
    """What the tests need of the project."""
    for name in ("raytrain", "tests", "docs", "examples", "source_dir", "launch"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    return folder


class Worker:
    def __init__(self, folder: Path):
        shutil.copytree(TREE, folder)
        command = [sys.executable, __file__, "--worker", str(folder)]
        environment = {
            **os.environ,
            "RAYTRAIN_TEST_PATIENCE": "1",
            "RAYTRAIN_TEST_EXAMPLES": "0.25",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=environment, **pipes)

    def ask(self, tests: list[str], limit_s: float, file: str = "", text: str = "") -> dict[str, Any]:
        task = {"tests": tests, "limit_s": limit_s, "file": file, "text": text}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def run(mutants: list[Mutant], jobs: int, verbose: bool) -> Iterator[dict[str, Any]]:
    """A row a mutant. Every selection of tests first has to pass without one."""
    from concurrent.futures import ThreadPoolExecutor
    from queue import SimpleQueue

    with tempfile.TemporaryDirectory() as folder:
        free: SimpleQueue[Worker] = SimpleQueue()
        workers = [Worker(Path(folder) / str(number)) for number in range(jobs)]
        limits = {}
        for file in sorted({mutant.file for mutant in mutants}):
            key = tuple(tests_of(file))
            if key not in limits:
                answer = workers[0].ask(list(key), 1800)
                if answer["verdict"] != "survived":
                    raise SystemExit(f"the tests do not pass as they are: {' '.join(key)}")
                limits[key] = SLOWER * answer["seconds"] + GRACE_S
        for worker in workers:
            free.put(worker)

        def one(mutant: Mutant) -> dict[str, Any]:
            text, before, after = mutated(mutant)
            worker, key = free.get(), tuple(tests_of(mutant.file))
            answer = worker.ask(list(key), limits[key], mutant.file, text)
            free.put(worker)
            row = {**asdict(mutant), "before": before.strip(), "after": after.strip(), **answer}
            if verbose:
                where = f"{mutant.file}:{mutant.line} {mutant.what}"
                print(f"{row['verdict']:9} {row['seconds']:6.1f} s  {where}", flush=True)
            return row

        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(one, mutants)
        for worker in workers:
            worker.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutants", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="*", help="files, as a pattern")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--again", action="store_true", help="only what survived the run that is kept")
    parser.add_argument("--smoke", action="store_true", help="three mutants of the ledger; results are not kept")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        return work(asked.worker)
    if asked.smoke:
        asked.mutants, asked.only, asked.jobs = 3, "raytrain/train/ledger.py", 1
        TESTS[asked.only] = ["tests/train/test_ledger.py"]
    with tempfile.TemporaryDirectory() as folder:
        global TREE
        TREE = copy_tree(Path(folder) / "tree")
        patterns = [pattern for pattern in TESTS if any(TREE.glob(pattern))]
        files = sorted({str(path.relative_to(TREE)) for pattern in patterns for path in TREE.glob(pattern)})
        files = [file for file in files if fnmatch.fnmatch(file, asked.only) and not file.endswith("__init__.py")]
        named = [mutant for file in files for mutant in named_of(file)] if not asked.smoke else []
        kept = json.loads(KEPT.read_text())["rows"]["mutants"] if asked.again else []
        mutants = again(kept) if asked.again else named + drawn(files, asked.mutants, asked.seed)
        rows = list(run(mutants, asked.jobs, asked.verbose))
    # a survivor whose line is no longer there counts no more
    rows = [row for row in kept if row["verdict"] != "survived"] + rows
    show(rows)
    if not asked.smoke and asked.only == "*":
        verdicts = Counter(row["verdict"] for row in rows)
        killed = (verdicts["killed"] + verdicts["timed out"]) / len(rows)
        import harness  # imports raytrain

        known = explanations()
        rows = [{**row, "why": known.get(explained(row))} if row["verdict"] == "survived" else row for row in rows]
        print(harness.write("mutation", {"mutants": rows}, {"killed": killed}, seed=asked.seed, again=asked.again))
    return None


def explained(row: dict[str, Any]) -> str:
    """The key of a survivor's explanation: its file and what its line has become, or what was left out."""
    return f"{row['file']}: " + (f"without {row['before']}" if row["after"] == "pass" else row["after"])


def explanations() -> dict[str, str]:
    path = ROOT / "benchmarks" / "results" / "mutation_survivors.yaml"
    return yaml.safe_load(path.read_text()) if path.exists() else {}


def show(rows: list[dict[str, Any]]) -> None:
    table = Table("file", "mutants", "killed", "timed out", "survived", "share killed")
    for file in [*sorted({row["file"] for row in rows}), "all"]:
        own = [row["verdict"] for row in rows if file in (row["file"], "all")]
        counts = [own.count(verdict) for verdict in ("killed", "timed out", "survived")]
        table.add_row(file, str(len(own)), *map(str, counts), f"{1 - own.count('survived') / len(own):.0%}")
    console, known = Console(width=120), explanations()
    console.print(table)
    survivors = [row for row in rows if row["verdict"] == "survived"]
    for row in sorted(survivors, key=lambda row: (row["file"], row["line"])):
        console.print(f"{row['file']}:{row['line']} {row['what']}", highlight=False, markup=False)
        console.print(f"  - {row['before']}\n  + {row['after']}", highlight=False, markup=False)
        console.print(f"  {known.get(explained(row), 'not looked into')}", markup=False)


if __name__ == "__main__":
    main()
