"""Where the stages of a run were, and why; and what decoding on the device took."""

from __future__ import annotations

from raytrain.record.part import Part


class PlacedStage(Part):
    """What a stage that may run on CPUs costs, in seconds of a core and of a device for a sample; None where it cannot
    run there."""

    name: str
    cpu_s: float
    device_s: float | None


class Placement(Part):
    """Where the stages ran from `at_s` (seconds from `started_at`) on, as measurement said (see data.placement).

    Attributes:
        on_device: the stages on the device, of all batches; `sometimes_on_device` of a `share` of them too.
        cpu_cores, host_cores: cores of CPU hosts and of training hosts that prepare.
        stages: what was measured.
        step_s: of a device, the model's step for a sample.
        interference: the share of its rate that a device loses when all cores of its host prepare.
        samples_per_s: expected by these costs; `samples_per_s_before` of the placement before.
    """

    at_s: float
    on_device: list[str]
    sometimes_on_device: list[str]
    share: float
    cpu_cores: int
    host_cores: int
    stages: list[PlacedStage]
    step_s: float
    interference: float
    samples_per_s: float
    samples_per_s_before: float
    text: str

    def share_on_device(self, stage: str) -> float:
        """Of the batches."""
        return 1.0 if stage in self.on_device else self.share if stage in self.sometimes_on_device else 0.0


class DecodingFigures(Part):
    """`decode` on the device, of one rank.

    Attributes:
        decode_s: of its seconds among `device_stage_s`, those for training, which ran beside it.
        decoded_on_device, decoded_on_host: images and masks, by the device's decoder and by the rank's CPU.
    """

    decode_s: float = 0.0
    decoded_on_device: int = 0
    decoded_on_host: int = 0
