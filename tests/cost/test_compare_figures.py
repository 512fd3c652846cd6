"""Each figure of a comparison by hand, and where it comes from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from money import on_sagemaker, prices_file, run_on

from raytrain.cost.compare import best_single, compare, curve_of, profile_for
from raytrain.cost.instances import catalog
from raytrain.cost.priced import priced_hosts
from raytrain.cost.unlike import differences, unlikenesses
from raytrain.errors import ConfigError
from raytrain.record.schema import CloudFacts, HostLoad, Utilization

SINGLE = {"ml.g5.xlarge": ("gpu", 1, 1)}
BOTH = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.4xlarge": ("cpu", 1, 0)}
ARN = "arn:aws:sagemaker:us-west-2:123456789012:training-job/x"
EAST, WEST = {"region": "us-east-1"}, {"region": "us-west-2"}
WESTERN = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.2xlarge": ("cpu", 1, 0)}


@pytest.fixture(scope="module")
def known():
    return catalog()


def job_of(record, **changes):
    """Another record, whose job has other values under dotted keys with `__` in the place of the dots."""
    other = record.model_copy(deep=True)
    for key, value in changes.items():
        *parents, last = key.split("__")
        node = other.job
        for name in parents:
            node = node[name]
        node[last] = value
    return other


def cloud(kind="sagemaker", arn=ARN, loads=()):
    return CloudFacts(
        kind=kind, job_name="x", arn=arn, status="Completed", failure=None, spot=False, training_s=1, billable_s=1,
        usd=None, groups=[], loads=list(loads),
    )  # fmt: skip


def load(host="gpu-1", cpu=None, gpu=None):
    def busy(mean):
        return None if mean is None else Utilization(mean=mean, max=mean)

    return HostLoad(host=host, group="gpu", cpu_percent=busy(cpu), gpu_percent=busy(gpu))


def test_every_figure_of_a_run_of_several_gpus(record, tmp_path):
    """Eight ranks of ten batches did 640 samples: eight a batch, 64 a step; at 32 a second that is two seconds."""
    known = catalog(prices_file(tmp_path / "p.yaml", {"ml.p4d.24xlarge": 36.0, "ml.c5.18xlarge": 3.6}))
    hosts = {"ml.p4d.24xlarge": ("gpu", 1, 8), "ml.c5.18xlarge": ("cpu", 2, 0)}
    run = run_on(record, "p", hosts, samples_per_s=32.0, wait_share=0.25, first_step_s=100.0)
    run = run.model_copy(update={"loads": [load(gpu=320.0, cpu=4800.0), load("cpu-1"), load("cpu-2", cpu=720.0)]})
    first, single = compare(on_sagemaker([run]), known, region="here-1").columns
    assert (first.name, first.predicted, first.emulated) == ("p", False, False)
    assert first.hosts == {"ml.p4d.24xlarge": 1, "ml.c5.18xlarge": 2}
    assert (first.step_s, first.samples_per_s, first.wait_share) == (2.0, 32.0, 0.25)
    assert first.cpu_busy == {"gpu-1": 0.5, "cpu-2": pytest.approx(0.1)}
    assert first.gpu_busy == {"gpu-1": pytest.approx(0.4)}
    assert first.usd_per_hour == pytest.approx(36 + 2 * 3.6)
    assert first.usd_per_million_samples == pytest.approx(43.2 / 3600 / 32 * 1e6)
    assert first.usd_per_epoch == pytest.approx(43.2 / 3600 / 32 * 640)
    assert (first.startup_s, first.startup_usd) == (100.0, pytest.approx(43.2 * 100 / 3600))
    assert (single.name, single.predicted, single.hosts) == ("best single p4d", True, {"ml.p4d.24xlarge": 1})
    assert single.step_s == pytest.approx(8 * 8 / single.samples_per_s)
    assert (single.wait_share, single.startup_s, single.usd_per_hour) == (None, 100.0, 36.0)
    assert single.usd_per_million_samples == pytest.approx(36 / 3600 / single.samples_per_s * 1e6)
    assert single.usd_per_epoch == pytest.approx(36 / 3600 / single.samples_per_s * 640)
    assert single.startup_usd == pytest.approx(36 * 100 / 3600)
    assert single.speedup == pytest.approx(single.samples_per_s / 32)
    assert single.break_even == pytest.approx(36 / 43.2)
    assert single.price_efficiency == pytest.approx(single.samples_per_s / 32 / (36 / 43.2) - 1)


def test_without_a_first_step_start_up_has_no_price(record, known):
    first, single = compare([run_on(record, "r", SINGLE, first_step_s=None)], known, **EAST).columns
    assert (first.startup_s, first.startup_usd, single.startup_usd) == (None, None, None)
    assert first.usd_per_hour == 1.408


def test_without_prices_there_is_no_money_but_speed(record, known):
    runs = [record, run_on(record, "fast", SINGLE, samples_per_s=128.0)]
    found = compare(runs, known, **EAST)
    first, second = found.columns
    assert first.hosts == {"train (2 CPUs)": 1, "cpu (2 CPUs)": 1}
    assert [first.usd_per_hour, first.usd_per_epoch, first.startup_usd, first.price_efficiency] == [None] * 4
    assert (second.speedup, second.break_even, second.price_efficiency) == (2.0, None, None)
    assert found.notes[1:] == (
        "no single instance is predicted: the first record has no price",
        "small: on emulated nodes, which share one machine",
    )
    turned = compare(runs[::-1], known, **EAST).columns[1]
    assert (turned.speedup, turned.break_even, turned.price_efficiency) == (0.5, None, None)
    assert [price.type for price in found.prices] == ["ml.g5.xlarge"]


def test_hosts_alike_are_counted(record, known):
    twice = record.model_copy(update={"hosts": [record.hosts[0], record.hosts[1], record.hosts[1]]})
    assert compare([twice], known).columns[0].hosts == {"train (2 CPUs)": 1, "cpu (2 CPUs)": 2}


def cpu_busy(record, known, **changes):
    return compare([record.model_copy(update=changes)], known, **EAST).columns[0].cpu_busy["gpu-1"]


def test_a_busy_host_is_held_against_all_of_its_cpus(record, known):
    """150 % of a CPU. A typed host has its type's vCPUs; an emulated one, or one without a type, what it declares."""
    run = run_on(record, "r", SINGLE).model_copy(update={"loads": [load(cpu=150.0, gpu=150.0)]})
    [host] = run.hosts
    fewer = host.model_copy(update={"cpus": 3.0})
    assert cpu_busy(run, known, hosts=[fewer]) == 1.5 / 4
    emulated = fewer.model_copy(update={"emulated": True})
    assert cpu_busy(run, known, hosts=[emulated], cluster_attached=True) == 1.5 / 3
    assert cpu_busy(run, known, hosts=[emulated], cluster_attached=False) == 1.5 / 2, "the driver's machine has two"
    untyped = fewer.model_copy(update={"instance_type": None})
    assert cpu_busy(run, known, hosts=[untyped], cluster_attached=True) == 1.5 / 3
    half = untyped.model_copy(update={"cpus": 0.5})
    assert cpu_busy(run, known, hosts=[half], cluster_attached=True) == 1.5, "at least one"
    elsewhere = host.model_copy(update={"name": "gpu-9"})
    assert cpu_busy(run, known, hosts=[elsewhere], cluster_attached=True) == 1.5 / 2
    assert cpu_busy(run, known, loads=[], cloud=cloud(loads=[load(cpu=100.0)])) == 1 / 4, "what SageMaker measured"
    assert cpu_busy(run, known, cloud=cloud(loads=[load(cpu=100.0)])) == 1.5 / 4, "or, before that, the run itself"


