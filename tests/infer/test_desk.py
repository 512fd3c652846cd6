"""The desk against a small model: whatever dies, every sample is accounted for once, and nobody has too much."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytrain.infer.blocks import Block, Shard, blocks_of
from raytrain.infer.desk import ALONE_TRIES, Desk, Piece, Work


def blocks(*sizes: int, shard_of: int = 2) -> list[Block]:
    """Of so many samples each, a few a shard."""
    ends = np.cumsum([0, *sizes]).tolist()
    return [Block(number, number // shard_of, range(ends[number], ends[number + 1])) for number in range(len(sizes))]


class Cluster:
    """What Ray would do: tasks and streams that end in any order, and die as they are told.

    Args:
        fatal_to_tasks, fatal_to_streams: ids that kill the process that has them.
        size_of: the size class of an id.
    """

    def __init__(self, desk: Desk, made: list[Block], fatal_to_tasks=(), fatal_to_streams=(), size_of=lambda index: 0):
        self.desk, self.blocks, self.size_of = desk, made, size_of
        self.fatal_to_tasks, self.fatal_to_streams = set(fatal_to_tasks), set(fatal_to_streams)
        self.preparing: list[Work] = []
        self.has: dict[int, list[Piece]] = {}
        self.takes: dict[int, set[int]] = {}
        self.answered: dict[Piece, list[int]] = {}
        self.errors: set[int] = set()
        self.complete: list[int] = []
        self.dead = 0

    def ids(self, work: Work) -> list[int]:
        own = list(self.blocks[work.block].ids)
        return own[work.place : work.place + 1] if work.is_alone else own

    def open(self, number: int, takes) -> None:
        self.desk.stream_is_there(number, takes)
        self.has[number], self.takes[number] = [], set(takes)

    def hand_out(self) -> None:
        self.preparing += self.desk.to_prepare()
        for number, piece in self.desk.to_predict():
            assert piece.size in self.takes[number]
            self.has[number].append(piece)
        self.complete += self.desk.shards_complete()
        assert len(self.preparing) <= 3
        for pieces in self.has.values():
            assert len(pieces) <= 2
            assert len(pieces) == 1 or not any(piece.work.is_alone for piece in pieces), "it would share the blame"

    def verdicts(self, found) -> None:
        for work, verdict in found:
            if verdict == "apart":
                self.answered = {p: ids for p, ids in self.answered.items() if p.work != work}
            elif verdict == "given up":
                self.errors |= set(self.ids(work))

    def end_task(self, at: int, *, node_died: bool = False) -> None:
        work = self.preparing.pop(at)
        ids = self.ids(work)
        if node_died or self.fatal_to_tasks & set(ids):
            self.dead += 1
            verdict = self.desk.not_prepared(work)
            self.verdicts([(work, verdict)] if verdict else [])
        else:
            self.desk.prepared(work, {self.size_of(index) for index in ids})

    def end_piece(self, number: int, *, lost: bool = False) -> None:
        piece = self.has[number][0]
        ids = [index for index in self.ids(piece.work) if self.size_of(index) == piece.size]
        if self.fatal_to_streams & set(ids):
            self.kill(number)
        elif lost:
            self.dead += 1
            del self.has[number][0]
            verdict = self.desk.not_predicted(piece)
            self.verdicts([(piece.work, verdict)] if verdict else [])
        else:
            del self.has[number][0]
            if self.desk.predicted(piece):
                assert piece not in self.answered, "predicted twice"
                self.answered[piece] = ids

    def kill(self, number: int) -> None:
        self.dead += 1
        del self.has[number]
        self.verdicts(self.desk.stream_is_gone(number))
        self.open(number, self.takes[number])

    def accounted(self) -> Counter[int]:
        return Counter([index for ids in self.answered.values() for index in ids] + sorted(self.errors))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_every_sample_is_accounted_for_once_whatever_dies(data):
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    made, total = blocks(*sizes), sum(sizes)
    some = st.sets(st.integers(0, total - 1), max_size=2)
    by_task, by_stream = data.draw(some), data.draw(some)
    classes = data.draw(st.integers(1, 2))
    desk = Desk(made, slots=2, queued=1, in_flight=2, max_failures=data.draw(st.integers(0, 2)))
    cluster = Cluster(desk, made, by_task, by_stream, lambda index: index % classes)
    cluster.open(0, range(classes))
    cluster.open(1, [classes - 1])
    unlucky = accidents = data.draw(st.integers(0, 3))
    for _ in range(3000):
        if desk.is_done:
            break
        cluster.hand_out()
        able = [("task", at) for at in range(len(cluster.preparing))]
        able += [("piece", number) for number, pieces in cluster.has.items() if pieces]
        what, at = data.draw(st.sampled_from(able))
        accident = accidents > 0 and data.draw(st.booleans())
        accidents -= accident
        if what == "task":
            cluster.end_task(at, node_died=accident)
        elif accident and data.draw(st.booleans()):
            cluster.kill(at)
        else:
            cluster.end_piece(at, lost=accident)
    cluster.complete += desk.shards_complete()
    assert desk.is_done
    assert cluster.accounted() == Counter(range(total))
    if not unlucky:
        assert by_task | by_stream == cluster.errors, "nobody else pays for them"
    assert by_task | by_stream <= cluster.errors
    assert sorted(cluster.complete) == sorted({block.shard for block in made})


def test_a_sample_that_kills_its_worker_is_singled_out():
    made = blocks(4, 4)
    desk = Desk(made, slots=1, queued=1, in_flight=2, max_failures=1)
    cluster = Cluster(desk, made, fatal_to_streams={5})
    cluster.open(0, [0])
    while not desk.is_done:
        cluster.hand_out()
        if cluster.preparing:
            cluster.end_task(0)
        else:
            cluster.end_piece(0)
    assert cluster.errors == {5}
    assert cluster.dead <= 2 + ALONE_TRIES
    assert cluster.accounted() == Counter(range(8))


def test_no_more_is_prepared_than_streams_will_soon_take():
    desk = Desk(blocks(*[1] * 50), slots=3, queued=9, in_flight=2, max_failures=0)
    assert len(desk.to_prepare()) == 3 + 2, "of a stream that is to come"
    assert desk.to_prepare() == []
    desk.stream_is_there(0, [0])
    desk.stream_is_there(1, [0])
    assert len(desk.to_prepare()) == 2
    for number in range(7):
        desk.prepared(Work(number), [0])
    assert len(desk.to_prepare()) == 0, "as much lies ready as streams will take"
    assert [(stream, piece.work.block) for stream, piece in desk.to_predict()] == [(0, 0), (1, 1), (0, 2), (1, 3)]
    assert len(desk.to_prepare()) == 4, "for those that were handed out"


def test_a_piece_goes_to_the_least_loaded_stream_that_takes_its_class():
    desk = Desk(blocks(2, 2, 2), slots=3, queued=9, in_flight=2, max_failures=0)
    desk.stream_is_there(0, [0])
    desk.stream_is_there(1, [0, 1])
    desk.to_prepare()
    for number in range(3):
        desk.prepared(Work(number), [0, 1])
    given_out = desk.to_predict()
    assert given_out[:2] == [(0, Piece(Work(0), 0)), (1, Piece(Work(0), 1))]


def test_what_is_predicted_is_not_predicted_again_when_the_rest_of_its_block_is():
    desk = Desk(blocks(2), slots=1, queued=1, in_flight=2, max_failures=3)
    desk.stream_is_there(0, [0, 1])
    [work] = desk.to_prepare()
    desk.prepared(work, [0, 1])
    (_, first), (_, second) = desk.to_predict()
    assert desk.predicted(first)
    assert desk.not_predicted(second) == "again"
    assert desk.to_prepare() == [work]
    assert desk.prepared(work, [0, 1]) == {1}, "and the first need not be kept"
    assert desk.to_predict() == [(0, second)]
    assert not desk.is_done and desk.predicted(second) and desk.is_done


def test_an_answer_that_comes_when_its_block_is_taken_apart_is_not_wanted():
    desk = Desk(blocks(2), slots=1, queued=1, in_flight=2, max_failures=0)
    desk.stream_is_there(0, [0, 1])
    [work] = desk.to_prepare()
    desk.prepared(work, [0, 1])
    (_, first), (_, second) = desk.to_predict()
    assert desk.not_predicted(second) == "apart"
    assert not desk.predicted(first)
    assert desk.to_prepare() == [Work(0, 0), Work(0, 1)]


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_blocks_are_whole_shards_cut_into_ids_that_follow_each_other(rows):
    shards = [Shard(2, 10, 17), Shard(3, 17, 20)]
    made = blocks_of(shards, [rows])
    assert [index for block in made for index in block.ids] == list(range(10, 20))
    assert all(len(block) <= rows for block in made)
    assert [block.number for block in made] == list(range(len(made)))


def test_blocks_of_known_classes_have_one_class_each():
    classes = np.array([0, 1, 0, 0, 1, 0])
    made = blocks_of([Shard(0, 0, 6)], [2, 8], classes)
    assert [list(block.ids) for block in made] == [[0, 2], [3, 5], [1, 4]]


def test_what_is_prepared_once_more_when_its_block_is_taken_apart_is_not_wanted():
    """Else what failed in it would be told by the block and by the samples themselves."""
    desk = Desk(blocks(2), slots=1, queued=1, in_flight=2, max_failures=1)
    desk.stream_is_there(0, [0])
    desk.stream_is_there(1, [1])
    [work] = desk.to_prepare()
    assert desk.prepared(work, [0, 1]) == {0, 1}
    assert len(desk.to_predict()) == 2
    assert desk.stream_is_gone(0) == [(work, "again")]
    assert desk.to_prepare() == [work]
    assert desk.stream_is_gone(1) == [(work, "apart")]
    assert desk.prepared(work, [0, 1]) is None
    assert desk.to_prepare() == [Work(0, 0), Work(0, 1)]


def test_a_sample_by_itself_has_a_second_try():
    desk = Desk(blocks(2), slots=1, queued=1, in_flight=2, max_failures=0)
    [work] = desk.to_prepare()
    assert desk.not_prepared(work) == "apart"
    first, second = desk.to_prepare()
    assert desk.not_prepared(first) == "again", "it may have been the host's end"
    assert desk.to_prepare() == [first]
    assert desk.not_prepared(first) == "given up"
    assert not desk.is_done and second == Work(0, 1)


def test_a_stream_is_kept_free_for_a_sample_by_itself():
    desk = Desk(blocks(1, 1, 1, 1), slots=9, queued=0, in_flight=2, max_failures=0)
    desk.stream_is_there(0, [0])
    for work in desk.to_prepare():
        if work.block:
            desk.prepared(work, [0])
        else:
            assert desk.not_prepared(work) == "apart"
    assert [piece.work.block for _, piece in desk.to_predict()] == [1, 2]
    [alone] = desk.to_prepare()
    desk.prepared(alone, [0])
    desk.predicted(Piece(Work(1)))
    assert desk.to_predict() == [], "though the stream could have a second piece"
    desk.predicted(Piece(Work(2)))
    assert desk.to_predict() == [(0, Piece(alone))], "and nothing beside it"


def test_what_lies_ready_of_lost_work_is_not_handed_out():
    desk = Desk(blocks(2), slots=1, queued=1, in_flight=1, max_failures=3)
    desk.stream_is_there(0, [0, 1])
    [work] = desk.to_prepare()
    desk.prepared(work, [0, 1])
    [(_, first)] = desk.to_predict()
    assert desk.not_predicted(first) == "again"
    assert desk.to_predict() == []
