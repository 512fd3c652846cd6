"""Which part of a prediction limits, by hand."""

from __future__ import annotations

import pytest

from raytrain.cluster.topology import Host
from raytrain.errors import ClusterError, PredictionError
from raytrain.infer.contract import StreamShape
from raytrain.infer.outcome import verdict
from raytrain.infer.progress import StreamSeen, check_streams
from raytrain.infer.streams.places import StreamPlace
from raytrain.record.inference import InferenceStage

STAGES = [
    InferenceStage(name="read", num_samples=100, cpu_s=1.0, wall_s=1.0),
    InferenceStage(name="decode", num_samples=100, cpu_s=3.0, wall_s=3.0),
]


@pytest.mark.parametrize(
    ("model", "prepare", "together", "busy", "limits", "said"),
    [
        (100.0, 300.0, 95.0, 0.8, "model", "more streams or GPUs"),
        (300.0, 100.0, 95.0, 0.3, "prepare", "`decode` takes 75% of it: more CPUs"),
        (100.0, 100.0, 60.0, 0.6, "neither", "more blocks in flight"),
        (100.0, 300.0, 60.0, 0.95, "model", "the model limits (at 60% of its rate alone: cores or memory are shared"),
        (100.0, 300.0, 80.0, 0.95, "model", "the model limits: more streams or GPUs"),
        (None, 100.0, 60.0, 0.5, "unknown", "too little to predict"),
    ],
)
def test_the_slower_part_limits_where_both_together_come_near_it(model, prepare, together, busy, limits, said):
    found, text = verdict(model, prepare, together, busy, STAGES)
    assert found == limits and said in text


def test_a_run_ends_when_no_stream_is_left_for_a_class():
    places = [StreamPlace(Host("gpu-1", "gpu", 2, 1), StreamShape((), 1), takes, "cuda") for takes in ((0,), (0, 1))]
    streams = [StreamSeen(place, actor=object()) for place in places]
    check_streams(streams, 2)
    streams[1].actor = None
    check_streams(streams, 1)
    with pytest.raises(ClusterError, match="no host is left that predicts; run it again to go on"):
        check_streams(streams, 2)
    streams[1].tries, streams[1].why = 3, RuntimeError("killed")
    with pytest.raises(
        PredictionError, match="a stream on gpu-1 has died 3 times before it was ready: RuntimeError: ki"
    ):
        check_streams(streams, 2)
