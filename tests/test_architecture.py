"""The rules that a machine can check."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import rooms
from conftest import ROOT, run_cli
from rooms import PACKAGE
from typer.main import get_command

from raytrain.cli.main import app

FILES = rooms.files()
FLOORS = rooms.floors()
AT_THE_ROOT = {"__init__.py", "__main__.py", "errors.py"}
TORCH_AT_MODULE_LEVEL = {
    *(
        f"device/{name}.py"
        for name in ("arrival", "batch", "copier", "decoding", "landing", "like", "loader", "stages")
    ),
    *(f"device/forms/{name}.py" for name in ("__init__", "colors", "mixes", "moves")),
    *(f"device/forms/{name}.py" for name in ("resizing", "taps", "tensors", "values")),
    *(f"train/{name}.py" for name in ("context", "loop", "losses", "modules", "update")),
    *(f"train/checkpoints/{name}.py" for name in ("checkpoint", "host_copy")),
    *(f"infer/backends/{name}.py" for name in ("batches", "convert", "module", "of_onnx", "of_openvino", "of_torch")),
    *(f"train/learning/{name}.py" for name in ("averaged", "metrics", "objectives", "optimizers", "state", "weights")),
    "train/checkpoints/saving.py",
    "infer/output/answers.py",
    "study/moved.py",
}


def test_every_room_has_a_floor():
    built = {rooms.room_of(path) for path in FILES}
    assert built == set(FLOORS)


@pytest.mark.parametrize("room", FLOORS)
def test_rooms_import_only_lower_rooms(room):
    """Of the same floor neither, at the top of a file, in a function, and for a type checker."""
    for other in rooms.doors().get(room, ()):
        assert FLOORS[other] < FLOORS[room], f"{room} imports {other}"


def test_modules_do_not_import_each_other_in_a_ring():
    assert rooms.ring() == []


def test_the_page_says_which_rooms_import_which():
    assert rooms.DOORS.search(rooms.PAGE.read_text())[0] == rooms.doors_table(), "python tests/rooms.py --write"


def test_the_root_holds_names_and_errors_alone():
    assert {path.name for path in PACKAGE.glob("*.py")} == AT_THE_ROOT


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES}), ids=lambda p: str(p.relative_to(ROOT)))
def test_folders_stay_small(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 12


def test_tests_mirror_the_rooms():
    """And no two files have one name: pytest imports them by it."""
    found = sorted((ROOT / "tests").rglob("test_*.py"))
    folders = {path.parent.relative_to(ROOT / "tests") for path in found}
    assert {folder.parts[0] for folder in folders if folder.parts} <= set(FLOORS)
    assert all((PACKAGE / folder).is_dir() for folder in folders)
    assert len({path.name for path in found}) == len(found)


def imports(tree: ast.AST):
    """Every imported module with whether it is at module level, other than for a type checker."""
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    top = {id(node) for node in ast.iter_child_nodes(tree)}
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, id(node) in top


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_imports_stay_where_they_are_needed(path):
    relative = str(path.relative_to(PACKAGE))
    for name, at_top in imports(ast.parse(path.read_text())):
        package = name.split(".")[0]
        if package in ("torch", "torchvision", "timm") and at_top:
            assert relative in TORCH_AT_MODULE_LEVEL, f"{relative} imports {package} at module level"
        if package == "ray":
            assert not at_top, f"{relative} imports ray at module level"
        if package in ("boto3", "botocore", "sagemaker"):
            assert rooms.room_of(path) == "sagemaker", f"only sagemaker/ imports {package}"
        if package == "sagemaker_training":  # it makes folders where it is imported
            assert relative == "cluster/environment.py" and not at_top


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_the_environment_is_read_in_one_place(path):
    text = path.read_text()
    if path.relative_to(PACKAGE) != Path("cluster/environment.py"):
        assert not re.search(r"\bos\.(environ|getenv|putenv)|/opt/ml", text)


PRIVATE_MODULE = re.compile(r"^ray(\.\w+)*\._\w+")
PRIVATE_WORDS = {  # of Ray's public classes too, and without an underscore
    "iter_internal_ref_bundles",
    "exec_stats",
    "task_idx",
    "current_actor",
    "enable_auto_connect",
    "worker_group_cls",
    "set_external_consumer_bytes",
    "global_worker_stdstream_dispatcher",
    "GcsClient",
    "RayParams",
    "Cluster",
}


def private_names_of_ray(tree: ast.AST) -> list[str]:
    """What a file uses of Ray that Ray does not document: modules and attributes with an underscore, some words, and
    whatever it puts in the place of an attribute of Ray's."""
    found, rays = [], {"ray"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "ray":
            found += [f"{node.module}.{alias.name}" for alias in node.names]
            rays |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
            rays |= {alias.asname for alias in node.names if alias.name.split(".")[0] == "ray" and alias.asname}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [node.value] if node.value.startswith("ray.") else []
    private = [name for name in found if PRIVATE_MODULE.match(name) or name.split(".")[-1] in PRIVATE_WORDS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            of_ray = whole.split(".")[0] in rays
            if node.attr in PRIVATE_WORDS or (of_ray and (PRIVATE_MODULE.match(whole) or node.attr.startswith("_"))):
                private.append(whole)
            if of_ray and not isinstance(node.ctx, ast.Load):
                private.append(f"{whole} = ...")
    return private


def test_what_ray_does_not_document_is_behind_one_door():
    for path in FILES:
        if rooms.room_of(path) != "ray_internals":
            assert private_names_of_ray(ast.parse(path.read_text())) == [], f"{path}; see docs/architecture.md"


@pytest.mark.parametrize(
    "code",
    [
        "import ray._private.node",
        "from ray._private import services",
        "from ray.data._internal.execution import streaming_executor",
        "from ray._raylet import GcsClient",
        "import_module('ray._private.node')",
        "import ray\nray._private.worker",
        "import ray\nray.init = None",
        "from ray.runtime_context import RuntimeContext\nRuntimeContext.current_actor = None",
        "from ray.data import DataContext as Context\nContext.x = 1",
        "for bundle in dataset.iter_internal_ref_bundles(): pass",
        "entry.metadata.exec_stats.task_idx",
    ],
)
def test_a_second_door_to_ray_is_noticed(code):
    assert private_names_of_ray(ast.parse(code))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_small(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno - node.lineno < 70, f"{path.name}: {node.name} is too long"


@pytest.mark.process
def test_importing_every_module_does_nothing():
    """No thread, no child process, no file, no Ray and no environment change, whichever module is imported."""
    modules = [
        ".".join(("raytrain", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in FILES
        if path.stem != "__main__"
    ]
    code = f"""
import os, sys, threading, torch, timm, cv2, pyarrow.parquet, rich, typer
before = (dict(os.environ), threading.active_count(), set(os.listdir('.')))
import importlib
for name in {modules!r}:
    importlib.import_module(name)
assert (dict(os.environ), threading.active_count(), set(os.listdir('.'))) == before
assert 'ray' not in sys.modules, 'ray'
import psutil
assert psutil.Process().children() == []
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_raise_of_a_user_error_is_reached_by_a_test():
    """Each message of ours has a piece that stands in some test."""
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__))
    tests = re.sub(r"\\(.)", r"\1", tests)
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            text = [n.value for n in ast.walk(node.exc) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
            phrases = [p.split() for t in text for p in re.split(r"[^A-Za-z ]+", t) if len(p.split()) >= 2]
            windows = [" ".join(p[i : i + 3]) for p in phrases for i in range(max(len(p) - 2, 1))]
            if windows:
                assert any(window in tests for window in windows), f"{path.name}:{node.lineno}: {text}"


def readme_tree() -> set[str]:
    """Paths of the README's file tree."""
    block = re.search(r"```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    found, folders = set(), []
    for line in block.splitlines():
        name = line.split("  ")[0] if not line.startswith(" ") else re.split(r" {2,}", line.strip())[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = folders[:depth]
        for part in name.split(" · "):
            found.add("".join(folders) + part)
        if name.endswith("/"):
            folders.append(name)
    return found


@pytest.mark.process
def test_the_readmes_tree_is_the_repositorys():
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    files = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    package = {name for name in files if name.startswith("raytrain/") and "__init__.py" not in name}  # nor its stub
    tree = readme_tree()
    assert {name for name in tree if name.startswith("raytrain/") and not name.endswith("/")} == package
    tops = {name.split("/")[0] + ("/" if "/" in name else "") for name in files if not name.startswith(".")}
    assert {name for name in tree if "/" not in name.rstrip("/")} == tops


SURFACE = {
    "cpu-topology": ["--json"],
    "launch": ["JOB_FILE", "--set", "--name", "--yes", "--wait", "--dry-run", "--prices", "--no-prices", "--json"],
    "twin": [
        "JOB_FILE",
        "--set",
        "--job",
        "--name",
        "--channel",
        "--scale",
        "--gpus",
        "--checkpoints",
        "--stop-after",
        "--folder",
        "--prices",
        "--region",
        "--json",
    ],
    "status": ["NAME", "--region", "--json"],
    "logs": ["NAME", "--follow", "--region", "--json"],
    "stop": ["NAME", "--region", "--json"],
    "jobs": ["--contains", "--limit", "--region", "--json"],
    "record": ["NAME", "--out", "--folder", "--prices", "--no-prices", "--region", "--json"],
    "bootstrap": [
        "PROGRAM",
        "--head-group",
        "--head-cpus",
        "--head-gpus",
        "--join-timeout",
        "--grace",
        "--linger",
        "--port",
        "--token-file",
        "--insecure",
        "--connect",
        "--efa",
        "--dashboard",
        "--dashboard-host",
        "--dashboard-port",
        "--prometheus",
        "--remote-write",
        "--remote-write-region",
        "--remote-write-user",
        "--remote-write-password-file",
        "--json",
    ],
    "export": ["RUN", "--format", "--output", "--shape", "--json"],
    "infer": ["JOB_FILE", "--set", "--nodes", "--address", "--json"],
    "train": ["JOB_FILE", "--set", "--nodes", "--address", "--resume", "--run-dir", "--json"],
    "sample-data": ["NAME", "FOLDER", "--json"],
    "compare": [
        "RUNS",
        "--on",
        "--set",
        "--scale",
        "--channel",
        "--region",
        "--instances",
        "--unlike",
        "--yes",
        "--prices",
        "--json",
    ],
    "diagnose": ["JOB_FILE", "--set", "--nodes", "--address", "--seconds", "--out", "--json"],
    "plan": [
        "MEASURED",
        "--region",
        "--max-price",
        "--max-hours",
        "--families",
        "--max-gpu-hosts",
        "--max-cpu-hosts",
        "--accelerator",
        "--startup",
        "--top",
        "--pick",
        "--out",
        "--role",
        "--data",
        "--html",
        "--prices",
        "--json",
    ],
    "tune": [
        "JOB_FILE",
        "--set",
        "--budget",
        "--objective",
        "--instance",
        "--region",
        "--prices",
        "--out",
        "--html",
        "--json",
    ],
    "report": ["RECORDS", "--out", "--region", "--instances", "--unlike", "--prices", "--json"],
    "prices": [],
    "prices show": ["--region", "--families", "--prices", "--all", "--json"],
    "prices refresh": ["--region", "--json"],
}


def test_the_command_line_has_just_this_surface():
    commands = dict(get_command(app).commands)
    for group in [name for name, command in commands.items() if hasattr(command, "commands")]:
        commands |= {f"{group} {name}": command for name, command in commands[group].commands.items()}
    found = {
        name: [p.name.upper() if p.param_type_name == "argument" else max(p.opts, key=len) for p in command.params]
        for name, command in commands.items()
    }
    assert found == SURFACE


@pytest.mark.process
@pytest.mark.parametrize("name", SURFACE)
def test_every_command_has_help_with_an_example_and_json(name):
    result = run_cli(*name.split(), "--help", COLUMNS="140", TERM="dumb")
    assert result.returncode == 0
    assert f"Example: raytrain {name} " in result.stdout
    assert "--json" in result.stdout


@pytest.mark.process
def test_no_file_names_where_packages_come_from():
    hosts = re.compile(r"py[p]i\.org|python[h]osted|npm[j]s\.|deb\.debian")
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            assert not hosts.search((ROOT / name).read_text(errors="replace")), name