def test_a_busy_gpu_is_held_against_all_of_the_hosts(record, known):
    run = run_on(record, "r", SINGLE).model_copy(update={"loads": [load(gpu=150.0)]})
    [host] = run.hosts

    def busy(gpus, name="gpu-1", names=("A10G",)):
        hardware = run.hardware.model_copy(update={"gpus": list(names)})
        hosts = [host.model_copy(update={"gpus": gpus, "name": name})]
        changed = run.model_copy(update={"hosts": hosts, "hardware": hardware})
        found = compare([changed], known, **EAST).columns[0]
        assert found.cpu_busy == {}
        return found.gpu_busy["gpu-1"]

    assert (busy(1.0), busy(3.0), busy(0.5), busy(0.0)) == (1.5, 0.5, 1.5, 1.5)
    assert busy(9.0, "another", ["A10G"] * 3) == 0.5, "of a host that is not listed, the driver's"
    assert busy(9.0, "another", []) == 1.5


def region_of(record, known, region=None):
    return compare([record], known, region=region).region


def test_whose_region_the_prices_are_of(record, known):
    run = job_of(run_on(record, "r", SINGLE), sagemaker={"region": "us-east-1"})
    assert region_of(run, known) == "us-east-1"
    there = run.model_copy(update={"cloud": cloud()})
    assert region_of(there, known) == "us-west-2", "where it ran"
    assert region_of(there, known, "us-east-1") == "us-east-1"
    assert region_of(run.model_copy(update={"cloud": cloud("twin")}), known) == "us-east-1", "a twin ran nowhere"
    assert region_of(run.model_copy(update={"cloud": cloud(arn="arn:aws:sagemaker")}), known) == "us-east-1"
    four = run.model_copy(update={"cloud": cloud(arn="arn:aws:sagemaker:us-west-2")})
    assert region_of(four, known) == "us-west-2"
    nowhere = job_of(run, sagemaker=None)
    assert region_of(nowhere, known) is None
    found = compare([nowhere], known)
    assert found.notes == (
        "r: its job names no region; give --region",
        "no single instance is predicted: the first record has no price",
    )
    assert (found.columns[0].hosts, found.prices) == ({"ml.g5.xlarge": 1}, ())
    west = compare([there], known)
    assert {price.region for price in west.prices} == {"us-west-2"}


