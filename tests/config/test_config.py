"""The job description: every key typed, unknown ones refused, every error one line that names the key."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from raytrain.config.file import from_yaml
from raytrain.config.inference import PredictionJob
from raytrain.config.job import Job
from raytrain.config.learning import Model
from raytrain.errors import ConfigError, nearest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.yaml")), ids=lambda p: p.name)
def test_every_job_of_launch_is_valid(path):
    if path.stem.startswith("predict_"):
        assert PredictionJob.from_yaml(path).name == f"{path.stem.removeprefix('predict_')}-predicted"
    else:
        assert Job.from_yaml(path).name == path.stem


def test_single_and_heterogeneous_are_the_same_workload():
    single, heterogeneous = (Job.from_yaml(ROOT / "launch" / f"{name}.yaml") for name in ("single", "heterogeneous"))
    assert single.model_dump(exclude={"name", "cluster"}) == heterogeneous.model_dump(exclude={"name", "cluster"})
    assert single.cluster.groups == heterogeneous.cluster.groups[:1]


def test_the_reference_workload_is_as_published():
    job = Job.from_yaml(ROOT / "launch" / "heterogeneous.yaml")
    assert job.data.train.shape == (224, 224, 3)
    assert job.data.train.num_classes == 1000
    assert job.data.stages[0] == {"gaussian_blur": {"kernel_size": 11, "sigma": [0.1, 2.0], "times": 10}}
    assert (job.data.batch_size, job.training.steps) == (64, 1000)
    assert job.model.name == "timm.models:VisionTransformer"
    assert job.model.options == {}
    optimizer = job.training.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == ("sgd", 0.001, 0.9, 0.0)


def test_set_overrides_a_key_with_a_yaml_value(job_file):
    job = Job.from_yaml(job_file(), ["training.epochs=7", "data.normalize=null", "cluster.placement=cpu-groups-first"])
    assert (job.training.epochs, job.data.normalize, job.cluster.placement) == (7, None, "cpu-groups-first")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", r"unknown key 'training.epoch'; did you mean 'epochs'\?"),
        ("data.train.pth=x", r"unknown key 'data.train.pth'; did you mean 'path'\?"),
        ("data.train.zzz=1", r"unknown key 'data.train.zzz' \(known here: kind, limit, path, weights\)$"),
        ("zzz=1", r"unknown key 'zzz' \(known here: cluster, data, "),
        ("training.epochs=many", r"training.epochs must be a whole number \(given: 'many'\)"),
        ("training.epochs=1.5", r"training.epochs must be a whole number \(given: 1.5\)"),
        ("training.epochs=0", r"training.epochs must be greater than 0 \(given: 0\)"),
        ("data.batch_size=-4", r"data.batch_size must be greater than 0 \(given: -4\)"),
        (
            "data.batch_size=",
            r"data: give `batch_size`, of a rank, or `global_batch_size`, of all ranks together: exactly",
        ),
        (
            "data.global_batch_size=8",
            r"data: give `batch_size`, of a rank, or `global_batch_size`, of all ranks togeth",
        ),
        ("data.global_batch_size=0", r"data.global_batch_size must be greater than 0 \(given: 0\)"),
        ("data.max_corrupt_share=2", r"data.max_corrupt_share must be at most 1 \(given: 2\)"),
        ("seed=-1", r"seed must be at least 0 \(given: -1\)"),
        ("seed=2147483648", r"seed must be less than 2.14748e\+09 \(given: 2147483648\)"),
        ("training.precision=fp8", r"training.precision must be 'fp32', 'bf16' or 'fp16' \(given: 'fp8'\)"),
        ("training.task.kind=regresion", r"task.kind must be .*\(given: 'regresion'\); did you mean 'regression'\?"),
        ("training.optimizer.lr=fast", r"training.optimizer.lr must be a number \(given: 'fast'\)"),
        ("training.optimizer=sgd", r"training.optimizer must be a section of `key: value` lines \(given: 'sgd'\)"),
        ("training.sync_batchnorm=maybe", r"training.sync_batchnorm must be true or false \(given: 'maybe'\)"),
        ("training.steps=5", r"training: give exactly one of `epochs` and `steps`"),
        (
            "data.train.kind=folder",
            r"data.train: unknown kind 'folder'; did you mean 'image_folder'\? \(known: image_folder, image_list, "
            r"parquet, .*, synthetic, or package.module:name for your own\)",
        ),
        ("data.train.kind=mine:3", r"data.train.kind: 'mine:3' must look like package.module:name$"),
        ("data.train={kind: 'mine:Photos', 3: 4}", r"unknown key 'data.train.3'"),
        ("data.train={path: x}", r"data.train: 'kind' is missing; it is one of image_folder, image_list, parquet, "),
        ("data.train=folder", r"data.train must be a section of `key: value` lines \(given: 'folder'\)"),
        ("data.train={kind: synthetic}", r"'data.train.num_samples' is missing$"),
        (
            "data.train={kind: synthetic, samples: 20}",
            r"unknown key 'data.train.samples'; did you mean 'num_samples'\? \(and 1 more\)",
        ),
        ("data.train={kind: parquet, pth: x}", r"unknown key 'data.train.pth'; did you mean 'path'\? \(and 1 more\)"),
        ("data.train={knd: synthetic, num_samples: 5}", r"unknown key 'data.train.knd'; did you mean 'kind'\?$"),
        ("data.stages=decode", r"data.stages must be a list, such as \[a, b\] \(given: 'decode'\)"),
        (
            "data.stages=[3]",
            r"data.stages.0: a stage is one name, or one name with its options such as .*, not 3",
        ),
        (
            "data.stages=[{decode: {}, to_uint8: {}}]",
            r"data.stages.0: a stage is one name, or one name with its options",
        ),
        ("data.stages=[{}]", r"data.stages.0: a stage is one name, or one name with its options"),
        ("data.validation={kind: held_out}", r"'data.validation.share' is missing$"),
        ("data.validation={kind: held_out, share: 1}", r"data.validation.share must be less than 1 \(given: 1\)"),
        ("data.train={kind: held_out, share: 0.5}", r"data.train: `held_out` is for `data.validation` alone"),
        ("data.train.limit=0", r"data.train.limit must be greater than 0 \(given: 0\)"),
        ("data.train={kind: parquet, path: [a, 3]}", r"data.train.path.1 must be text \(given: 3\)"),
        (
            "data.collate={tokens: pad}",
            r"data.collate.tokens: `padded`, `padded: \{value: 0\}` with its options, or `ragged`, not 'pad'",
        ),
        (
            "data.collate={tokens: {padded: {val: 1}}}",
            r"unknown key 'data.collate.tokens.padded.val'; did you mean 'value'",
        ),
        ("data.buckets={batches: 3}", r"'data.buckets.by' is missing$"),
        ("data.fields={mask: {dtpye: int64}}", r"unknown key 'data.fields.mask.dtpye'; did you mean 'dtype'"),
        ("training.task={targt: x}", r"unknown key 'training.task.targt'; did you mean 'target'"),
        ("data.normalize={mean: 0.5}", r"data.normalize.mean must be a list, such as \[a, b\] \(given: 0.5\)"),
        ("data.normalize={std: [0]}", r"data.normalize.std.0 must be greater than 0 \(given: 0\)"),
        ("model=18", r"model must be a section of `key: value` lines \(given: 18\)"),
        ("training.loop=mine", r"training.loop: 'mine' must look like package.module:name$"),
        ("training.loop=[mine]", r"training.loop must be text \(given: \['mine'\]\)"),
        ("model.options=[1]", r"model.options must be a section of `key: value` lines \(given: \[1\]\)"),
        ("sagemaker={image: {versoin: 5}}", r"unknown key 'sagemaker.image.versoin'; did you mean 'version'\?$"),
        ("sagemaker={image: 5}", r"sagemaker.image must be text \(given: 5\)$"),
        ("sagemaker={tags: {str: 1}}", r"sagemaker.tags.str must be text \(given: 1\)"),
        ("sagemaker={channels: {a b: {uri: 's3://bucket'}}}", r"sagemaker.channels.a b does not have the form"),
        (
            "sagemaker={vpc: {subnets: [], security_groups: [a]}}",
            r"vpc.subnets must hold 1 or more values",
        ),
        ("sagemaker={vpc: {subnets: [a], security_groups: [a,b,c,d,e,f]}}", r"groups must hold 5 or fewer values"),
        ("cluster={groups: [{name: a}]}", r"cluster.groups.0: group 'a' needs `instance_type` or `cpus`"),
        ("name=a/b", r"name does not have the form that it must have, .* \(given: 'a/b'\)"),
        ("name=" + 64 * "a", r"name must have at most 63 characters \(given: 'aaa"),
        ("name=2026.5", r"name must be text \(given: 2026.5\)"),
        ("training=null", r"training must be a section of `key: value` lines \(given: nothing\)"),
        ("epochs", r"must look like key.sub=value"),
        ("training.epochs=[", r"the value is not YAML"),
        ("name.x=1", r"'name' is not a section"),
    ],
)
def test_a_wrong_override_is_one_clear_line(job_file, override, message):
    with pytest.raises(ConfigError) as caught:
        Job.from_yaml(job_file(), [override])
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    foreign = r"\binput\b|discriminat|validation error|pydantic|instance of|dictionary|tuple|union|literal"
    assert not re.search(foreign, str(caught.value).partition("small.yaml: ")[2].lower()), str(caught.value)


def test_a_missing_section_and_further_problems_are_named(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("name: x\nseed: -1\n")
    with pytest.raises(ConfigError, match=r"seed must be at least 0 \(given: -1\) \(and 1 more\)"):
        Job.from_yaml(path)


def test_a_key_that_is_no_text_is_unknown(job_tree):
    with pytest.raises(ConfigError, match=r"job: unknown key '1' \(known here: cluster, data, "):
        Job.from_dict({**job_tree, 1: 2})


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "is not YAML"), ("- 1", "must hold a mapping"), ("", "must hold a mapping")],
)
def test_a_file_that_is_no_job_says_so(tmp_path, text, message):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        Job.from_yaml(path)


@pytest.mark.parametrize("word", ["on", "off", "yes", "no"])
def test_words_are_no_truth_values(word):
    """As in YAML 1.2; a stage has an option `on`."""
    assert from_yaml(f"{{{word}: {word}}}") == {word: word}
    assert from_yaml("[true, False, falsehood]") == [True, False, "falsehood"]


def test_an_unreadable_job_file_says_why(tmp_path):
    with pytest.raises(ConfigError, match="cannot read the job file .*none.yaml: no such file"):
        Job.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ConfigError, match="cannot read the job file"):
        Job.from_yaml(tmp_path / "binary.yaml")


@pytest.mark.parametrize("name", ["resnet18", "mine.models:net"])
def test_a_model_without_options_is_its_name(job_tree, name):
    assert Job.from_dict({**job_tree, "model": name}).model == Model(name=name, options={})


def test_a_job_knows_what_it_imports(job_tree):
    """Each once, from wherever a name may stand."""
    assert Job.from_dict(job_tree).imports == ("timm.models:VisionTransformer",)
    own = {
        "train": {"kind": "mine:Photos", "root": "x", "sizes": [1, 2]},
        "validation": {"kind": "others:Photos"},
        "stages": ["decode", "mine:crop", {"mine:noise": {"much": 1}}],
        "validation_stages": [{"mine:crop": None}, "mine.deep:crop"],
    }
    job = Job.from_dict({**job_tree, "data": own, "model": "mine:net", "training": {"steps": 1, "loop": "loops:fit"}})
    assert job.imports == (
        "loops:fit",
        "mine:net",
        "mine:Photos",
        "others:Photos",
        "mine:crop",
        "mine:noise",
        "mine.deep:crop",
    )
    assert job.data.train.options == {"root": "x", "sizes": [1, 2]}
    assert Job.from_dict(job.model_dump(mode="json")) == job


def test_a_job_survives_a_round_trip_through_json(job_file):
    job = Job.from_yaml(job_file())
    assert Job.from_dict(yaml.safe_load(yaml.safe_dump(job.model_dump(mode="json")))) == job


def test_nearest_is_silent_when_nothing_is_near():
    assert nearest("resise", ["resize", "decode"]) == "; did you mean 'resize'?"
    assert nearest("qqqq", ["resize", "decode"]) == ""
