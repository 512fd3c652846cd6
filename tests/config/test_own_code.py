"""The user's own modules: found beside the job file, and importable where only their text has come."""

from __future__ import annotations

import importlib
import pickle
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT, run_cli

from raytrain.config import own_code
from raytrain.config.job import Job
from raytrain.config.own_code import Carried, OwnCode, import_object, look_in
from raytrain.errors import ConfigError
from raytrain.record.schema import read_record

MINE = """
import numpy as np
import torch
from beside import strength

def speckle(image, rng):
    return np.clip(image + rng.normal(0, strength(), image.shape), 0, 255).astype(np.uint8)

def net(num_classes):
    from package.deep.inside import layers
    return layers(num_classes)
"""
INSIDE = """
import torch

def layers(num_classes):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, num_classes))
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a module, one that it imports, and a package that it imports when it is called."""
    folder = tmp_path / "code"
    (folder / "package/deep").mkdir(parents=True)
    (folder / "mine.py").write_text(MINE)
    (folder / "beside.py").write_text("def strength():\n    return 8\n")
    (folder / "alone.py").write_text("")
    (folder / "package/__init__.py").write_text("")
    (folder / "package/deep/__init__.py").write_text("")
    (folder / "package/deep/inside.py").write_text(INSIDE)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield folder
    ours = [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(folder))]
    for name in set(ours) - {"__main__"}:  # a test calls the program itself one of ours
        del sys.modules[name]


def test_modules_beside_the_job_file_can_be_imported_and_what_is_installed_comes_first(mine, job_tree, monkeypatch):
    (mine / "yaml.py").write_text("")
    (mine / "job.yaml").write_text(yaml.safe_dump(job_tree))
    with pytest.raises(ConfigError, match="there is no module 'mine'; put mine.py beside the job file"):
        import_object("mine:speckle")
    Job.from_yaml(mine / "job.yaml")
    assert import_object("mine:speckle").__module__ == "mine"
    monkeypatch.delitem(sys.modules, "yaml")
    assert import_object("yaml:safe_dump")


def test_what_travels_is_what_is_named_with_all_that_it_imports(mine):
    look_in(mine)
    code = own_code.own_code(["mine:net"])
    found = {name: each for name, each in code.sources.items() if each.file.startswith(str(mine))}
    assert set(found) == {"mine", "beside", "package", "package.deep", "package.deep.inside"}
    assert found["mine"].text == MINE.encode()
    assert [name for name, each in found.items() if each.is_package] == ["package", "package.deep"]
    assert not {"raytrain", "numpy", "torch", "os"} & set(code.sources)
    assert str(mine) in code.folders
    assert not any("site-packages" in folder for folder in code.folders)


def test_more_source_than_travels_stays_where_it_is_and_that_is_said(mine, monkeypatch, caplog):
    look_in(mine)
    monkeypatch.setattr(own_code, "MOST_BYTES", 100)
    code = own_code.own_code(["mine:net"])
    assert code.sources == {} and str(mine) in code.folders
    assert "do not travel: other hosts need them in the same folders" in caplog.text


def test_what_lies_in_a_package_and_is_no_source_of_it_is_passed_over(mine):
    """An editor's lock (a link to nowhere), hidden files, and an environment."""
    (mine / "package/.#inside.py").symlink_to("nobody@nowhere.1")
    (mine / "package/gone.py").symlink_to("nowhere.py")
    (mine / "package/.hidden.py").write_text("1 / 0\n")
    (mine / "package/env/lib").mkdir(parents=True)
    (mine / "package/env/pyvenv.cfg").write_text("home = /usr\n")
    (mine / "package/env/lib/large.py").write_text("")
    look_in(mine)
    code = own_code.own_code(["package:x"])
    found = {name for name, each in code.sources.items() if each.file.startswith(str(mine))}
    assert found == {"package", "package.deep", "package.deep.inside"}


def test_a_package_without_an_init_file_travels(mine):
    (mine / "bare/inner").mkdir(parents=True)
    (mine / "bare/inner/net.py").write_text("SIZE = 3\n")
    look_in(mine)
    code = own_code.own_code(["bare.inner.net:SIZE"])
    assert {name for name in code.sources if name.startswith("bare")} == {"bare", "bare.inner", "bare.inner.net"}
    shutil.rmtree(mine)
    importlib.invalidate_caches()
    pickle.loads(pickle.dumps(code))
    assert import_object("bare.inner.net:SIZE") == 3


def test_sources_of_names_are_of_those_alone(mine):
    look_in(mine)
    import_object("alone:__name__")
    assert set(own_code.own_sources(["beside:strength"])) == {"beside"}
    assert set(own_code.own_sources(["mine:net"])) == {
        "mine",
        "beside",
        "package",
        "package.deep",
        "package.deep.inside",
    }
    assert own_code.own_sources(["numpy:zeros", "no_such:thing"]) == {}


def test_what_a_script_would_import_later_travels(mine, monkeypatch):
    (mine / "script.py").write_text("def loop(ctx):\n    import alone\n")
    look_in(mine)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(mine / "script.py"), raising=False)
    assert "alone" in own_code.own_code().sources


def test_packages_of_another_environment_are_not_the_users(mine, monkeypatch):
    other = mine / "other/lib/python3.11/site-packages"
    (other / "large").mkdir(parents=True)
    (other / "large/__init__.py").write_text("import mine\n")
    (mine / "mine.py").write_text("import large\n")
    look_in(mine, other)
    code = own_code.own_code(["mine:x"])
    assert "mine" in code.sources and "large" not in code.sources
    assert str(other) not in code.folders