def test_types_that_are_given_come_before_the_records_and_those_before_the_jobs(record, known):
    groups = [{"name": "gpu", "instance_type": "ml.g5.2xlarge"}, {"name": "cpu", "instance_type": None}]
    run = job_of(run_on(record, "r", WESTERN), cluster__groups=groups)
    bare = run.model_copy(update={"hosts": [host.model_copy(update={"instance_type": None}) for host in run.hosts]})
    assert list(compare([run], known, **WEST).columns[0].hosts) == ["ml.g5.xlarge", "ml.c5.2xlarge"]
    given = compare([run], known, instances=[{"gpu": "ml.g5.4xlarge"}], **WEST)
    assert list(given.columns[0].hosts) == ["ml.g5.4xlarge", "ml.c5.2xlarge"]
    some = compare([bare], known, instances=[{"cpu": "ml.c5.xlarge"}], **WEST)
    assert list(some.columns[0].hosts) == ["ml.g5.2xlarge", "ml.c5.xlarge"]
    assert compare([bare], known, **WEST).notes[0] == ("r: group 'cpu' has no instance type; give --instances cpu=ml.…")
    without = job_of(bare, cluster=None)
    assert compare([without], known, **WEST).notes[0].startswith("r: group 'gpu' has no instance type")
    ungrouped = job_of(bare, cluster={})
    assert compare([ungrouped], known, **WEST).notes[0].startswith("r: group 'gpu' has no instance type")


