"""From a job to its tuned file with a simulated machine: points, going on, budget, whole path, prices, front."""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from simulated_machine import SimulatedMachine, physical

from raytrain.config.inference import Inference, PredictionJob, Tune
from raytrain.cost.instances import catalog
from raytrain.errors import ConfigError, PredictionError
from raytrain.infer.contract import Setting, Timed
from raytrain.infer.tune.pareto import front, rate_of
from raytrain.infer.tune.points import Points, Subject, point_of, this_machine
from raytrain.infer.tune.search import Goal, Refused
from raytrain.infer.tune.space import Machine, Space, space_of, stream_shapes
from raytrain.infer.tune.tuned import said, with_setting, write_tuned
from raytrain.infer.tune.tuning import Measures, Tuned, Whole, tune

SUBJECT = Subject(hardware={"cpu_cores": 8}, versions={"torch": "2.9"}, model="abc", data="images")
JOB = {
    "name": "digits",
    "model": {"name": "resnet18"},
    "data": {"source": {"kind": "image_folder", "path": "data"}, "stages": ["decode", {"resize": {"size": 32}}]},
    "output": {"fields": ["label"]},
    "inference": {"device": "cpu", "streams": {"huge_pages": False}, "objective": "throughput"},
}


class WholePath:
    """Preprocessing is as fast on each core as `prepare`, and has what the streams leave, at least half a core."""

    def __init__(self, machine: SimulatedMachine, cores: int = 8, prepare: float = 100.0, wall_s: float = 10.0):
        self.machine, self.cores, self.prepare, self.wall_s = machine, cores, prepare, wall_s
        self.asked: list[Setting] = []
        self.refused: set[Setting] = set()

    def __call__(self, setting: Setting) -> Whole | Refused:
        self.asked.append(setting)
        self.machine.now_s += self.wall_s
        if setting in self.refused:
            return Refused("no room in the object store", self.wall_s)
        left = max(self.cores - setting.streams * setting.cores, 0.5)
        model = self.machine.of(setting)[0]
        return Whole(min(model, self.prepare * left), model, self.prepare * left, self.wall_s)


def tuned(machine, path, *, whole=None, goal=Goal(), budget_s=1e6, subject=SUBJECT, space=None, watch=None) -> Tuned:
    points = Points(path, subject)
    points.read()
    measures = Measures(machine.measure, whole or WholePath(machine))
    told = watch if watch is not None else []
    space = space or Space(machine.settings, {})
    return tune(space, goal, measures, points, budget_s=budget_s, clock=machine.clock, watch=told.append)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- points ---


def test_every_measurement_is_a_line_with_hardware_and_versions(tmp_path):
    machine, path = physical(0), tmp_path / "run" / "points.jsonl"
    found = tuned(machine, path)
    rows = lines(path)
    assert [row["what"] for row in rows].count("model") == len(machine.asked) == len(found.points)
    assert {Setting(**row["setting"]) for row in rows} == set(machine.asked)
    first = rows[0]
    assert first["subject"] == SUBJECT.model_dump()
    assert first["p50_s"] == first["p95_s"] == first["p99_s"] > 0 and first["samples_per_s"] > 0
    assert first["at"].endswith("+00:00") and first["wall_s"] == first["effort_s"] + 2


def test_percentiles_of_a_point():
    timed = Timed(10.0, [number / 1000 for number in range(1, 101)], 3.0)
    point = point_of(Setting(), 1.0, timed, SUBJECT)
    assert (point.p50_s, point.p95_s, point.p99_s) == (0.051, 0.096, 0.1)
    assert point.measured.percentile(0.95) == timed.percentile(0.95)


def test_again_nothing_is_measured_and_the_pick_is_the_same(tmp_path):
    path = tmp_path / "points.jsonl"
    first, again = physical(1), physical(1)
    before, whole = tuned(first, path), WholePath(again)
    written = path.read_text()
    after = tuned(again, path, whole=whole)
    assert again.asked == [] and whole.asked == []
    assert path.read_text() == written
    assert (after.pick, after.why, after.rows, after.front) == (before.pick, before.why, before.rows, before.front)


