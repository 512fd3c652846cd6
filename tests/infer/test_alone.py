"""Models alone on this machine, in real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT
from models_alone import Dies, Ends, Fails, Hangs, Misses, Model, Witness
from patience import patient

from raytrain.cluster.environment import child_environment
from raytrain.config.inference import Streams
from raytrain.errors import ConfigError, PredictionError
from raytrain.infer.contract import BackendOptions, ModelFile, StreamShape
from raytrain.infer.streams.allocators import environment
from raytrain.infer.streams.alone import Alone, in_common
from raytrain.infer.streams.nursery import Nursery
from raytrain.infer.streams.topology import from_ranges

FILE = ModelFile("module", b"")
BATCHES = [(torch.zeros(2, 4),), (torch.zeros(3, 4),)]
CPUS = sorted(os.sched_getaffinity(0))
ONE = StreamShape((CPUS[-1],), 1)


@pytest.fixture(scope="module")
def alone():
    with Alone() as alone:
        yield alone


def left() -> list[psutil.Process]:
    """Descendants of this process that this module's tests started."""
    return [each for each in psutil.Process().children(recursive=True) if "zygote" in " ".join(each.cmdline())]


def shapes() -> list[StreamShape]:
    return [StreamShape((cpu,), 1) for cpu in (CPUS[0], CPUS[-1])]


def test_what_all_streams_do_counts_while_all_run():
    """By hand: streams run from 1 to 4 and from 0 to 3, so from 1 to 3 together. Batches of 10 and 20 samples."""
    rates, latencies = in_common([[1.0, 2.0, 4.0], [0.0, 1.5, 3.0]], [10, 20])
    assert rates == [pytest.approx((10 + 20 / 2) / 2), pytest.approx((10 * 0.5 / 1.5 + 20) / 2)]
    assert latencies == [1.0, 1.5, 1.5]
    rates, latencies = in_common([[0.0, 1.0], [2.0, 4.0]], [8])
    assert (rates, latencies) == ([2.0, 2.0], [1.0, 2.0]), "never together"


@pytest.mark.process
def test_a_number_of_batches(alone):
    """Each stream's batches in turn: 2, 3, 2 samples. What one does while others run adds up to what is told."""
    timed = alone.measure(Model, FILE, BackendOptions(), BATCHES, shapes(), seconds=60, num_batches=3)
    assert timed.samples_per_s == pytest.approx(sum(timed.extra["streams"]))
    assert len(timed.extra["streams"]) == 2
    assert 2 <= len(timed.latencies_s) <= 6
    assert timed.wall_s < patient(60)
    one = alone.measure(Model, FILE, BackendOptions(), BATCHES, [ONE], seconds=60, num_batches=3)
    assert one.samples_per_s == pytest.approx(7 / sum(one.latencies_s))
    assert len(one.latencies_s) == 3


@pytest.mark.process
def test_for_some_time(alone):
    timed = alone.measure(Model, FILE, BackendOptions(), BATCHES, [ONE], seconds=0.05)
    assert sum(timed.latencies_s) > 0.04, "from when all were to start"
    assert timed.extra["said"] == []


@pytest.mark.process
@pytest.mark.parametrize("count", [1, 2])
def test_streams_have_their_cores(alone, tmp_path, count):
    """All threads of each process, torch's among them; threads as many as cores."""
    if len(CPUS) < 2:
        pytest.skip("this machine has one CPU")
    each = [StreamShape(tuple(CPUS[:2]), 2)] if count == 1 else shapes()
    file = ModelFile("module", b"", source=str(tmp_path))
    alone.measure(Witness, file, BackendOptions(threads=99), BATCHES, each, num_batches=1)
    seen = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(seen) == count
    allowed = [{from_ranges(text) for text in one["allowed"]} for one in seen]
    assert all(len(own) == 1 for own in allowed), "threads of a process differ"
    assert sorted(next(iter(own)) for own in allowed) == [shape.cpus for shape in each]
    assert {tuple(one["threads"]) for one in seen} == {(each[0].threads, 1, each[0].threads)}
    assert all(process == session for process, session in (one["session"] for one in seen))
    if count == 1:
        assert len(seen[0]["allowed"]) >= 2, "torch has computed in two threads"