def test_each_difference_is_one_line_with_its_key(record):
    run = run_on(record, "one", SINGLE)
    other = job_of(run.model_copy(update={"name": "two", "num_train": 9}), training__precision="bf16", model="m" * 90)
    assert unlikenesses(run, run) == []
    model, samples, precision = unlikenesses(other, run)
    assert model.startswith("model: " + "m" * 59 + "… in two, {'name': 'timm.models:VisionTransformer'")
    assert samples == "training samples: 9 in two, 640 in one"
    assert precision == "training.precision: bf16 in two, fp32 in one"
    for change, line in (
        ({"data__train__kind": "tar"}, "data.train.kind: image_folder in one, tar in one"),
        ({"data__train__label_extension": "cls"}, "data.train.label_extension: nothing in one, cls in one"),
        (
            {"data__normalize": None},
            "data.normalize: {'scale': 0.0039",
        ),
        ({"data__batch_size": 7}, "data.batch_size: 16 in one, 7 in one"),
        ({"model__options__depth": 9}, "model.options.depth: 1 in one, 9 in one"),
        ({"training__loop": "mine:loop"}, "training.loop: None in one, mine:loop in one"),
    ):
        [text] = unlikenesses(run, job_of(run, **change))
        assert text.startswith(line)
    assert unlikenesses(run, job_of(run, data__train__path="/elsewhere")) == []


def test_long_values_that_begin_alike_are_shown_where_they_differ(record):
    run = run_on(record, "one", SINGLE)
    first, second = job_of(run, model="m" * 500 + "a  b\n c"), job_of(run, model="m" * 500 + "xyz")
    assert unlikenesses(first, second) == [f"model: …{'m' * 12}a b c in one, …{'m' * 12}xyz in one"]
    first, second = job_of(run, model="short"), job_of(run, model="shorn")
    assert unlikenesses(first, second) == ["model: short in one, shorn in one"]
    first, second = job_of(run, model="m" * 60), job_of(run, model="m" * 59 + "a")
    assert unlikenesses(first, second) == [f"model: {'m' * 60} in one, {'m' * 59}a in one"], "60 characters are short"


def test_of_many_differences_the_first_three_are_named(record):
    run = run_on(record, "one", SINGLE)
    options = {"img_size": 9, "patch_size": 9, "embed_dim": 9, "depth": 9}
    found = unlikenesses(run, job_of(run, model__options={**run.job["model"]["options"], **options}))
    assert [line.split(":")[0] for line in found] == [
        "model.options.img_size",
        "model.options.patch_size",
        "model.options.embed_dim",
        "1 more",
    ]


TREES = st.recursive(
    st.integers(0, 2) | st.sampled_from("ab"),
    lambda part: st.lists(part, max_size=2) | st.dictionaries(st.sampled_from("xyz"), part, max_size=2),
    max_leaves=6,
)


@given(TREES, TREES)
def test_there_is_a_difference_just_where_two_values_differ(mine, theirs):
    found = differences("", mine, theirs)
    assert bool(found) == (mine != theirs)
    assert all(one != two for _, one, two in found)


def test_of_a_program_without_a_job_file_the_stages_are_compared(record):
    run = job_of(run_on(record, "one", SINGLE), data=None)
    assert unlikenesses(run, run) == []
    fewer = run.model_copy(update={"stages": run.stages[:1]})
    assert unlikenesses(run, fewer) == ["stages: ['decode', 'read', 'validation/read'] in one, ['decode'] in one"]


def test_where_a_stage_runs_makes_no_other_work(record):
    """By the job's data, and of a program by its figures: the crop on the device, for which the workers draw."""
    one, crop = run_on(record, "one", SINGLE), {"random_crop": {"size": 8}}
    elsewhere = {"random_crop": {"size": 8, "place": "device"}}
    here, there = (job_of(one, data={**one.job["data"], "stages": ["decode", each]}) for each in (crop, elsewhere))
    assert unlikenesses(here, there) == []
    other = job_of(one, data={**one.job["data"], "stages": ["decode", {"random_crop": {"size": 9}}]})
    assert unlikenesses(here, other) == ["data.stages[1].random_crop.size: 8 in one, 9 in one"]
    program = job_of(one, data=None)
    first, second, *rest = program.stages
    moved = [
        second,
        *rest,
        second.model_copy(update={"name": "draw"}),
        second.model_copy(update={"name": "validation/draw"}),
    ]
    ranks = [program.ranks[0].model_copy(update={"device_stage_s": {first.name: 1.0}})]
    assert unlikenesses(program, program.model_copy(update={"stages": moved, "ranks": ranks})) == []