@pytest.mark.parametrize("kept", [1, 7, 20])
def test_it_goes_on_where_it_was_killed(tmp_path, kept):
    """What was measured is not measured again, and then the search is the one that it would have been."""
    path = tmp_path / "points.jsonl"
    whole_run = physical(2)
    expected = tuned(whole_run, path)
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:kept]) + '{"what": "mod')
    machine = physical(2)
    for setting in whole_run.asked[:kept]:
        machine.measure(setting, 1.0)  # the same noise from there on
    del machine.asked[:]
    found = tuned(machine, path)
    assert machine.asked == whole_run.asked[kept:]
    assert found.pick == expected.pick
    again = Points(path, SUBJECT)
    again.read()
    assert again.unreadable == 1 and again.known == len(lines_that_can_be_read(path))


def lines_that_can_be_read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "NaN", '{"samples_per_s": 1e999}', "3", "{}", '{"samples_per_s": -1.0}', '{"setting": []}']
)
def test_a_line_that_is_no_point_is_left_alone(tmp_path, line):
    path = tmp_path / "points.jsonl"
    expected = tuned(physical(2), path)
    first, *rest = path.read_text().splitlines()
    damaged = line if not line.startswith("{") else json.dumps({**json.loads(first), **from_json_or_wild(line)})
    path.write_text("\n".join([damaged, *rest]) + "\n")
    points = Points(path, SUBJECT)
    points.read()
    assert points.unreadable == 1 - (line == "{}") and points.known == len(rest) + (line == "{}")
    assert tuned(physical(2), path).pick == expected.pick


def from_json_or_wild(line: str) -> dict:
    return json.loads(line.replace("1e999", "Infinity"))


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"versions": {"torch": "2.10"}}, {"hardware": {"cpu_cores": 4}}, {"data": "text"}]
)
def test_points_of_something_else_are_left_alone_and_that_is_said(tmp_path, change):
    path, machine = tmp_path / "points.jsonl", physical(3)
    tuned(physical(3), path)
    other = SUBJECT.model_copy(update=change)
    points = Points(path, other)
    points.read()
    count = len(lines(path))
    assert list(points.said()) == [
        f"{count} points of {path} are left alone: of other hardware, versions, model or data"
    ]
    tuned(machine, path, subject=other)
    assert machine.asked and len(lines(path)) == 2 * count


def test_points_that_cannot_be_written_are_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write the points to .*points.jsonl"):
        tuned(physical(0), tmp_path / "file" / "points.jsonl")


def test_points_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "points.jsonl").mkdir()
    with pytest.raises(ConfigError, match="cannot read the points in"):
        Points(tmp_path / "points.jsonl", SUBJECT).read()


def test_this_machine_is_said_as_records_say_it():
    machine, versions = this_machine()
    assert machine["cpu_cores"] >= 1 and machine["memory_bytes"] > 0
    assert {"python", "torch", "numpy"} <= set(versions)


# --- the whole path ---


def test_the_pick_leaves_cores_to_preprocessing(tmp_path):
    """Alone, all cores are best; together with a heavy preprocessing it is the leader that leaves it some."""
    full = [Setting("eager", "fp32", size, 256, 8, 1) for size in (8, 16, 32, 64)]
    spare = Setting("eager", "fp32", 8, 256, 4, 1)
    machine = SimulatedMachine(
        [*full, spare], np.array([1000.0, 990.0, 980.0, 970.0, 700.0]), np.full(5, 0.1), noise=0.0
    )
    found = tuned(machine, tmp_path / "points.jsonl")
    assert found.pick == spare
    assert "with preprocessing 400 samples/s" in found.why
    by_setting = {point.setting: point for point in found.whole}
    assert by_setting[spare].samples_per_s == 400 and by_setting[spare].prepare_samples_per_s == 400
    assert by_setting[full[0]].samples_per_s == 50 and by_setting[full[0]].model_samples_per_s == 1000


def test_where_preprocessing_limits_alike_the_order_of_the_search_stands(tmp_path):
    settings = [Setting("eager", "fp32", size, 256, 4, 1) for size in (8, 16, 32)]
    machine = SimulatedMachine(settings, np.array([1000.0, 2000.0, 1500.0]), np.full(3, 0.1), noise=0.0)
    found = tuned(machine, tmp_path / "points.jsonl")
    assert [point.samples_per_s for point in found.whole] == [400, 400, 400]
    assert found.pick == settings[1]


