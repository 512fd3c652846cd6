"""What a launch would be and cost."""

from __future__ import annotations

import io

import pytest
from aws import BUCKET, ROLE
from rich.console import Console

from raytrain.config.job import Job
from raytrain.errors import ConfigError
from raytrain.report.cloud import show_quote
from raytrain.sagemaker.quote import check_cap, quote
from raytrain.sagemaker.request import Places, build


def quoted(groups, region="us-east-1", prices=None, priced=True, data=None, **asked):
    tree = {
        "name": "digits",
        "training": {"epochs": 1},
        "data": data,
        "cluster": {"groups": groups},
        "sagemaker": {"role": ROLE, **asked},
    }
    job = Job.from_dict(tree)
    request = build(job, Places(BUCKET, "p", "b", "b-1", "t"), image="i", role=ROLE)
    found = quote(request, job, region, prices, priced=priced)
    check_cap(found, job.sagemaker.max_usd_per_hour)
    return found


GPU = {"name": "gpu", "instance_type": "ml.g5.xlarge"}
CPU = {"name": "cpu", "instance_type": "ml.c5.4xlarge"}


def test_the_reference_job():
    found = quoted([GPU, CPU], max_run_s=7200)
    assert (found.num_hosts, found.vcpus, found.gpus) == (2, 20, 1)
    assert found.usd_per_hour == pytest.approx(1.408 + 0.816)
    assert found.max_usd == pytest.approx(2 * (1.408 + 0.816))
    assert found.break_even == pytest.approx((1.408 + 0.816) / 1.408)  # 1.58
    kind, price = found.alternative  # the best single instance of the family for this money
    assert (kind.name, price.usd_per_hour) == ("ml.g5.2xlarge", 1.515)


def test_a_warm_pool_is_paid_for_too():
    found = quoted([GPU], max_run_s=600, keep_alive_s=3000)
    assert found.max_usd == pytest.approx(1.408)
    assert found.single.group.name == "gpu", "the user's name, though the request has none"
    assert "and the warm pool for 0.833333 h" in shown(found)


def test_what_the_job_says_is_no_markup():
    out = io.StringIO()
    show_quote(quoted([GPU]), Console(file=out, width=120), None, ("a [/red] note [gpu]",))
    assert "a [/red] note [gpu]" in out.getvalue()


def test_every_host_is_paid_for():
    assert quoted([{**GPU, "hosts": 2}, {**CPU, "hosts": 3}]).usd_per_hour == pytest.approx(2 * 1.408 + 3 * 0.816)


def test_the_single_variant_is_the_gpu_group_wherever_it_stands():
    assert quoted([CPU, GPU]).single.group.name == "gpu"


def test_one_group_has_nothing_to_break_even_with():
    found = quoted([GPU])
    assert (found.break_even, found.alternative) == (None, None)


def test_cpu_groups_alone_compare_with_the_first():
    found = quoted([CPU, {"name": "more", "instance_type": "ml.c5.18xlarge"}])
    assert found.single.group.name == "cpu"


def test_without_prices_nothing_is_guessed():
    found = quoted([GPU, {"name": "cpu", "instance_type": "ml.c6i.4xlarge"}], region="mars-1", priced=False)
    assert (found.usd_per_hour, found.max_usd, found.break_even, found.alternative) == (None,) * 4
    assert found.vcpus == 20


@pytest.mark.parametrize(
    ("groups", "more", "message"),
    [
        ([{**GPU, "cpus": 8}], {}, "group 'gpu' says cpus: 8, but ml.g5.xlarge has 4; leave it out"),
        ([{**GPU, "gpus": 2}], {}, "group 'gpu' says gpus: 2, but ml.g5.xlarge has 1"),
        (
            [{**GPU, "hosts": 3}],
            {"data": {"train": {"kind": "synthetic", "num_samples": 99}, "global_batch_size": 32}},
            "data.global_batch_size=32 cannot be shared evenly by 3 ranks; make it 30 or 33, or take another number",
        ),
        ([{**GPU, "instance_type": "ml.g5.xlarg"}], {}, "unknown instance type 'ml.g5.xlarg'; did you mean"),
        ([GPU], {"region": "mars-1"}, "no prices of region 'mars-1' here"),
        ([GPU, CPU], {"max_usd_per_hour": 2}, r"the job costs \$2.224 an hour, more than .*max_usd_per_hour: 2"),
        ([GPU, CPU], {"kms": {"volume": "abc"}}, "sagemaker.kms.volume: ml.g5.xlarge has disks of its own"),
        ([GPU], {"volume_gb": 300}, "sagemaker.volume_gb: ml.g5.xlarge has disks of its own, of 250 GB and no more"),
        ([GPU], {"max_usd_per_hour": 2, "priced": False}, "max_usd_per_hour cannot be kept with --no-prices"),
    ],
)
def test_what_does_not_fit_is_an_error(groups, more, message):
    with pytest.raises(ConfigError, match=message):
        quoted(groups, **more)


def shown(found) -> str:
    out = io.StringIO()
    show_quote(found, Console(file=out, width=120), None, ("a note",))
    return out.getvalue()


def test_a_person_sees_hosts_money_sources_and_places():
    text = shown(
        quoted([{**GPU, "hosts": 2}, CPU], channels={"images": {"uri": "s3://bucket/x", "groups": ["gpu", "cpu"]}})
    )
    for piece in (
        "ml.g5.xlarge",
        "2 A10G",
        "$2.816",
        "$3.632",
        "price cap: $87.17 for the instances, if it runs to its limit of 24 h",
        "prices: on demand, unrelated hand-kept tables that agree, undated",
        "break-even: 1.29 times the samples/s of 2 x ml.g5.xlarge alone ($2.816/h)",
        "beside it: 2 x ml.g5.2xlarge alone has 16 vCPUs for $3.030/h",
        "channel images: s3://bucket/x (File) to gpu, cpu",
        "checkpoints: s3://",
        "image: i",
        "note: a note",
    ):
        assert piece in text, text
    assert "raytrain_token" not in text


def test_spot_and_no_prices_are_said():
    assert "less on spot" in shown(quoted([GPU], spot=True))
    assert "price not asked for" in shown(quoted([GPU], priced=False))
