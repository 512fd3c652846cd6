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
    "raytrain.fit": "(train_loop: Callable[[TrainContext], None] | None = None, pipeline: Pipeline | None = "
    "None, job: Job | None = None, *, nodes: str | None = None, address: str | None = None, resume: bool = "
    "False, console: Console | None = None, started_at: float | None = None, resume_word: str = resume=True) "
    "-> RunRecord",
    "raytrain.Pipeline": "(train: Source, stages: Sequence[Any] = (), batch_size: int | None = None, validation: "
    "Source | HeldOut | None = None, validation_stages: Sequence[Any] | None = None, collate: Mapping[str, "
    "Any] = <factory>, buckets: BucketsOf | dict[str, Any] | None = None, normalize: Normalize | dict[str, "
    "Any] | None = None, fields: Mapping[str, Arrival | dict[str, Any]] = <factory>, max_corrupt_share: float "
    "= 0.01, batches_per_task: int | None = None, tail: Tail = share, stage_timeout_s: float | None = 300.0, "
    "global_batch_size: int | None = None, allow_nan: bool = False) -> None",
    "raytrain.export": "(run: str | Path, format: Format = safetensors, "
    "output: str | Path | None = None, *, shape: Sequence[int] | None = None) -> Exported",
    "raytrain.predict": "(job: PredictionJob, *, nodes: str | None = None, address: str | None = None, watch: Watch | "
    "None = None, started_at: float | None = None) -> InferenceRecord",
    "raytrain.PredictionJob.from_yaml": "(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> "
    "PredictionJob",
    "raytrain.PredictionJob.from_dict": "(tree: dict[str, Any], where: str = job) -> PredictionJob",
    "raytrain.Job.from_yaml": "(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Job",
    "raytrain.Job.from_dict": "(tree: dict[str, Any], where: str = job) -> Job",
    "raytrain.data.Field": "(dtype: str = , shape: tuple[int | None, ...] | None = None, kind: Kind = , "
    "classes: tuple[str, ...] = ()) -> None",
    "raytrain.data.arrays": "(path: Places | Mapping[str, Any], *, masks: Sequence[str] = (), labels: "
    "Sequence[str] = (label,), limit: int | None = None, weights: str | None = None) -> ArraysSource | "
    "InMemory",
    "raytrain.data.center_crop": "(size: Size, *, on: On = None) -> Stage",
    "raytrain.data.coco": '(images: Place, annotations: Place, *, task: "Literal[detection, segmentation]" = '
    "detection, limit: int | None = None, weights: str | None = None) -> CocoSource",
    "raytrain.data.color_jitter": "(brightness: Range = 0.0, contrast: Range = 0.0, saturation: Range = 0.0, "
    "hue: Range = 0.0, *, on: On = None) -> Stage",
    "raytrain.data.decode": "(*, scaled: bool = True, on: On = None) -> Stage",
    "raytrain.data.from_ray": "(dataset: Any, *, columns: Mapping[str, str] | None = None, masks: "
    "Sequence[str] = (), labels: Sequence[str] = (label,)) -> FromRay",
    "raytrain.data.from_torch": "(dataset: Any, *, fields: Sequence[str] = (image, label), images: "
    "Sequence[str] = (), masks: Sequence[str] = ()) -> FromTorch",
    "raytrain.data.gaussian_blur": "(kernel_size: int, *, sigma: Range = (0.1, 2.0), times: int = 1, on: On = "
    "None) -> Stage",
    "raytrain.data.grayscale": "(num_output_channels: int = 1, *, on: On = None) -> Stage",
    "raytrain.data.held_out": "(share: float, *, seed: int = 0) -> HeldOut",
    "raytrain.data.huggingface": "(path: Place, *, split: str | None = None, columns: Mapping[str, str] | "
    "None = None, masks: Sequence[str] = (), labels: Sequence[str] = (label,), limit: int | None = None, "
    "weights: str | None = None) -> HuggingFaceSource",
    "raytrain.data.image_folder": "(path: Place, *, limit: int | None = None, weights: str | None = None) -> "
    "ImageFolderSource",
    "raytrain.data.image_list": "(path: Places, *, files: Mapping[str, str] | None = None, root: Place | None "
    "= None, masks: Sequence[str] = (), labels: Sequence[str] = (label,), limit: int | None = None, weights: "
    "str | None = None) -> ImageListSource",
    "raytrain.data.keep_if": "(condition: Callable[..., Any], *, on: On = *, **options: Any) -> Stage",
    "raytrain.data.mixup": "(*, num_classes: int, alpha: float = 1.0, on: On = (image, label)) -> Stage",
    "raytrain.data.cutmix": "(*, num_classes: int, alpha: float = 1.0, on: On = (image, label)) -> Stage",
    "raytrain.data.on_cpu": "(what: Any) -> Stage",
    "raytrain.data.on_device": "(what: Any, *, on: On = None, **options: Any) -> Stage",
    "raytrain.data.padded": "(value: float = 0, *, axes: Sequence[int] = (0,), multiple_of: int = 1, most: "
    "int | None = None) -> Pad",
    "raytrain.data.parquet": "(path: Places, *, columns: Mapping[str, str] | None = None, shapes: "
    "Mapping[str, tuple[int, ...]] | None = None, masks: Sequence[str] = (), labels: Sequence[str] = (label,), "
    "limit: int | None = None, weights: str | None = None) -> ParquetSource",
    "raytrain.data.ragged": "() -> Ragged",
    "raytrain.data.random_crop": "(size: Size, *, padding: int | tuple[int, int] | tuple[int, int, int, int] "
    "= 0, pad_if_needed: bool = False, fill: float = 0, padding_mode: PaddingMode = constant, on: On = None) "
    "-> Stage",
    "raytrain.data.random_erasing": "(p: float = 0.5, *, scale: tuple[float, float] = (0.02, 0.33), ratio: "
    "tuple[float, float] = (0.3, 3.3), value: float = 0, on: On = None) -> Stage",
    "raytrain.data.random_grayscale": "(p: float = 0.1, *, on: On = None) -> Stage",
    "raytrain.data.random_horizontal_flip": "(p: float = 0.5, *, on: On = None) -> Stage",
    "raytrain.data.random_resized_crop": "(size: Size, *, scale: tuple[float, float] = (0.08, 1.0), ratio: "
    "tuple[float, float] = (0.75, 1.3333333333333333), interpolation: Interpolation = bilinear, on: On = None) "
    "-> Stage",
    "raytrain.data.random_vertical_flip": "(p: float = 0.5, *, on: On = None) -> Stage",
    "raytrain.data.resize": "(size: Size, *, interpolation: Interpolation = bilinear, max_size: int | None = "
    "None, on: On = None) -> Stage",
    "raytrain.data.stage": "(function: Callable[..., Any], *, on: On = None, whole_batch: bool = False, "
    "gives: Mapping[str, Field] | None = None, device: Callable[..., Any] | None = None, name: str | None = None, "
    "**options: Any) -> Stage",
    "raytrain.data.synthetic": "(num_samples: int, *, shape: tuple[int, int, int] = (224, 224, 3), "
    "num_classes: int = 1000, fields: Mapping[str, Field] | None = None, longest: int = 64, "
    "limit: int | None = None, weights: str | None = None) -> SyntheticSource",
    "raytrain.data.to_dtype": "(dtype: str, *, scale: bool = False, on: On = None) -> Stage",
    "raytrain.data.to_uint8": "(*, on: On = None) -> Stage",
    "raytrain.data.torchvision": "(transform: str, *, on: On = None, **options: Any) -> Stage",
    "raytrain.data.webdataset": "(path: Places, *, fields: Mapping[str, str] | None = None, masks: "
    "Sequence[str] = (), limit: int | None = None, weights: str | None = None) -> WebDatasetSource",
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
    r"def \(.*\) -> raytrain\.data\.stages\.stage\.Stage",
    r"def \(path: str \| os\.PathLike\[str\].*\) -> raytrain\.config\.data\.ImageFolderSource",
    r"raytrain\.record\.schema\.RunRecord",
]


def test_the_public_names_are_these():
    assert sorted(raytrain.__all__) == ["Job", "Pipeline", "PredictionJob", "export", "fit", "predict"]
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