def test_what_is_installed_and_raytrain_itself_are_not_the_users(mine):
    assert own_code.is_own(str(mine / "mine.py"))
    for installed in (yaml.__file__, own_code.__file__, shutil.__file__, "<frozen runpy>"):
        assert not own_code.is_own(installed)


@pytest.mark.process
def test_where_the_folder_is_not_there_the_text_will_do(mine, tmp_path):
    """In a process without the folder, as on another host; a traceback names the file and shows the line."""
    (mine / "beside.py").write_text("def strength():\n    raise KeyError('no strength here')\n")
    look_in(mine)
    (tmp_path / "sent").write_bytes(pickle.dumps((own_code.own_code(["mine:net"]), import_object("mine:speckle"))))
    shutil.rmtree(mine)
    code = (
        "import pickle, sys, traceback, numpy as np\n"
        "_, speckle = pickle.load(open(sys.argv[1], 'rb'))\n"
        "import mine, inspect\n"
        "print(mine.net(5)[1].out_features, 'def net' in inspect.getsource(mine.net))\n"
        "try: speckle(np.zeros((2, 2, 3)), np.random.default_rng(0))\n"
        "except KeyError: traceback.print_exc(file=sys.stdout)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "sent")], capture_output=True, text=True, cwd=ROOT
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("5 True\n")
    assert f"File \"{mine}/beside.py\", line 2, in strength\n    raise KeyError('no strength here')" in result.stdout


def test_the_same_code_comes_in_once_and_changed_code_before_it(mine, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [each for each in sys.meta_path if not isinstance(each, Carried)])
    look_in(mine)
    first = own_code.own_code(["mine:net"])
    for _ in range(2):
        pickle.loads(pickle.dumps(first))
    assert sum(isinstance(each, Carried) for each in sys.meta_path) == 1
    (mine / "beside.py").write_text("def strength():\n    return 9\n")
    again = pickle.loads(pickle.dumps(own_code.own_code(["mine:net"])))
    assert isinstance(again, OwnCode)
    assert [each.sources for each in sys.meta_path if isinstance(each, Carried)] == [again.sources, first.sources]


def test_an_error_in_the_users_module_names_its_line(mine):
    look_in(mine)
    (mine / "beside.py").write_text("\n1 / 0\n")
    (mine / "alone.py").write_text("def f(:\n")
    (mine / "lacks.py").write_text("import no_such_thing\n")
    for path, message in (
        ("mine:speckle", rf"cannot import 'mine:speckle': ZeroDivisionError: division by zero \({mine}/beside.py:2\)"),
        ("alone:f", r"cannot import 'alone:f': SyntaxError: .*alone.py, line 1"),
        (
            "lacks:f",
            rf"ModuleNotFoundError: No module named 'no_such_thing' \({mine}/lacks.py:1",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            import_object(path)


OWN = """
import numpy as np
import torch
from beside import strength
from mine import net

class Squares:
    def __init__(self, count, side=8):
        self.count, self.side, self.labels = count, side, [index % 3 for index in range(count)]

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        strength()
        return np.full((self.side, self.side, 3), 60 * self.labels[index], np.uint8), self.labels[index]

def train(ctx):
    model = net(ctx.num_classes)
    model, optimizer = ctx.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for _ in ctx.epochs():
        for batch in ctx.batches("train"):
            loss = torch.nn.functional.cross_entropy(model(batch.image), batch.label)
            (loss * batch.weight).backward()
            ctx.report(loss)
        ctx.log(seen=float(ctx.num_batches("train")))
"""


def run_elsewhere(job, mine, tmp_path):
    """The record of a job file beside the modules that it names, when another folder is the working one."""
    job.rename(mine / "job.yaml")
    (tmp_path / "elsewhere").mkdir()
    result = run_cli(
        "train", mine / "job.yaml", "--nodes", "gpu=1x1x2,cpu=1x1", cwd=tmp_path / "elsewhere", PYTHONPATH=str(ROOT)
    )
    assert result.returncode == 0, result.stderr
    return read_record(tmp_path / "runs/small/record.json")


@pytest.mark.ray
def test_a_job_file_may_name_everything_and_it_runs_on_every_node(mine, job_file, tmp_path):
    """Loop and source, with the modules that they import; the record says which."""
    (mine / "own.py").write_text(OWN)
    job = job_file(
        model=None,
        training={"epochs": 2, "loop": "own:train"},
        data={"train": {"kind": "own:Squares", "count": 120}, "stages": ["mine:speckle"], "batch_size": 8},
    )
    record = run_elsewhere(job, mine, tmp_path)
    assert record.totals.samples == 240
    assert [epoch["seen"] for epoch in record.epochs] == [8.0, 8.0]
    assert record.job["training"]["loop"] == "own:train"
    assert record.job["data"]["train"] == {"kind": "own:Squares", "count": 120}
    assert sum(host.samples_prepared > 0 for host in record.hosts) == 2


@pytest.mark.ray
def test_a_stage_and_a_model_beside_the_job_file_run_on_every_node(mine, job_file, job_tree, tmp_path):
    """Started in another folder, as `raytrain` is: `python -m raytrain` alone would find the working folder's."""
    job = job_file(model={"name": "mine:net"}, data__stages=["decode", "mine:speckle", {"resize": {"size": 8}}])
    record = run_elsewhere(job, mine, tmp_path)
    assert record.totals.samples == 240
    assert [stage.name for stage in record.stages][:3] == ["read", "decode", "speckle"]
    assert sum(host.samples_prepared > 0 for host in record.hosts) == 2
