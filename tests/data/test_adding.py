"""A source and a stage are added as CONTRIBUTING.md says, word for word: to a copy of raytrain, and from a package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import pytest
import yaml
from conftest import ROOT
from patience import patient

from raytrain import Job, Pipeline
from raytrain.config.data import SOURCES as SECTIONS
from raytrain.config.data import OwnSource
from raytrain.config.own_code import offered
from raytrain.data.sources import registry as sources
from raytrain.data.stages.registry import STAGES, parse_stage
from raytrain.errors import ConfigError

BLOCKS = re.findall(r"```\w+\n# (\S+)\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
OF_RAYTRAIN = [(name, text) for name, text in BLOCKS if name.startswith("raytrain/")]
OF_A_PACKAGE = {name: text for name, text in BLOCKS if not name.startswith("raytrain/")}

IN_THE_COPY = """
import sys
import numpy as np
from pathlib import Path
import raytrain
from raytrain import Job, Pipeline
from raytrain.data import lines, posterize
from raytrain.errors import ConfigError

assert Path(raytrain.__file__).parent == Path("raytrain").absolute()
Path("text.txt").write_text("one\\nzwölf\\n\\nlast", encoding="utf-8")
tree = {"name": "added", "training": {"epochs": 1}}
job = Job.from_dict({**tree, "data": {"train": {"kind": "lines", "path": "text.txt", "limit": 3}, "batch_size": 1}})
assert job.data.train == lines(Path("text.txt"), limit=3)
train = Pipeline.from_config(job.data).open(0).train
assert [sample["text"] for sample in train.read_many(range(3))] == ["one", "zwölf", ""] and train.num_samples == 3
assert train.describe(1) == "text.txt, byte 4"
try:
    Job.from_dict({**tree, "data": {"train": {"kind": "line", "path": "text.txt"}}})
except ConfigError as error:
    assert "unknown kind 'line'; did you mean 'lines'?" in str(error), error

