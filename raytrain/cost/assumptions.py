"""What a plan assumes beyond what was measured, and what of the measurements it leaves out, a line each."""

from __future__ import annotations

from raytrain.cost.bounds import Bounds
from raytrain.cost.instances import InstanceType
from raytrain.cost.profile import TRAINED_ON_CPU, Profile


def startup_s(profile: Profile, bounds: Bounds) -> float | None:
    """From the command to the first step on SageMaker: as given, or as measured there; None where nobody knows."""
    if bounds.startup_s is not None:
        return bounds.startup_s
    return profile.startup_s.value if profile.on_sagemaker else None


def assumptions(profile: Profile, types: tuple[InstanceType, ...], bounds: Bounds) -> tuple[str, ...]:
    """Those of a plan over some types."""
    return (*_not_used(profile, bounds), *_beyond(profile, types, bounds))


def _not_used(profile: Profile, bounds: Bounds) -> list[str]:
    """What does not carry over from where it was measured."""
    lines = []
    if profile.estimated:
        lines.append(profile.estimated)
    if profile.cores_shared_with:
        lines.append(
            f"an efficiency of 100%, the most there is: the measured {profile.efficiency.value:.0%} is not used, "
            f"because the rank trained on a CPU and shared its cores with {profile.cores_shared_with}, which a GPU "
            "does not"
        )
    if TRAINED_ON_CPU in profile.accelerator_s_per_sample:
        took = profile.accelerator_s_per_sample[TRAINED_ON_CPU].value
        lines.append(
            f"the {took * 1e3:.3g} ms a sample of the rank that trained on a CPU are not used: hosts have GPUs"
        )
        if profile.may_move and not any(map(profile.measured_like, profile.stages)):
            lines.append(
                "every stage stays on CPUs: what those that can run on the device take there was measured on a CPU; "
                "diagnose on a host with a GPU, or give their device_s_per_sample in the profile"
            )
    if startup_s(profile, bounds) is None:
        lines.append(
            f"no start-up: the measured {profile.startup_s.value:.3g} s are not SageMaker's, which were not measured; "
            "--startup SECONDS adds it"
        )
    return lines


def _beyond(profile: Profile, types: tuple[InstanceType, ...], bounds: Bounds) -> list[str]:
    """What nobody measured."""
    lines = []
    like = sorted({t.family for t in types} - set(profile.cpu_s_per_sample))
    if like:
        lines.append(f"a vCPU of {', '.join(like)} prepares as much as one of {profile.cpu_kind} did")
    if profile.read_wait_s:
        lines.append(
            f"a worker, one a vCPU, waits {profile.read_wait_s * 1e3:.3g} ms for storage beside the CPU time of each "
            "sample, as it was measured"
        )
    lines += _stages(profile, sorted({t.gpu for t in types if t.gpu}))
    unknown = [t.name for t in types if t.network_gbps is None]
    if unknown:
        lines.append(f"the network of {', '.join(unknown)} is not known and does not limit")
    if bounds.max_gpu_hosts > 1 or any(t.gpus > 1 for t in types):
        lines.append("several GPUs train as fast as one, times their number: what they tell each other costs nothing")
    if "steps" in profile.job.get("training", {}) and profile.job["training"]["steps"]:
        lines.append("the job, which is given in steps, does as many samples on any number of GPUs: in fewer steps")
    if profile.accelerator_memory_bytes is None:
        lines.append("the model fits into every GPU's memory: none was measured")
    return lines


def _stages(profile: Profile, gpus: list[str]) -> list[str]:
    """Of those on the device."""
    lines = []
    if profile.may_move and (like := profile.measured_like(profile.stages[-1])):
        others = [gpu for gpu in gpus if gpu not in (profile.stages[-1].device_s_per_sample or {})]
        if others:
            lines.append(
                f"stages on {', '.join(others)} take as much longer than on {like} as a step does; they were not "
                "measured there"
            )
        lines.append(
            "a run has the stages on the device that the plan has: it finds them itself (cluster.placement: auto)"
        )
    return lines
