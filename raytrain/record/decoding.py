"""What decoding on the device took, in the run record."""

from __future__ import annotations

from raytrain.record.part import Part


class DecodingFigures(Part):
    """`decode` on the device, of one rank.

    Attributes:
        decode_s: of its seconds among `device_stage_s`, those for training, which ran beside it.
        decoded_on_device, decoded_on_host: images and masks, by the device's decoder and by the rank's CPU.
    """

    decode_s: float = 0.0
    decoded_on_device: int = 0
    decoded_on_host: int = 0
