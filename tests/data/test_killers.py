"""Samples that kill the worker which prepares them, or keep it for ever, over a real Ray cluster of two nodes."""

from __future__ import annotations

import ctypes
import os
import signal
import time

import cv2
import numpy as np
import pytest
from conftest import write_images
from feeding import make_feed
from patience import patient

from raytrain.data.order import Position
from raytrain.data.samples.block import batches_of
from raytrain.data.stages.stage import stage
from raytrain.ray_internals.tries import earlier_tries

BOTH_WAYS = pytest.mark.parametrize("public_ray", [False, True], ids=["private", "public"])
CRASHES, HANGS = 13, 47  # ids


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """80 images of 16 x 16, and among them one of 17 x 17 and one of 18 x 18."""
    found = write_images(tmp_path_factory.mktemp("killers") / "images", {"cat": 50, "dog": 30})
    for side, number in ((17, CRASHES), (18, HANGS)):
        path = found / "cat" / f"{number:03d}.jpg"
        path.write_bytes(cv2.imencode(".jpg", np.zeros((side, side, 3), np.uint8))[1].tobytes())
    return found


def account(batches, segment):
    """Ids of a segment's samples, and of those left out."""
    own = [batch for batch in batches if batch.header.segment == segment]
    return sorted(np.concatenate([b.key for b in own])), sorted(key for b in own for key in b.header.left_out)


def take_whole(feed, attempt="a"):
    """All batches; the feed is told at once of what was left out, as by ranks."""
    import ray

    batches, end = [], False
    while not end:
        taken = feed.take(attempt, 0, 1)
        assert taken.error is None, taken.error
        for *_, (block, index) in taken.batches:
            batches.append(batches_of(ray.get(block))[index])
            if batches[-1].header.failures:
                feed.failures("train", batches[-1].header.failures)
        end = taken.end
    return batches


def note(path):
    """Returns how often that was."""
    with open(path, "ab") as file:
        file.write(b".")
        return file.tell()


def picky(image, deaths):
    if image.shape[0] == 17:
        note(deaths)
        ctypes.string_at(0)
    if image.shape[0] == 18:
        note(deaths)
        time.sleep(1e6)
    return image


@BOTH_WAYS
def test_samples_that_kill_their_worker_and_that_keep_it_are_left_out(two_nodes, public_ray, folder, tmp_path):
    deaths, limit_s = tmp_path / "deaths", patient(1)
    feed = make_feed(
        two_nodes,
        folder,
        [stage(picky, deaths=str(deaths))],
        max_corrupt=2,
        epochs=20,
        public_ray=public_ray,
        stage_timeout_s=limit_s,
    )
    feed.begin("a", Position(), 1, 0)
    batches = take_whole(feed)
    bad = [CRASHES, HANGS]
    good = [number for number in range(80) if number not in bad]
    assert [account(batches, epoch) for epoch in range(20)] == 20 * [(good, bad)]
    found = sorted((failure for _, failure in feed.status().failures), key=lambda each: each.id)
    where = [f"{folder}/cat/{number:03d}.jpg" for number in bad]
    reasons = ["its worker died in `picky` (SIGSEGV)", f"`picky` took longer than {limit_s:g} s"]
    assert [(each.id, each.where, each.reason) for each in found] == list(zip(bad, where, reasons, strict=True))
    assert all(each.stage == "picky" and each.killed for each in found)
    told = [f"{each}: {reason}; left out" for each, reason in zip(where, reasons, strict=True)]
    assert sorted(feed.status().warnings) == sorted(told)
    died = deaths.stat().st_size
    assert died <= 30, (
        "four times the one and twice the other, and as often where another task had begun to, not 20 times"
    )
    feed.begin("b", Position(), 1, 0)
    assert account(take_whole(feed, "b"), 0) == (good, bad)
    assert deaths.stat().st_size == died, "after a restart nothing is tried again"


def killed_now_and_then(image, calls, kills):
    if note(calls) % 23 == 0 and os.path.getsize(kills) < 10:
        note(kills)
        os.kill(os.getpid(), signal.SIGKILL)
    return image


def test_workers_that_are_killed_ten_times_lose_no_sample(two_nodes, pets, tmp_path):
    (tmp_path / "kills").touch()
    files = {name: str(tmp_path / name) for name in ("calls", "kills")}
    feed = make_feed(two_nodes, pets, [stage(killed_now_and_then, **files)], epochs=4)
    feed.begin("a", Position(), 1, 0)
    batches = take_whole(feed)
    assert [account(batches, epoch) for epoch in range(4)] == 4 * [(list(range(80)), [])]
    assert os.path.getsize(tmp_path / "kills") == 10
    assert feed.status().failures == []


@BOTH_WAYS
def test_a_task_knows_that_its_worker_has_died(two_nodes, public_ray, tmp_path):
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def dies_twice(name):
        with earlier_tries(name, public_ray) as earlier:
            if earlier < 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return earlier

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote = ray.remote(dies_twice).options(max_retries=-1, scheduling_strategy=here)
    assert ray.get(remote.remote(f"{tmp_path.name}-{public_ray}")) == 2
