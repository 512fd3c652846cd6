"""What has come of samples so far, and whether a stage has used their memory again.

Imported by every preprocessing worker: NumPy and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from raytrain.data.samples.fields import Sample
from raytrain.record.status import Failure


@dataclass
class Made:
    """What has come of a batch's samples so far."""

    samples: list[Sample] = field(default_factory=list)
    places: list[int] = field(default_factory=list)  # within the batch
    parts: list[int] = field(default_factory=list)  # of a sample that a stage has made several of
    failures: list[Failure] = field(default_factory=list)
    unwanted: list[int] = field(default_factory=list)  # places of those that a stage did not want
    owners: set[int] = field(default_factory=set)  # id() of the arrays whose memory the samples are in
    addresses: set[int] | None = None  # where they begin; None as long as all have memory of their own


def copied(sample: Sample) -> Sample:
    return {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in sample.items()}


def overlaps(sample: Sample, made: Made) -> bool:
    """Whether a stage has returned the same memory again: where an array of an earlier sample begins, or some of the
    first's or the last's. To ask NumPy where an array lies takes longer than to see that it is its own."""
    for name, value in sample.items():
        if isinstance(value, np.ndarray) and value.size:
            owner = value
            while type(owner.base) is np.ndarray:
                owner = owner.base
            if owner.base is None and id(owner) not in made.owners:  # memory of its own, which lives with the sample
                made.owners.add(id(owner))
                if made.addresses is not None:
                    made.addresses.add(_address(value))
                continue
            if made.addresses is None:
                arrays = (each for earlier in made.samples for each in earlier.values())
                made.addresses = {_address(each) for each in arrays if isinstance(each, np.ndarray)}
            if _address(value) in made.addresses:
                return True
            made.addresses.add(_address(value))
            for earlier in (*made.samples[:1], *made.samples[-1:]):
                before = earlier.get(name)
                if isinstance(before, np.ndarray) and np.may_share_memory(value, before):
                    return True
    return False


def _address(array: np.ndarray) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
