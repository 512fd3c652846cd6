"""Which sample kills the worker that prepares it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

ALONE_TRIES = 2  # in a row that a sample by itself kills its worker; one may have been the host's fault
BISECT_AFTER = 2  # rounds in which what the worker was at when it died did not die by itself
MOST_IN_VAIN = 10  # rounds after which nothing was found

T = TypeVar("T")


@dataclass(frozen=True)
class Died:
    """A worker that died.

    Attributes:
        of: in a word or two.
        sample: id of the one it was at; None where it was at none, or at many.
        stage: that it was at, or `read`; None at neither.
        hung: it was ended for having been there too long.
    """

    of: str
    sample: int | None = None
    stage: str | None = None
    hung: bool = False


class InVain(Exception):
    """Workers go on dying, and no sample is to blame. The argument is the last death."""


def without_culprits(
    whole: Callable[[], T | Died],
    some: Callable[[Sequence[int]], Died | None],
    ids: Sequence[int],
    leave_out: Callable[[int, Died], None],
    pause: Callable[[int], None] = lambda round_: None,
) -> T:
    """What `whole` makes of samples `ids`, those left out that kill the worker.

    With k of n samples that do, and deaths that say what they died at, there are at most 1 + 3k tries; with deaths that
    do not, 1 + k + k (2 ⌈log2 n⌉ + 2) more.

    Args:
        whole: tries all of them but those left out.
        some: tries a few, for how they die alone.
        leave_out: called with each that is singled out.
        pause: called before another round where nothing was found, with how many there were.

    Raises:
        InVain: too many rounds with nothing found.
    """
    out: set[int] = set()
    in_vain = 0
    while True:
        made = whole()
        if not isinstance(made, Died):
            return made
        left = [each for each in dict.fromkeys(ids) if each not in out]
        if made.sample is not None and made.sample not in out and in_vain != BISECT_AFTER:
            found = _alone(made, some)
        else:
            found = _bisected(left, some)
        for sample, death in found.items():
            leave_out(sample, death)
        out |= found.keys()
        in_vain = 0 if found else in_vain + 1
        if in_vain == MOST_IN_VAIN:
            raise InVain(made)
        if in_vain:
            pause(in_vain)


def _alone(death: Died, some: Callable[[Sequence[int]], Died | None], tries: int = ALONE_TRIES) -> dict[int, Died]:
    assert death.sample is not None
    for _ in range(0 if death.hung else tries):
        again = some([death.sample])
        if again is None:
            return {}
    return {death.sample: death}


def _bisected(ids: Sequence[int], some: Callable[[Sequence[int]], Died | None]) -> dict[int, Died]:
    death = some(ids) if ids else None
    if death is None:
        return {}
    if len(ids) == 1:
        return _alone(Died(death.of, ids[0], death.stage, death.hung), some, ALONE_TRIES - 1)
    half = len(ids) // 2
    return {**_bisected(ids[:half], some), **_bisected(ids[half:], some)}
