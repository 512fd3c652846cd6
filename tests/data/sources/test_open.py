"""What every source may say: a limit, weights, and a part that is held out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raytrain.config.data import HeldOut
from raytrain.data.sources.kinds.parquet import parquet
from raytrain.data.sources.kinds.synthetic import synthetic
from raytrain.data.sources.open import open_manifest, open_split
from raytrain.errors import ConfigError, DataError

WEIGHTS = [1.0, 0.0, 2.5, 4.0, 0.5, 2.0]


@pytest.fixture
def path(tmp_path):
    table = pa.table({"x": list(range(6)), "weight": WEIGHTS, "wight": ["a"] * 6})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    return tmp_path / "x.parquet"


def values(manifest):
    return [int(sample["x"]) for sample in manifest.read_many(range(manifest.num_samples))]


def test_a_limit_takes_the_first(path):
    assert values(open_manifest(parquet(path, limit=3))) == [0, 1, 2]
    assert values(open_manifest(parquet(path, limit=99))) == [0, 1, 2, 3, 4, 5]
    assert open_manifest(parquet(path, limit=3)).groups.starts.tolist() == [0, 2]


@pytest.mark.parametrize("seed", range(8))
def test_a_sample_comes_as_often_as_its_weight_says(path, seed):
    """6 draws over a sum of 10: 0.6, 0, 1.5, 2.4, 0.3 and 1.2, rounded up or down."""
    drawn = values(open_manifest(parquet(path, weights="weight"), seed=seed))
    assert drawn == sorted(drawn)
    counts = np.bincount(drawn, minlength=6)
    shares = np.array([0.6, 0, 1.5, 2.4, 0.3, 1.2])
    assert counts.sum() == 6
    assert ((counts == np.floor(shares)) | (counts == np.ceil(shares))).all()


def test_weights_are_kept_on_average(path):
    counts = np.mean(
        [np.bincount(values(open_manifest(parquet(path, weights="weight"), seed=s)), minlength=6) for s in range(100)],
        axis=0,
    )
    np.testing.assert_allclose(counts, [0.6, 0, 1.5, 2.4, 0.3, 1.2], atol=0.2)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([0.0] * 6, "weights: 'weight' must be finite numbers from 0, not all of them 0"),
        ([-1.0] + [1.0] * 5, "must be finite numbers from 0"),
        ([float("nan")] + [1.0] * 5, "must be finite numbers from 0"),
        ([None] + [1.0] * 5, "must be finite numbers from 0"),
        (["a"] * 6, "weights: 'weight' is no number that is known before samples are read"),
    ],
)
def test_weights_that_are_none_are_told(tmp_path, bad, message):
    pq.write_table(pa.table({"x": list(range(6)), "weight": bad}), tmp_path / "x.parquet")
    with pytest.raises(DataError) as caught:
        open_manifest(parquet(tmp_path / "x.parquet", weights="weight"))
    assert message in str(caught.value)


@pytest.mark.parametrize("weights", [None, "weight"])
def test_what_is_held_out_is_not_trained_on(path, weights):
    """Weights make a sample come twice; it is then still on one side alone."""
    source = parquet(path, weights=weights)
    for seed in range(5):
        train, validation = open_split(source, HeldOut(kind="held_out", share=0.5, seed=seed))
        assert not {*values(train)} & {*values(validation)}
        assert weights is None or 1 not in values(train), "its weight is 0"
        if weights is None:
            assert sorted(values(train) + values(validation)) == list(range(6))
        assert values(validation) == sorted({*values(validation)})
        again = open_split(source, HeldOut(kind="held_out", share=0.5, seed=seed))
        assert [part.fingerprint for part in again] == [train.fingerprint, validation.fingerprint]
    drawn = {tuple(values(open_split(source, HeldOut(kind="held_out", share=0.5, seed=s))[1])) for s in range(8)}
    assert len(drawn) > 3


def test_both_splits_need_a_sample():
    with pytest.raises(ConfigError, match="data.validation: 0.01 of 6 samples is 0; both splits need one"):
        open_split(synthetic(6), HeldOut(kind="held_out", share=0.01))