def test_equal_names_are_numbered(record, known):
    other = run_on(record, "other", SINGLE)
    run = run_on(record, "r", SINGLE)
    assert [c.name for c in compare([run, other, run, run], known, **EAST).columns[:4]] == [
        "r",
        "other",
        "r (2)",
        "r (3)",
    ]


def test_a_run_without_samples_or_without_speed_is_refused(record, known):
    for update in ({"samples": 0}, {"samples_per_s": 0.0}):
        bad = run_on(record, "bad", SINGLE)
        bad = bad.model_copy(update={"totals": bad.totals.model_copy(update=update)})
        with pytest.raises(ConfigError, match="the record of bad has no training to compare"):
            compare([run_on(record, "good", SINGLE), bad], known, **EAST)


def test_a_run_that_counted_no_batches_has_steps_of_everything(record, known):
    run = run_on(record, "r", SINGLE, samples_per_s=32.0)
    run = run.model_copy(update={"ranks": [run.ranks[0].model_copy(update={"num_batches": 0})]})
    assert compare([run], known, **EAST).columns[0].step_s == 640 / 32


def test_the_single_instance_is_of_the_first_records_family_and_one(record, known):
    run = run_on(record, "r", BOTH)
    found = compare([run, run_on(record, "s", SINGLE)], known, **EAST)
    assert found.notes == ("the single instance is predicted from r: CPU and accelerator seconds a sample as there",)
    single = found.columns[-1]
    assert list(single.hosts.values()) == [1]
    assert {known.type(name).family for name in single.hosts} == {"g5"}
    assert {(p.region, p.type) for p in found.prices} == {
        ("us-east-1", name) for name in (*single.hosts, "ml.g5.xlarge", "ml.c5.4xlarge")
    }
    cpus = run_on(record, "c", {"ml.c5.4xlarge": ("cpu", 1, 0)})
    assert compare([cpus], known, **EAST).notes == (
        "no single instance is predicted: the first record's hosts have no GPU",
    )
    on_cpu = run.model_copy(update={"ranks": [run.ranks[0].model_copy(update={"device": "cpu"})]})
    [note, *_] = compare([on_cpu], known, **EAST).notes
    assert note.endswith("; its ranks stood in for A10G GPUs, with an efficiency of 66%: they trained on a CPU")


def test_the_cheapest_single_instance_is_the_one(record, known):
    """1/128 s of an A10G, half as efficient as that; 5 ms of a vCPU, of which 3 of 4 prepare 600 a second."""
    run = run_on(record, "r", SINGLE)
    prediction, _ = best_single(run, priced_hosts(run, known, "us-east-1", {}), known, "us-east-1")
    assert str(prediction.shape) == "1 x ml.g5.xlarge"
    assert prediction.samples_per_s == pytest.approx(64.0)


def test_the_single_instances_price_is_listed_too(record, known):
    """Of the same work, one A10G does as much in a g5.xlarge as in the g5.12xlarge that has four and used one."""
    run = run_on(record, "r", {"ml.g5.12xlarge": ("gpu", 1, 1)})
    found = compare([run], known, **EAST)
    assert found.columns[1].hosts == {"ml.g5.xlarge": 1}
    assert [(p.region, p.type, p.usd_per_hour) for p in found.prices] == [
        ("us-east-1", "ml.g5.12xlarge", known.price("ml.g5.12xlarge", "us-east-1").usd_per_hour),
        ("us-east-1", "ml.g5.xlarge", 1.408),
    ]