def test_blocks_are_tried_with_the_best_leader_alone(tmp_path):
    settings = [Setting("eager", "fp32", size, rows, 4, 1) for size in (8, 16) for rows in (64, 256, 1024)]
    rates = {8: 300.0, 16: 250.0}
    machine = SimulatedMachine(settings, np.array([rates[one.batch_size] for one in settings]), np.full(6, 0.1), 0.0)

    def whole(setting: Setting) -> Whole:
        factor = {64: 0.5, 256: 0.8, 1024: 0.9}[setting.block_rows]
        return Whole(rates[setting.batch_size] * factor, rates[setting.batch_size], 900.0, 5.0)

    found = tuned(machine, tmp_path / "points.jsonl", whole=whole)
    assert found.tried == 2, "for the model alone blocks are all the same"
    assert found.pick == Setting("eager", "fp32", 8, 1024, 4, 1)
    assert [(point.setting.batch_size, point.setting.block_rows) for point in found.whole] == [
        *((8, 64), (16, 64), (8, 256), (8, 1024))
    ]
    assert found.picked_row.setting.batch_size == 8


def test_a_leader_that_is_not_possible_on_the_whole_path_is_not_picked(tmp_path):
    machine = physical(4)
    whole = WholePath(machine)
    first = tuned(physical(4), tmp_path / "one.jsonl").whole[0].setting
    whole.refused = {first}
    found = tuned(machine, tmp_path / "two.jsonl", whole=whole)
    assert found.whole[0].setting == first and found.whole[0].refused == "no room in the object store"
    assert found.pick != first
    again = WholePath(physical(4))
    tuned(physical(4), tmp_path / "two.jsonl", whole=again)
    assert again.asked == [first], "the whole path may be possible the next time"


def test_where_the_whole_path_says_nothing_the_model_alone_decides(tmp_path):
    machine = physical(4)
    found = tuned(machine, tmp_path / "points.jsonl", whole=lambda setting: Refused("Ray does not start", 1.0))
    assert found.pick == found.whole[0].setting
    assert "preprocessing" not in found.why


@pytest.mark.parametrize("budget_s", [60.0, 120.0, 300.0])
def test_the_budget_holds_for_all_of_it(tmp_path, budget_s):
    machine = physical(5)
    found = tuned(machine, tmp_path / "points.jsonl", budget_s=budget_s)
    assert machine.now_s <= budget_s
    assert found.whole, "the whole path is measured once at least"


def test_nothing_works(tmp_path):
    machine = physical(0)
    machine.refused = set(machine.settings)
    with pytest.raises(PredictionError, match="none of the .* settings that were tried works: out of memory"):
        tuned(machine, tmp_path / "points.jsonl")


def test_latency_picks_the_first_leader_that_works(tmp_path):
    machine = physical(6)
    found = tuned(machine, tmp_path / "points.jsonl", goal=Goal("latency"))
    assert found.pick == found.whole[0].setting == found.rows[0].setting
    assert "the least p95 latency" in found.why


def test_a_limit_that_nothing_keeps_is_said(tmp_path):
    found = tuned(physical(6), tmp_path / "points.jsonl", goal=Goal("throughput", 1e-9))
    assert "nothing that was tried keeps within 1e-06 ms" in found.why


# --- the front, and what predictions cost ---

figures = st.tuples(st.integers(1, 6).map(float), st.integers(1, 6).map(float))


@given(st.lists(figures, max_size=25))
def test_the_front_against_brute_force(points):
    def beats(one, other):
        return one[0] >= other[0] and one[1] <= other[1] and one != other

    kept = [number for number, each in enumerate(points) if not any(beats(other, each) for other in points)]
    found = front(points)
    assert sorted(found) == kept
    assert [points[number][0] for number in found] == sorted((points[number][0] for number in found), reverse=True)


def test_the_front_of_a_tuned_job_is_that_of_its_rows(tmp_path):
    found = tuned(physical(7), tmp_path / "points.jsonl")
    for row in found.rows:
        better = [o for o in found.rows if o.samples_per_s > row.samples_per_s and o.p95_s < row.p95_s]
        assert (row.setting in found.front) == (not better)


