"""What is seen of a run: nothing is lost with a feed."""

from __future__ import annotations

from raytrain.record.status import Failure, Status
from raytrain.run.course import Course
from raytrain.run.load import Samplers


def test_what_a_lost_feed_had_told_stays(tmp_path):
    told = []
    course = Course(tmp_path, Samplers([]), told.append)
    one, two, three = (Failure(number, f"{number}.jpg", "broken") for number in (1, 2, 3))
    first = Status(feed="a", attempts=1, failures=[("train", one), ("validation", one)], warnings=["slow"])
    course.note(first)
    course.note(Status(feed="a", attempts=2, failures=first.failures, warnings=["slow", "lost"]))
    course.note(Status(feed="b", attempts=0))
    course.note(Status(feed="b", attempts=1, failures=[("train", two), ("train", one)], warnings=["slow"]))
    course.note(Status(feed="c", attempts=1, failures=[("train", three)]))
    statuses = [each for each in told if isinstance(each, Status)]
    assert [each.attempts for each in statuses] == [1, 2, 2, 3, 4]
    assert [[(split, failure.id) for split, failure in each.failures] for each in statuses[-2:]] == [
        [("train", 1), ("validation", 1), ("train", 2)],
        [("train", 1), ("validation", 1), ("train", 2), ("train", 3)],
    ]
    assert [each for each in told if isinstance(each, str)] == [
        "slow",
        "lost",
        "the ranks have begun anew from the last checkpoint (attempt 2)",
        "slow",
        "the ranks have begun anew from the last checkpoint (attempt 3)",
        "the ranks have begun anew from the last checkpoint (attempt 4)",
    ]
    assert statuses[-1].warnings == [each for each in told if isinstance(each, str)]