def test_one_emulated_host_makes_a_run_emulated(record, known):
    run = run_on(record, "r", BOTH)
    real, other = run.hosts
    mixed = run.model_copy(update={"hosts": [real, other.model_copy(update={"emulated": True})]})
    assert [compare([each], known, **EAST).columns[0].emulated for each in (run, mixed)] == [False, True]
    assert compare([mixed], known, **EAST).notes[-1] == "r: on emulated nodes, which share one machine"


def test_where_another_gpu_trained_its_figure_stands_in(record, known):
    run = run_on(record, "r", SINGLE)
    own, said = profile_for(run, "A10G", known)
    assert (list(own.accelerator_s_per_sample), said) == (["A10G"], "")
    other, said = profile_for(run, "L4", known)
    assert other.accelerator_s_per_sample == {"L4": own.accelerator_s_per_sample["A10G"]}
    assert said == "its ranks stood in for L4 GPUs, with an efficiency of 50%: they trained on A10G"


def test_a_curve_goes_four_hosts_past_what_was_measured(record, known):
    more = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.c5.2xlarge": ("cpu", 3, 0)}
    mixed = {**WESTERN, "ml.c5.xlarge": ("more", 1, 0)}
    two = {"ml.g5.xlarge": ("gpu", 2, 1)}
    runs = [run_on(record, name, h) for name, h in zip("abcde", (SINGLE, WESTERN, more, mixed, two), strict=True)]
    comparison = compare(runs, known, **WEST)
    name, curve, points = curve_of(runs[0], comparison, known)
    assert name == "ml.c5.2xlarge"
    assert [str(each.shape) for each in curve] == [
        "1 x ml.g5.xlarge",
        *(f"1 x ml.g5.xlarge + {count} x ml.c5.2xlarge" for count in range(1, 8)),
    ]
    assert [(hosts, column.name) for hosts, column in points] == [(0, "a"), (1, "b"), (3, "c")]


def test_a_curve_of_two_gpu_hosts(record, known):
    two = {"ml.g5.xlarge": ("gpu", 2, 1)}
    runs = [run_on(record, "a", two), run_on(record, "b", {**two, "ml.m5.xlarge": ("cpu", 1, 0)})]
    comparison = compare([*runs, run_on(record, "c", WESTERN)], known, **WEST)
    name, curve, points = curve_of(runs[0], comparison, known)
    assert (name, len(curve), [hosts for hosts, _ in points]) == ("ml.m5.xlarge", 1 + 1 + 4, [0, 1])
    assert {each.shape.gpu_hosts for each in curve} == {2}


def test_without_cpu_hosts_the_curve_is_of_the_best_type(record, known):
    run = run_on(record, "a", SINGLE, wait_share=0.9)
    name, curve, points = curve_of(run, compare([run], known, **EAST), known)
    assert known.type(name).accelerators == 0
    assert (len(curve), [hosts for hosts, _ in points]) == (5, [0])


def test_there_is_no_curve_of_two_kinds_of_gpus_without_prices_or_without_cpu_types(record, known, tmp_path):
    both = {"ml.g5.xlarge": ("gpu", 1, 1), "ml.g5.2xlarge": ("more", 1, 1)}
    run = run_on(record, "a", both)
    assert curve_of(run, compare([run], known, **EAST), known) is None
    run = run_on(record, "a", SINGLE)
    assert curve_of(run, compare([run], known), known) is None, "no region"
    only = catalog(prices_file(tmp_path / "p.yaml", {"ml.g5.xlarge": 1.0, "ml.g5.2xlarge": 1.5}))
    assert curve_of(run, compare([run], only, region="here-1"), only) is None
    beside = run_on(record, "b", both)
    comparison = compare([run, beside], only, region="here-1")
    assert curve_of(run, comparison, only) is None, "the second GPU type is no CPU type"