noise = {"kind": "synthetic", "num_samples": 4, "fields": {"image": {"dtype": "uint8", "shape": [4, 5, 3]}}}
data = {"train": noise, "stages": [{"posterize": {"bits": 3}}], "batch_size": 1}
opened = Pipeline.from_config(Job.from_dict({**tree, "data": data}).data).open(0)
[stage], [sample] = opened.splits["train"].stages, opened.train.read_many([2])
before = sample["image"].copy()
assert np.array_equal(stage(sample, None)["image"], before // 32 * 32) and stage.helps
assert posterize(3).options == stage.options

sys.path.append(sys.argv[1])
import reference
assert "**`lines`**" in reference.blocks()["sources"] and "**`posterize`** | image |" in reference.blocks()["stages"]
assert reference.lacking() == []
print("added")
"""


@pytest.mark.process
def test_a_source_and_a_stage_are_added_as_contributing_says(tmp_path):
    shutil.copytree(ROOT / "raytrain", tmp_path / "raytrain", ignore=shutil.ignore_patterns("__pycache__"))
    new = set()
    for name, text in OF_RAYTRAIN:
        path = tmp_path / name
        if name.endswith("config/data.py"):
            before, mark, behind = path.read_text().partition("class HeldOut(")
            path.write_text(f"{before}{text}\n\n{mark}{behind}")
        elif path.exists():
            path.write_text(path.read_text() + text)
        else:
            path.write_text(text)
            new.add(path.parent.name)
    assert new == {"kinds", "stages"} and len(OF_RAYTRAIN) == 5, "a file each, a section, a line each"
    code = [sys.executable, "-c", IN_THE_COPY, str(ROOT / "tests")]
    done = subprocess.run(
        code, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=patient(100)
    )
    assert done.stdout == "added\n", done.stderr


def install(folder, name, points):
    """As pip would: a package's module is there already, and these are its entry points."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in own.items()) for group, own in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    """The package of CONTRIBUTING.md, installed; a folder to install others in."""
    (tmp_path / "shapes.py").write_text(OF_A_PACKAGE["shapes.py"])
    install(tmp_path, "shapes", tomllib.loads(OF_A_PACKAGE["pyproject.toml"])["project"]["entry-points"])
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("shapes", None)


def test_a_package_offers_a_source_and_a_stage_by_name(shapes):
    job = Job.from_dict(yaml.safe_load(OF_A_PACKAGE["job.yaml"]))
    assert job.data.train == OwnSource(kind="shapes:Squares", count=20, side=8)
    assert job.imports == ("mine:loop", "shapes:Squares", "shapes:outlined")
    assert Job.from_dict(job.model_dump(mode="json")) == job
    opened = Pipeline.from_config(job.data).open(0)
    [stage] = opened.splits["train"].stages
    sample = stage(opened.train.read_many([9])[0], None)
    expected = np.pad(
        np.pad(np.full((3, 3, 1), 255), ((0, 5), (0, 5), (0, 0))), ((2, 2), (2, 2), (0, 0)), constant_values=255
    )
    assert np.array_equal(sample["image"], expected) and sample["label"] == 3
    assert (opened.train.num_samples, opened.train.describe(9)) == (20, "shapes:Squares[9]")


def test_what_a_package_offers_is_told_and_checked(shapes):
    tree = {"name": "x", "training": {"epochs": 1}, "data": {"train": {"kind": "square"}}}
    with pytest.raises(
        ConfigError, match=r"unknown kind 'square'; did you mean 'squares'\? \(known: .*, synthetic, squares, or"
    ):
        Job.from_dict(tree)
    tree["data"]["train"] = {"kind": "squares", "cout": 3}
    with pytest.raises(ConfigError, match="source 'shapes:Squares' has no option 'cout'; did you mean 'count'"):
        Pipeline.from_config(Job.from_dict(tree).data)
    with pytest.raises(
        ConfigError, match=r"unknown stage 'outline'; did you mean 'outlined'\? \(known: .*, outlined\)"
    ):
        parse_stage("outline")
    with pytest.raises(ConfigError, match="stage 'outlined' has no option 'wide'"):
        parse_stage({"outlined": {"wide": 3}})


def test_names_of_raytrains_own_come_first_and_two_packages_cannot_have_one(shapes):
    own = {"raytrain.sources": {"synthetic": "shapes:Squares", "held_out": "shapes:Squares"}}
    install(shapes, "greedy", {**own, "raytrain.stages": {"resize": "shapes:outlined"}})
    data = {"train": {"kind": "synthetic", "num_samples": 3}, "validation": {"kind": "held_out", "share": 0.5}}
    job = Job.from_dict({"name": "x", "training": {"epochs": 1}, "data": data})
    assert isinstance(job.data.train, SECTIONS["synthetic"]) and job.data.validation.share == 0.5
    assert parse_stage({"resize": {"size": 3}}).name == "resize"
    install(shapes, "other", {"raytrain.stages": {"outlined": "shapes:with_outline"}})
    with pytest.raises(
        ConfigError, match="'outlined' is shapes:.* of one installed package and shapes:.* of another; name"
    ):
        parse_stage("outlined")


def test_an_entry_point_that_leads_nowhere_is_one_line(shapes):
    install(shapes, "broken", {"raytrain.sources": {"gone": "no_such_shapes:Gone", "deep": "shapes:Squares.made"}})
    tree = {"name": "x", "training": {"epochs": 1}, "data": {"train": {"kind": "gone"}}}
    with pytest.raises(ConfigError, match="data.train.kind: cannot import 'no_such_shapes:Gone': there is no module"):
        Pipeline.from_config(Job.from_dict(tree).data)
    tree["data"]["train"] = {"kind": "deep"}
    with pytest.raises(ConfigError, match=r"data.train.kind: 'shapes:Squares.made' must look like package.module:name"):
        Job.from_dict(tree)


def test_sections_sources_and_stages_are_the_registrys():
    """Every section of the config has its source, and those that no job file can describe are told apart by that."""
    assert {*sources.SOURCES} - {*SECTIONS} == {"from_ray", "from_torch"} and {*SECTIONS} < {*sources.SOURCES}
    assert all(callable(sources.opener(kind)) for kind in sources.SOURCES)
    assert "stage" not in STAGES and "keep_if" not in STAGES and "decode" in STAGES
    assert offered("raytrain.sources") == offered("raytrain.stages") == {}, "nothing of ours goes this way"