@pytest.fixture
def prices(tmp_path):
    """A type of 16 vCPUs at 0.72 dollars an hour, and one with a GPU."""
    path = tmp_path / "prices.yaml"
    types = [
        {"name": "ml.c9.4xlarge", "vcpus": 16, "memory_gib": 32},
        {"name": "ml.g9.xlarge", "vcpus": 4, "memory_gib": 16, "gpus": 1, "gpu": "X", "gpu_memory_gib": 24},
    ]
    rows = [
        {"region": "us-east-1", "type": name, "usd_per_hour": usd, "source": "mine"}
        for name, usd in (("ml.c9.4xlarge", 0.72), ("ml.g9.xlarge", 1.8))
    ]
    path.write_text(yaml.safe_dump({"schema_version": 1, "types": types, "prices": rows}))
    return catalog(path)


def test_prices_by_hand(prices):
    whole = rate_of(prices, "ml.c9.4xlarge", "us-east-1", 16, 0)
    assert whole.note is None
    assert whole.per_million(100) == pytest.approx(2.0)  # 10,000 s = 2.7778 h at $0.72
    part = rate_of(prices, "ml.c9.4xlarge", "us-east-1", 4, 0)
    assert part.per_million(25) == pytest.approx(2.0)  # a quarter of the price, a quarter of the speed
    assert part.note == (
        "this machine has 4 CPUs and is priced as 4/16 of an ml.c9.4xlarge: assumed that its speed is in proportion to "
        "its vCPUs"
    )
    assert rate_of(prices, "ml.g9.xlarge", "us-east-1", 4, 1).per_million(500) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("instance", "region", "machine", "message"),
    [
        ("ml.c9.5xlarge", "us-east-1", (16, 0), "unknown instance type 'ml.c9.5xlarge'; did you mean 'ml.c9.4xlarge'"),
        ("ml.c9.4xlarge", None, (16, 0), "depends on the region; give --region"),
        (
            "ml.c9.4xlarge",
            "eu-west-1",
            (16, 0),
            "no price of ml.c9.4xlarge in eu|no prices of region 'eu-w",
        ),
        ("ml.c9.4xlarge", "us-east-1", (16, 1), "has 0 accelerators and this machine 1 GPUs"),
        ("ml.g9.xlarge", "us-east-1", (8, 1), "with GPUs no price follows from a share"),
    ],
)
def test_a_price_that_is_not_known_is_not_made_up(prices, instance, region, machine, message):
    with pytest.raises(ConfigError, match=message):
        rate_of(prices, instance, region, *machine)


# --- the space ---


def test_the_usual_grid_of_two_cores_has_200_settings_and_more():
    machine = Machine(2, 0, ("eager", "compile", "onnx", "openvino"), ("default", "glibc"))
    space = space_of(Tune(), Inference(), machine)
    assert len(space.settings) == len(set(space.settings)) == 9 * 7 * 3 * 2
    assert all(one.streams * one.cores <= 2 for one in space.settings)
    assert space.left_out == {"bf16 needs eager or compile or openvino": 42, "int8 needs onnx or openvino": 84}


@given(st.integers(1, 200))
def test_stream_shapes_fit_the_cores(cores):
    shapes = stream_shapes(cores)
    assert len(set(shapes)) == len(shapes)
    assert all(streams * each <= cores for streams, each in shapes)
    assert {(1, cores), (cores, 1)} <= set(shapes)


def test_latency_has_the_batch_size_of_the_job():
    space = space_of(Tune(), Inference(objective="latency", batch_size=1), Machine(2))
    assert {one.batch_size for one in space.settings} == {1}


