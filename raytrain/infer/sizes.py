"""Size classes: which one a sample goes to, and how it is padded there.

Imported by every preprocessing worker: NumPy and nothing else.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from raytrain.data.samples.collate import Collation, Encoded, Pad
from raytrain.data.samples.fields import Sample


@dataclass(frozen=True)
class Sizes:
    """Without `by` there is one class, which every sample is of.

    Attributes:
        batch_sizes: samples that the model is given at once, by class.
        by: field whose length is meant: along its first axis, or the longer side of an image.
        upto: lengths, by class, ascending.
        is_image: of `by`.
        most: what is longer along the first axis is cut off there when it is padded.
    """

    batch_sizes: tuple[int, ...]
    by: str = ""
    upto: tuple[int, ...] = ()
    is_image: bool = False
    most: int | None = None

    def __len__(self) -> int:
        return len(self.batch_sizes)

    @property
    def longest(self) -> int:
        return self.upto[-1]

    def length(self, sample: Sample) -> int:
        """Of a sample behind the stages, padded."""
        first, *others = np.shape(sample[self.by])
        first = first if self.most is None else min(first, self.most)
        return int(max(first, others[0])) if self.is_image else int(first)

    def of_length(self, length: int) -> int | None:
        """The class for it; None where it is longer than the last."""
        number = bisect_left(self.upto, length)
        return number if number < len(self.upto) else None

    def of(self, sample: Sample) -> int | None:
        """Likewise."""
        return self.of_length(self.length(sample)) if self.by else 0

    def collations(self, number: int, given: Mapping[str, Collation | Encoded]) -> Mapping[str, Collation | Encoded]:
        """With every field that is padded filled up to the class's length."""
        if not self.by:
            return given
        upto = self.upto[number]
        filled = {n: replace(rule, multiple_of=upto) for n, rule in given.items() if isinstance(rule, Pad)}
        return {**given, **filled}
