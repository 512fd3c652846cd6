"""Writes checkpoints beside the training, one at a time: a step waits for the copy of the state to host memory."""

from __future__ import annotations

import copy
import hashlib
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raytrain.errors import CheckpointError
from raytrain.train.checkpoints import checkpoint, shelf
from raytrain.train.checkpoints.host_copy import HostCopy

PIECE_BYTES = 16 << 20
ON_THEIR_WAY = 2
WAITS_S = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0)  # between tries: what is back after a minute is waited for

Ask = Callable[..., Callable[[], "str | None"]]
"""Calls a method of the keeper, by name, with its arguments, which are its own to change again afterwards; what is
returned waits for the answer: why the keeper could not do it, or None."""


class Writer:
    """Hands checkpoints to the keeper, piece by piece, on a thread of its own.

    A store that fails is tried again, and training goes on meanwhile; what a newer checkpoint takes the place of is
    given up. Beside the training's own memory there is one copy of the state, in that of this process, kept for the
    next one, and `1 + ON_THEIR_WAY` pieces of `PIECE_BYTES`.

    Args:
        warn: called with what the user should know at once, on that thread.
        waits_s: between tries; None for `WAITS_S`.

    Attributes:
        write_s: seconds that checkpoints have taken, beside the training.
        num_late: checkpoints that were due while the one before was still being written.
    """

    def __init__(self, ask: Ask, warn: Callable[[str], None], waits_s: Sequence[float] | None = None):
        self.write_s, self.num_late = 0.0, 0
        self._ask, self._warn = ask, warn
        self._waits_s = waits_s
        self._copy, self._checked = HostCopy(), False
        self._thread: threading.Thread | None = None
        self._hurry = threading.Event()  # the try at hand is the last
        self._error: Exception | None = None  # no fault of the store
        self._unsaved: tuple[int, str] | None = None  # the last checkpoint's step, and why it is not on disk
        self._saved: int | None = None  # the step of the last that is
        self._failing = False  # which the user has been told

    @property
    def busy(self) -> bool:
        """One is being written, or waits to be tried again."""
        return self._thread is not None and self._thread.is_alive()

    def late(self, every_steps: int) -> None:
        """One is due, and is put off until the one before is on disk."""
        self.num_late += 1
        if self.num_late == 1 and not self._failing:
            self._warn(
                f"a checkpoint takes longer to write than training.checkpoint.every_steps: {every_steps} takes to "
                "train; the next waits for it, and the training does not"
            )

    def check(self) -> None:
        """Raises what went wrong with an earlier one, unless it was the store."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __call__(self, facts: shelf.Facts, state: dict[str, Any], objects: Sequence[Any]) -> None:
        """Copy the state, and return; the one before gets to end the try that it is at.

        Args:
            objects: those whose `state_dict` goes into it.

        Raises:
            CheckpointError: an object's state could not be read again.
        """
        self._await_last(hurry=True)
        self.check()
        states = [each.state_dict() for each in objects]
        if not self._checked:
            for thing, own in zip(objects, states, strict=True):
                checkpoint.check(type(thing).__name__, own)
            self._checked = True
        told = {shelf.STATE: state} | {shelf.object_file(number): own for number, own in enumerate(states)}
        work = copy.deepcopy(facts), self._copy.take(told)
        self._thread = threading.Thread(target=self._write, args=work, name="raytrain-checkpoint", daemon=True)
        self._thread.start()

    def close(self, *, hurry: bool = False) -> CheckpointError | None:
        """Wait for the one that is being written; without a further try, if there is a `hurry`. Returns that the last
        one is not on disk.

        Raises what went wrong with it, unless it was the store.
        """
        self._await_last(hurry=hurry)
        self.check()
        if self._unsaved is None:
            return None
        step, why = self._unsaved
        stands, then = f"that of step {self._saved} stands", "resume"
        if self._saved is None:  # by this attempt, but perhaps by one before it
            stands, then = "no other was saved", "resume if there is an older one, else start again"
        return CheckpointError(
            f"the last checkpoint, of step {step}, could not be saved ({stands}): {why}; mend the store and {then}"
        )

    def _await_last(self, *, hurry: bool) -> None:
        if self._thread is not None:
            if hurry:
                self._hurry.set()
            self._thread.join()
            self._thread = None
        self._hurry.clear()

    # --- on the thread ---

    def _write(self, facts: shelf.Facts, files: dict[str, Any]) -> None:
        began = time.perf_counter()
        try:
            why = self._tried(facts, files)
            self._unsaved = None if why is None else (facts.steps, why)
        except Exception as error:  # noqa: BLE001 - raised again by the training thread
            self._error = error
        finally:
            self.write_s += time.perf_counter() - began

    def _tried(self, facts: shelf.Facts, files: dict[str, Any]) -> str | None:
        """Until it is on disk; else the last reason why it is not."""
        waits_s = WAITS_S if self._waits_s is None else self._waits_s
        for wait_s in (*waits_s, None):
            why = self._sent(facts, files)
            if why is None:
                if self._failing:
                    self._warn(f"the checkpoint of step {facts.steps} is on disk: they can be written again")
                self._failing, self._saved = False, facts.steps
                return None
            if not self._failing:
                self._warn(
                    f"{why}; training goes on, and it is tried {len(waits_s)} times more, within {sum(waits_s):g} s, "
                    "and again with the next one"
                )
            self._failing = True
            if wait_s is None or self._hurry.wait(wait_s):
                break
        return why

    def _sent(self, facts: shelf.Facts, files: dict[str, Any]) -> str | None:
        draft = uuid.uuid4().hex
        why = self._ask("begin", draft)()
        sent: dict[str, Pieces] = {}
        for name, contents in files.items():
            if why is None:
                sent[name] = Pieces(self._ask, draft, name)
                checkpoint.write(contents, sent[name])
                why = sent[name].close()
        if why is not None:
            return why
        text = shelf.describe(facts, {name: file.sha256.hexdigest() for name, file in sent.items()})
        return self._ask("finish", draft, text, {name: file.size for name, file in sent.items()})()


class Pieces:
    """A file that torch writes to, and that the keeper gets piece by piece. It never refuses, since it is torch's C++
    that calls it; after a piece that could not be written the rest is for nothing.

    Attributes:
        size: bytes sent.
        sha256: of them.
    """

    def __init__(self, ask: Ask, draft: str, name: str):
        self.size, self.sha256 = 0, hashlib.sha256()
        self._ask, self._draft, self._name = ask, draft, name
        self._piece, self._filled = np.empty(PIECE_BYTES, np.uint8), 0
        self._coming: deque[Callable[[], str | None]] = deque()
        self._why: str | None = None

    def write(self, data: Any) -> int:
        size, at = len(data), 0
        data = np.frombuffer(data, np.uint8) if size else data
        while at < size and self._why is None:
            part = data[at : at + PIECE_BYTES - self._filled]
            self._piece[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            at += len(part)
            if self._filled == PIECE_BYTES:
                self._send()
        return size

    def flush(self) -> None:
        """Nothing is held back for long."""

    def close(self) -> str | None:
        """Send the rest. Returns why the keeper could not write it all, or None."""
        if self._why is None:
            self._send()
        while self._coming:
            self._heed()
        return self._why

    def _send(self) -> None:
        piece = self._piece[: self._filled]
        if len(self._coming) == ON_THEIR_WAY:
            self._heed()
        self._coming.append(self._ask("write", self._draft, self._name, self.size, piece))
        self.sha256.update(piece)
        self.size, self._filled = self.size + len(piece), 0

    def _heed(self) -> None:
        why = self._coming.popleft()()
        self._why = self._why or why