def test_on_a_gpu_its_tasks_are_tried_and_streams_are_not():
    machine = Machine(16, 1, ("eager", "compile", "onnx", "openvino"), ("default", "glibc"))
    space = space_of(Tune(), Inference(), machine)
    assert space.on_gpu
    assert {one.tasks_per_gpu for one in space.settings} == {1, 2, 4}
    assert {(one.backend, one.streams, one.allocator) for one in space.settings} == {
        *(("eager", 1, "default"), ("compile", 1, "default"))
    }
    assert not space_of(Tune(), Inference(device="cpu"), machine).on_gpu


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"streams": [[4, 1]]}, "streams of 4 x 1 cores are more than the 2 physical cores of this host"),
        ({"tasks_per_gpu": [2]}, "tasks_per_gpu needs a GPU"),
        ({"backends": ["openvino"]}, "openvino is not installed: pip install 'raytrain.openvino.'"),
        ({"allocators": ["jemalloc"]}, "the allocator jemalloc is not installed here"),
        ({"precisions": ["int8"]}, "int8 needs onnx or openvino"),
    ],
)
def test_what_cannot_be_is_left_out_with_its_reason(section, why):
    machine = Machine(2)
    with pytest.raises(ConfigError, match=f"no setting of `tune` can be tried here: .*{why}"):
        space_of(Tune.model_validate(section), Inference(), machine)


def test_the_rest_of_a_grid_is_tried():
    space = space_of(Tune.model_validate({"streams": [[1, 2], [4, 1]]}), Inference(), Machine(2))
    assert {(one.streams, one.cores) for one in space.settings} == {(1, 2)}
    assert space.left_out["streams of 4 x 1 cores are more than the 2 physical cores of this host"] == 28


def test_openvino_is_for_cpus():
    tree = {"backends": ["openvino", "eager"]}
    space = space_of(Tune.model_validate(tree), Inference(), Machine(2, 1, ("eager", "openvino")))
    assert any("openvino computes on CPUs alone" in why for why in space.left_out)


def test_a_gpu_that_is_not_there():
    with pytest.raises(ConfigError, match="this host has no GPU to tune on"):
        space_of(Tune(), Inference(device="gpu"), Machine(2))


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"streams": []}, "tune.streams must hold 1 or more values"),
        ({"backends": []}, "tune.backends must hold 1 or more values"),
        ({"batch_sizes": [0]}, "tune.batch_sizes.0 must be greater than 0"),
        ({"streams": [[1]]}, "'tune.streams.0.1' is missing"),
        ({"precisions": ["fp16"]}, "tune.precisions.0 must be 'fp32', 'bf16' or 'int8'"),
        ({"budget": 5}, "unknown key 'tune.budget'; did you mean 'budget_s'"),
    ],
)
def test_bad_sections_are_one_line(section, message):
    with pytest.raises(ConfigError, match=message):
        PredictionJob.from_dict({**JOB, "tune": section})


# --- the tuned file ---


def test_the_tuned_file_is_the_job_with_the_setting(tmp_path):
    setting = Setting("openvino", "int8", 16, 512, 4, 2, "glibc")
    path = tmp_path / "run" / "tuned.yaml"
    job = write_tuned(JOB, setting, False, "it was 2 × as fast", path)
    assert path.read_text().startswith("# chosen by raytrain tune: it was 2 × as fast\n")
    before = PredictionJob.from_dict(JOB)
    assert job == PredictionJob.from_yaml(path)
    assert (job.model, job.data, job.output) == (before.model, before.data, before.output)
    chosen = job.inference
    assert (chosen.backend, chosen.precision, chosen.batch_size, chosen.block.rows) == ("openvino", "int8", 16, 512)
    assert (chosen.streams.count, chosen.streams.cores, chosen.streams.allocator) == (4, 2, "glibc")
    assert chosen.device == "cpu" and chosen.block.bytes == before.inference.block.bytes
    assert "streams" not in with_setting({"name": "x"}, setting, True)["inference"] or (
        "count" not in with_setting({"name": "x"}, setting, True)["inference"]["streams"]
    )


def test_a_tuned_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="the tuned job file cannot be written to"):
        write_tuned(JOB, Setting(), False, "", tmp_path / "file" / "tuned.yaml")


def test_a_setting_in_words():
    assert said(Setting("onnx", "int8", 8, 256, 4, 1)) == "onnx int8, batches of 8, 4 x 1 cores"
    assert said(Setting("eager", "bf16", 8, allocator="jemalloc", tasks_per_gpu=4), True) == (
        "eager bf16, batches of 8, 4 a GPU, jemalloc"
    )
