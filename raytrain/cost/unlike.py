"""In what two runs are not the same work, key by key."""

from __future__ import annotations

from typing import Any

from raytrain.record.schema import RunRecord
from raytrain.record.status import DRAW

MOST = 3  # differing keys that are named
LONG = 60  # characters of a value; a longer one is shown around where it differs
BEFORE = 12  # of them, before that place
ABSENT = "nothing"


def unlikenesses(first: RunRecord, other: RunRecord) -> list[str]:
    """Each difference with its key: model, loop, data, batch or precision. Where the data lies does not matter."""
    found = differences("", _work(first), _work(other))
    lines = []
    for key, mine, theirs in found[:MOST]:
        one, two = _shown(mine, theirs)
        lines.append(f"{key}: {one} in {first.name}, {two} in {other.name}")
    return lines + ([f"{len(found) - MOST} more"] if len(found) > MOST else [])


def _work(record: RunRecord) -> dict[str, Any]:
    job = record.job
    work = {"model": job.get("model"), "training samples": record.num_train}
    data = job.get("data")
    if data is None:
        on_cpu = {stage.name for stage in record.stages if stage.name.rpartition("/")[2] != DRAW}
        work["stages"] = sorted(on_cpu.union(*(rank.device_stage_s for rank in record.ranks)))
    else:
        train = {name: value for name, value in data["train"].items() if name != "path"}
        kept = {name: data.get(name) for name in ("normalize", "batch_size", "global_batch_size")}
        work["data"] = {"train": train, "stages": [_wherever(each) for each in data.get("stages") or ()], **kept}
    return {**work, "training": {name: job["training"].get(name) for name in ("precision", "loop")}}


def _wherever(spec: Any) -> Any:
    """A stage, without where it runs, which does not change what it gives."""
    if not isinstance(spec, dict):
        return spec
    return {
        name: {key: value for key, value in (options or {}).items() if key != "place"} for name, options in spec.items()
    }


def differences(key: str, mine: Any, theirs: Any) -> list[tuple[str, Any, Any]]:
    """(key, mine, theirs) of the innermost values that differ, in the order of keys."""
    if isinstance(mine, dict) and isinstance(theirs, dict):
        names = dict.fromkeys([*mine, *theirs])
        pairs = [(f"{key}.{n}" if key else n, mine.get(n, ABSENT), theirs.get(n, ABSENT)) for n in names]
    elif isinstance(mine, list | tuple) and isinstance(theirs, list | tuple) and len(mine) == len(theirs):
        pairs = [(f"{key}[{n}]", *both) for n, both in enumerate(zip(mine, theirs, strict=True))]
    else:
        return [] if mine == theirs else [(key, mine, theirs)]
    return [found for each in pairs for found in differences(*each)]


def _shown(mine: Any, theirs: Any) -> tuple[str, str]:
    """Two values as text, long ones from a little before the place where they part."""
    one, two = (" ".join(str(value).split()) for value in (mine, theirs))
    same = next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    start = same - BEFORE if max(len(one), len(two)) > LONG and same > BEFORE else 0
    return _cut(one, start), _cut(two, start)


def _cut(text: str, start: int) -> str:
    text = ("…" if start else "") + text[start:]
    return text if len(text) <= LONG else text[: LONG - 1] + "…"
