"""What users import: the names, their signatures, and the types that a checker sees. A change here is theirs too."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest
from conftest import ROOT
from patience import patient

import raytrain
import raytrain.data

SIGNATURES = {
    "raytrain.fit": "(train_loop: Callable[[TrainContext], None] | None = None, pipeline: Pipeline | None = None, "
    "job: Job | None = None, *, nodes: str | None = None, address: str | None = None, resume: bool = False, "
    "console: Console | None = None, started_at: float | None = None, resume_word: str = resume=True) -> RunRecord",
    "raytrain.Pipeline": "(train: AnySource | Samples, stages: Sequence[Any] = (), batch_size: int = 64, "
    "validation: AnySource | Samples | None = None, validation_stages: Sequence[Any] | None = None, "
    "normalize: Normalize | dict[str, Any] | None = None, max_corrupt_share: float = 0.01, "
    "batches_per_task: int | None = None, tail: Tail = share) -> None",
    "raytrain.Job.from_yaml": "(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Job",
    "raytrain.Job.from_dict": "(tree: dict[str, Any], where: str = job) -> Job",
    "raytrain.data.image_folder": "(path: str | os.PathLike[str]) -> ImageFolderSource",
    "raytrain.data.parquet": "(path: str | os.PathLike[str], *, image_column: str = image, label_column: str = label, "
    "shape: tuple[int, ...] | None = None) -> ParquetSource",
    "raytrain.data.webdataset": "(path: str | os.PathLike[str], *, label_extension: str = cls) -> WebDatasetSource",
    "raytrain.data.synthetic": "(num_samples: int, *, shape: tuple[int, int, int] = (224, 224, 3), "
    "num_classes: int = 1000) -> SyntheticSource",
    "raytrain.data.cast": "(dtype: str) -> Stage",
    "raytrain.data.center_crop": "(size: int) -> Stage",
    "raytrain.data.color_jitter": "(brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> Stage",
    "raytrain.data.decode": "() -> Stage",
    "raytrain.data.flip": "(probability: float = 0.5) -> Stage",
    "raytrain.data.gaussian_blur": "(kernel: int = 11, sigma: tuple[float, float] = (0.1, 2.0), "
    "times: int = 1) -> Stage",
    "raytrain.data.random_resized_crop": "(size: int, scale: tuple[float, float] = (0.08, 1.0), "
    "ratio: tuple[float, float] = (0.75, 1.3333333333333333)) -> Stage",
    "raytrain.data.random_shift": "(pixels: int) -> Stage",
    "raytrain.data.resize": "(size: int | tuple[int, int]) -> Stage",
    "raytrain.data.to_uint8": "(size: int | None = None) -> Stage",
    "raytrain.data.stage": "(function: Callable[..., np.ndarray], *, name: str | None = None, **options: Any) -> Stage",
    "raytrain.data.torchvision": "(transform: str, **options: Any) -> Stage",
}
SECTIONS = ["name", "seed", "data", "model", "training", "cluster", "sagemaker", "run_dir"]

SCRIPT = """
from raytrain import Job, Pipeline, fit
from raytrain.data import decode, image_folder

job = Job.from_dict({"name": "own"})
pipeline = Pipeline(image_folder("images"), [decode()])
reveal_type(job)
reveal_type(pipeline)
reveal_type(fit)
reveal_type(decode)
reveal_type(image_folder)
reveal_type(fit(None, pipeline, job))
"""
REVEALED = [
    r"raytrain\.config\.job\.Job",
    r"raytrain\.data\.pipeline\.Pipeline",
    r"def \(train_loop: \(def \(raytrain\.train\.context\.TrainContext\)\) \| None =, .*\) "
    r"-> raytrain\.record\.schema\.RunRecord",
    r"def \(\) -> raytrain\.data\.stages\.stage\.Stage",
    r"def \(path: str \| os\.PathLike\[str\]\) -> raytrain\.config\.data\.ImageFolderSource",
    r"raytrain\.record\.schema\.RunRecord",
]


def test_the_public_names_are_these():
    assert sorted(raytrain.__all__) == ["Job", "Pipeline", "fit"]
    assert {f"raytrain.data.{name}" for name in raytrain.data.__all__} == {
        name for name in SIGNATURES if name.startswith("raytrain.data.")
    }
    for module in (raytrain, raytrain.data):
        shown = [name for name in dir(module) if not name.startswith("__")]
        assert shown == sorted(module.__all__), "and nothing of how they are loaded"
        assert all(getattr(module, name).__module__.startswith("raytrain.") for name in module.__all__)
        with pytest.raises(AttributeError, match=rf"module '{module.__name__}' has no attribute 'nothing'"):
            _ = module.nothing


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_public_signature_is_this(name):
    found = raytrain
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert str(inspect.signature(found)).replace("'", "") == SIGNATURES[name]


def test_the_sections_of_a_job_are_these():
    assert list(raytrain.Job.model_fields) == SECTIONS


@pytest.mark.process
def test_a_type_checker_knows_the_public_names(tmp_path):
    """With the settings and the cache of `make lint`; the names are loaded when they are asked for all the same."""
    script = tmp_path / "own.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), str(script)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=patient(250))
    assert result.returncode == 0, result.stdout + result.stderr
    revealed = re.findall(r'Revealed type is "(.*)"', result.stdout)
    assert len(revealed) == len(REVEALED), result.stdout
    for text, wanted in zip(revealed, REVEALED, strict=True):
        assert re.fullmatch(wanted, text) and "Any" not in text, text


def test_types_and_stubs_are_packaged():
    """Beside the modules, for whoever installs raytrain."""
    import tomllib

    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["raytrain"]
    package = ROOT / "raytrain"
    packaged = {path for pattern in patterns for path in package.glob(pattern)}
    assert {package / "py.typed", *package.rglob("*.pyi")} <= packaged