@pytest.mark.process
@pytest.mark.parametrize("allocator", ["jemalloc", "tcmalloc"])
def test_an_allocator_is_in_the_process(alone, tmp_path, allocator):
    streams = Streams(allocator=allocator)
    try:
        library = environment(streams, 1, os.environ)["LD_PRELOAD"].split(":")[0]
    except ConfigError as error:
        pytest.skip(str(error))
    file = ModelFile("module", b"", source=str(tmp_path))
    alone.measure(Witness, file, BackendOptions(), BATCHES, [ONE], streams, num_batches=1)
    (seen,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert str(Path(library).resolve()) in seen["maps"]


@pytest.mark.process
def test_a_library_that_cannot_be_preloaded(alone, tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libjemalloc.so").write_text("not a library")
    monkeypatch.setenv("CONDA_PREFIX", str(tmp_path))
    with pytest.raises(ConfigError, match=r"libjemalloc.so could not be preloaded; is it a library of this"):
        alone.measure(Model, FILE, BackendOptions(), BATCHES, [ONE], Streams(allocator="jemalloc"))


@pytest.mark.process
@pytest.mark.parametrize(
    ("model", "kind", "message"),
    [
        (Fails, PredictionError, "stream 1 of 1 failed: ValueError: no such layer"),
        (Misses, ConfigError, "this model takes two inputs"),
        (Ends, PredictionError, "stream 1 of 1 ended with exit status 3"),
    ],
)
def test_a_stream_fails(alone, model, kind, message):
    """In one line; and the next setting is measured as if nothing had been."""
    with pytest.raises(kind) as told:
        alone.measure(model, FILE, BackendOptions(), BATCHES, [ONE])
    assert str(told.value) == message
    assert alone.measure(Model, FILE, BackendOptions(), BATCHES, [ONE], num_batches=1).samples_per_s > 0


@pytest.mark.process
def test_a_stream_dies_beside_others(alone):
    if len(CPUS) < 2:
        pytest.skip("this machine has one CPU")
    with pytest.raises(PredictionError) as told:
        file = ModelFile("module", b"", source=str(CPUS[-1]))
        alone.measure(Dies, file, BackendOptions(), BATCHES, shapes(), seconds=60)
    assert str(told.value) == (
        "stream 2 of 2 was ended by SIGKILL, as Linux does where memory is short; it wrote: out of luck"
    )
    assert all(not each.children() for each in left())


@pytest.mark.process
def test_a_stream_hangs(alone):
    with pytest.raises(PredictionError, match="stream 1 of 1 did not load and warm up in time: a batch, or loading"):
        alone.measure(Hangs, FILE, BackendOptions(), BATCHES, [ONE], timeout_s=0.5)
    assert all(not each.children() for each in left())


@pytest.mark.process
def test_the_process_that_forks_dies(alone):
    """One line, and the next setting has another."""
    (zygote,) = left()
    zygote.kill()
    zygote.wait(patient(10))
    assert alone.measure(Model, FILE, BackendOptions(), BATCHES, [ONE], num_batches=1).samples_per_s > 0


@pytest.mark.process
def test_the_process_that_forks_does_not_start(tmp_path):
    with pytest.raises(PredictionError) as told:
        Nursery(child_environment({}), ["no_such_module"], tmp_path / "log")
    assert str(told.value) == (
        "a process for streams did not start: ModuleNotFoundError: No module named 'no_such_module'"
    )
    assert "no_such_module" not in str([each.cmdline() for each in left()])


SCRIPT = """
import sys, torch
from raytrain.infer.contract import BackendOptions, ModelFile, Outputs, StreamShape
from raytrain.infer.streams.alone import Alone
import os
print("once", flush=True)
def load(file, options):
    def model(x):
        if {hangs}:
            print("born", os.getpid(), os.getppid(), file=sys.__stderr__, flush=True)
            open({path!r}, "w").write(f"{{os.getpid()}} {{os.getppid()}}")
            import time; time.sleep(1000)
        return Outputs(x)
    return model
alone = Alone()
timed = alone.measure(load, ModelFile("module", b""), BackendOptions(), [(torch.zeros(2, 2),)],
                      [StreamShape((min(os.sched_getaffinity(0)),), 1)], num_batches=2)
print(len(timed.latencies_s))
alone.close()
"""


@pytest.mark.process
def test_a_script_without_a_guard(tmp_path):
    """It is not imported a second time, though the model is loaded by a function of its own."""
    (tmp_path / "script.py").write_text(SCRIPT.format(hangs=False, path=""))
    ended = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=patient(100),
    )
    assert (ended.returncode, ended.stdout) == (0, "once\n2\n"), ended.stderr


@pytest.mark.process
def test_nothing_outlives_a_script_that_is_killed(tmp_path):
    path = tmp_path / "born"
    (tmp_path / "script.py").write_text(SCRIPT.format(hangs=True, path=str(path)))
    with subprocess.Popen(
        [sys.executable, "script.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=-3, stderr=-3
    ) as script:
        deadline = time.monotonic() + patient(60)
        while not (path.exists() and len(path.read_text().split()) == 2):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        born = [psutil.Process(int(number)) for number in path.read_text().split()]
        script.kill()
    _, alive = psutil.wait_procs(born, timeout=patient(10))
    assert alive == []
