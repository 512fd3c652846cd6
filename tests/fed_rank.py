"""Encoded files, usual and not, and a rank that gets them from a worker's producer, without Ray."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pictures import encoded, photo
from PIL import Image

from raytrain import Pipeline
from raytrain.data import from_torch
from raytrain.data.order import Position, StreamPlan, StreamSpec
from raytrain.data.producer import Producer, StreamWork
from raytrain.data.samples.block import batches_of
from raytrain.data.stages.encoded.jpeg import ORIENTATION
from raytrain.device.arrival import arrivals
from raytrain.device.decoding import Decoding
from raytrain.device.loader import RankIngest
from raytrain.record.status import Failure


def jpeg(seed: int, height: int = 60, width: int = 84, *, grey: bool = False, turned: int = 0, **options) -> bytes:
    image = Image.fromarray(photo(height, width, seed)).convert("L" if grey else "RGB")
    if turned:
        options["exif"] = Image.Exif()
        options["exif"][ORIENTATION] = turned
    image.save(file := io.BytesIO(), "JPEG", **{"quality": 90, **options})
    return file.getvalue()


USUAL = [
    jpeg(0, subsampling=2),
    jpeg(1, 75, 51, subsampling=0),
    jpeg(2, subsampling=1),
    jpeg(3, 90, 90, grey=True),
    jpeg(4, 71, 64, progressive=True),
    *(jpeg(10 + each, 60 + each, 84, turned=each) for each in range(1, 9)),
    jpeg(5, 41, 43),
]
CMYK = io.BytesIO()
Image.fromarray(photo(50, 60)).convert("CMYK").save(CMYK, "JPEG")
OTHERS = [
    encoded(photo(60, 70, 20), "PNG"),
    encoded(photo(64, 70, 21), "WEBP"),
    encoded(photo(64, 71, 22).astype(np.uint16)[..., 0] * 257, "PNG"),  # 16 bits
    CMYK.getvalue(),
    USUAL[0] + bytes(9),
    jpeg(8, 66, 77, keep_rgb=True),
]
NO_SCAN = USUAL[1][: USUAL[1].index(b"\xff\xda")] + b"\xff\xd9"  # its headers are whole
BROKEN = [b"", b"broken", USUAL[0][:900], USUAL[1][:-2], OTHERS[0][:300], OTHERS[1][:300], NO_SCAN]


class Files:
    """Sample i is the i-th file, with its number."""

    def __init__(self, files: list[bytes], **more: list[Any]):
        self.files, self.more = files, more

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rest = {name: values[index] for name, values in self.more.items()}
        return {"image": self.files[index], "number": index, **rest}


class Feed:
    """The feed's handle, which hears of failures."""

    def __init__(self):
        self.heard: list[tuple[str, Failure]] = []

    @property
    def failures(self) -> Any:
        return self

    progress = failures

    def remote(self, *told: Any) -> None:
        if len(told) == 2:
            self.heard += [(told[0], each) for each in told[1]]


class Fed(RankIngest):
    """A rank whose batches a producer in its own process makes."""

    def __init__(
        self,
        opened: Any,
        plan: StreamPlan,
        producer: Producer,
        decode_jpegs: Callable[..., Any] | None,
        device: torch.device,
    ):
        self.opened, self.decode_jpegs = opened, decode_jpegs
        places = (
            plan.places().tolist()
        )  # prepared beforehand: reading sets torch's generator, which the stages use here
        self.prepared = [(*place, batches_of(producer.block(*place, 1))[0]) for place in places]
        super().__init__(Feed(), "a", 0, plan, device, arrivals(opened.schema, {}, None), opened.on_device)

    def _fetch(self) -> None:
        self._landing.decoding = Decoding(self.opened.on_device, self.device, self.decode_jpegs)
        try:
            for segment, number, batch in self.prepared:
                self._put(self._arriving(segment, number, batch))
        except Exception as error:  # noqa: BLE001 - as the rank does it
            self._put(error)


class Run:
    """All batches of the last epoch, or of its validation.

    Attributes:
        samples: by id, their fields.
    """

    def __init__(
        self,
        stages,
        dataset,
        batch_size=4,
        decode_jpegs=None,
        validation=None,
        seed=3,
        tail="share",
        epochs=1,
        device="cpu",
        **options,
    ):
        masks = {"masks": ["mask"]} if "mask" in dataset[0] else {}
        held = {} if validation is None else {"validation": from_torch(validation, **masks)}
        pipeline = Pipeline(
            from_torch(dataset, **masks), stages, batch_size=batch_size, max_corrupt_share=1, **held, **options
        )
        opened = pipeline.open(seed)
        spec = StreamSpec(len(dataset), len(validation or ()), batch_size, seed, epochs=epochs, tail=tail)
        plan = StreamPlan(spec, Position(), 1)
        rank = Fed(
            opened, plan, Producer(StreamWork(plan, opened.pickled_splits())), decode_jpegs, torch.device(device)
        )
        self.batches = list(rank.segment(len(plan.segments) - 1))
        self.meter, self.failures, self.opened = rank.meter, rank._feed.heard, opened
        self.samples: dict[int, dict[str, np.ndarray]] = {}
        for batch in self.batches:
            for place, index in enumerate(batch.ids.tolist()):
                values = {name: [*batch[name]][place] for name in batch}
                self.samples[index] = {
                    name: value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
                    for name, value in values.items()
                }
        rank.close()
