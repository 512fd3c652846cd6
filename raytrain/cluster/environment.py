"""The one place that reads and writes the process environment and the files that SageMaker puts into a container."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from raytrain.config.masking import masked_text
from raytrain.errors import ClusterError, ConfigError, one_line
from raytrain.record.plain_json import from_json

# glibc's malloc maps and unmaps every temporary above 128 kB, page fault by page fault, which halves image
# preprocessing; these keep the pages. (glibc caps the second at 32 MiB.)
ALLOCATOR = {
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TOP_PAD_": str(64 << 20),
}

RAY = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # how often the controller looks for reports and the end; Ray: 2
    "RAY_health_check_period_ms": "1000",  # a lost node is noticed after 5 s; Ray: 5 x 3 s
    "RAY_health_check_failure_threshold": "5",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
}

OWN_CLUSTER = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}

STOP_GRACE = "RAYTRAIN_STOP_GRACE_S"  # seconds from SIGTERM to SIGKILL; the bootstrap says its own
USUAL_GRACE_S = 30.0  # Kubernetes'; SageMaker gives 120, and `docker stop` 10
MARGIN_S = 5.0  # for the record, and for Ray's end
PUBLIC_RAY = "RAYTRAIN_PUBLIC_RAY"
PUBLIC = {"RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}  # else a rank's lines come twice
# Ray's word for a machine that forms no cluster with others: 127.0.0.1 is then not taken for its address out there
LOCALHOST_KEPT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
COLLECTS_METRICS = "RAY_enable_metrics_collection"

ML_FOLDER = "/opt/ml"
RAYS_COPIES = {"runtime_resources", "working_dir_files"}  # in the path of what Ray unpacks for a job
DELETED_BY_RAY = (
    "warning: the run's folder {path} lies in Ray's copy of your working folder, which Ray may delete when the job has "
    "ended; give --run-dir, or run_dir in the job file, a folder that stays"
)
EMULATED_GPUS = "RAYTRAIN_EMULATED_GPUS"
TOKEN_CHANNEL = "raytrain_token"  # an input channel with one file, `token`
OURS_ALONE = ("RAY_AUTH_TOKEN", "RAY_ADDRESS", "RAYTRAIN_REMOTE_WRITE_PASSWORD")
FAILURE_CHARACTERS = 1024  # SageMaker shows no more of the failure file
TOKEN_MIN_CHARACTERS = 16


def prepare_environment() -> dict[str, str]:
    """Set what every process of a run should start with, and return it.

    What the user has set stays. Must run before Ray is imported.

    Raises:
        ConfigError: RAYTRAIN_PUBLIC_RAY is neither 0 nor 1, or RAYTRAIN_STOP_GRACE_S no number.
    """
    stop_grace_s()
    wanted = {**ALLOCATOR, **RAY, **(PUBLIC if public_ray() else {})}
    _default(wanted)
    return {name: os.environ[name] for name in wanted}


def stop_grace_s() -> float:
    """Seconds from a signal on for the step in flight and the checkpoint: nearly all that there are.

    Raises:
        ConfigError: RAYTRAIN_STOP_GRACE_S is no number of seconds.
    """
    text = os.environ.get(STOP_GRACE) or str(USUAL_GRACE_S)
    try:
        whole = float(text)
    except ValueError:
        whole = math.nan
    if not 0 <= whole < math.inf:
        raise ConfigError(f"{STOP_GRACE} must be seconds, such as 30, not {text!r}: from SIGTERM to SIGKILL")
    return max(whole - max(MARGIN_S, 0.1 * whole), 0.5 * whole)


def prepare_public_ray_train() -> None:
    """Where Ray Train is used as it is."""
    _default(PUBLIC)


def prepare_own_cluster() -> None:
    """For clusters that raytrain itself starts: nobody drains their nodes through Ray, and to watch for it costs Ray
    Train ten seconds at the end of every run."""
    _default(OWN_CLUSTER)


def prepare_emulated_cluster() -> None:
    """For those of them that only this process sees: nobody collects metrics or events either, which cost half a
    percent of a core and node."""
    prepare_own_cluster()
    _default(dict.fromkeys((COLLECTS_METRICS, "RAY_task_events_report_interval_ms"), "0"))


def _default(settings: Mapping[str, str]) -> None:
    """Set what the user has not."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def started_with(settings: Mapping[str, str]) -> Iterator[None]:
    """What is started meanwhile has these, where the user has set nothing else; this process does not keep them."""
    ours = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def native_log_of_crashes() -> contextlib.AbstractContextManager[None]:
    """Around `ray.init`: what Ray's C++ has to say in this process goes to standard error, and its warnings are about
    Ray's own parts. Not in the processes of the nodes, whose logs are files."""
    return started_with({"RAY_BACKEND_LOG_LEVEL": "fatal"})


def without_own(settings: Mapping[str, str]) -> dict[str, str]:
    """Ray's `settings` but for raytrain's own, which its clusters have anyway: what the user has set."""
    return {name: value for name, value in settings.items() if value not in (RAY.get(name), OWN_CLUSTER.get(name))}


def public_ray() -> bool:
    """Whether the user wants Ray's public API alone, which is slower.

    Raises:
        ConfigError: the variable holds neither 0 nor 1.
    """
    text = os.environ.get(PUBLIC_RAY) or "0"
    if text not in ("0", "1"):
        raise ConfigError(f"{PUBLIC_RAY} must be 0 or 1, not {text!r}: whether to use Ray's public API alone")
    return text == "1"


def collects_metrics() -> bool:
    """Whether the Ray cluster of this process collects metrics."""
    return os.environ.get(COLLECTS_METRICS) != "0"


def ray_address(environment: Mapping[str, str] | None = None) -> str | None:
    """The Ray cluster that this process was started on, if any."""
    return (os.environ if environment is None else environment).get("RAY_ADDRESS") or None


def token_mode() -> bool:
    """Whether this process shows Ray clusters a token."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


def own_token() -> dict[str, str]:
    """What a cluster of this machine is started with, so that it lets nobody else in; empty where the user has said
    whether there is a token. The token is this process's: other processes find it in a file that is gone with it."""
    if "RAY_AUTH_MODE" in os.environ:
        return {}
    given = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & {*os.environ}
    return {"RAY_AUTH_MODE": "token", **({} if given else {"RAY_AUTH_TOKEN_PATH": _token_of_this_process()})}


@cache
def _token_of_this_process() -> str:
    folder = tempfile.mkdtemp(prefix="raytrain-token-")  # for this user alone
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = os.path.join(folder, "token")
    with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(new_token())
    return path


def uses_tls() -> bool:
    """Whether Ray's processes talk to each other over TLS."""
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def child_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for a child, without what only the bootstrap should hold, and changed."""
    kept = {name: value for name, value in os.environ.items() if name not in OURS_ALONE}
    return {**kept, **changes}


def set_environment(changes: Mapping[str, str]) -> None:
    """For what this process starts."""
    os.environ.update(changes)


def user_set(names: Mapping[str, str]) -> dict[str, str]:
    """`names` with what the user has set already in its place."""
    return {name: os.environ.get(name, value) for name, value in names.items()}


def simulated_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """What a command on a simulated host starts with: this process's environment, but nothing of a cluster of it."""
    foreign = ("RAY_", "SM_", "SAGEMAKER_", "TRAINING_JOB_", "TMPDIR")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, "HOME": "/tmp", **changes}


def container_environment(changes: Mapping[str, str]) -> dict[str, str]:
    """What a container starts with whose image is this machine: this Python first on the path, and nothing else of
    this process."""
    path = os.pathsep.join(
        [os.path.dirname(sys.executable), "/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"]
    )
    return {"PATH": path, "HOME": "/tmp", "LANG": "C.UTF-8", **changes}


def emulated_gpus() -> int:
    """GPUs that this host declares without having them; raytrain's own twin of a job says so.

    Raises:
        ConfigError: the variable holds something else than a number.
    """
    text = os.environ.get(EMULATED_GPUS, "0")
    if not text.isdigit():
        raise ConfigError(f"{EMULATED_GPUS} must be a whole number of GPUs to emulate, not {text!r}")
    return int(text)


@dataclass(frozen=True)
class JobFolders:
    """Where a SageMaker job's program leaves what shall be kept.

    Attributes:
        checkpoints: copied to S3 all the time, and there again when a spot job goes on.
        model: becomes model.tar.gz.
        output: becomes output.tar.gz.
    """

    checkpoints: Path
    model: Path
    output: Path


def job_folders() -> JobFolders | None:
    """None outside a SageMaker job."""
    if not (_folder() / "input/config/resourceconfig.json").is_file():
        return None
    return JobFolders(_folder() / "checkpoints", _folder() / "model", _folder() / "output/data")


def _folder() -> Path:
    """Where SageMaker mounts a job's files; the toolkit reads the same variable."""
    return Path(os.environ.get("SAGEMAKER_BASE_DIR", ML_FOLDER))


def may_be_deleted(path: Path) -> bool:
    """Whether Ray owns this folder, as it does a job's that was submitted with a working folder (`ray job submit`)."""
    return not RAYS_COPIES.isdisjoint(path.absolute().parts)


def read_resource_config() -> tuple[dict[str, Any], str] | None:
    """SageMaker's resource config and who read it; None outside a SageMaker job.

    The toolkit is asked where it is installed, and only where the job's files exist: importing it elsewhere creates
    folders in the home directory.

    Raises:
        ClusterError: the file is there and cannot be read.
    """
    path = _folder() / "input/config/resourceconfig.json"
    if not path.is_file():
        return None
    try:
        from sagemaker_training.environment import Environment

        return dict(Environment().resource_config), "the toolkit"
    except ImportError:
        reader = "raytrain, since the toolkit is not installed"
    except Exception as error:  # noqa: BLE001 - it reads other files too, and stumbles over any of them
        reader = f"raytrain, since the toolkit failed: {type(error).__name__}: {one_line(error, 200)}"
    try:
        config = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ClusterError(f"{path} cannot be read: {one_line(error, 200)}") from None
    if not isinstance(config, dict):
        raise ClusterError(f"{path} must hold a JSON object")
    return config, reader


def write_failure(text: str) -> None:
    """Say why the job failed where SageMaker looks for it; does nothing outside a SageMaker job.

    Raises:
        OSError: the file cannot be written.
    """
    output = _folder() / "output"
    if (_folder() / "input/config/resourceconfig.json").is_file():
        output.mkdir(parents=True, exist_ok=True)
        (output / "failure").write_text(masked_text(text)[:FAILURE_CHARACTERS], encoding="utf-8")


def training_job() -> tuple[str | None, str | None]:
    """Name and region of the SageMaker training job that this container belongs to."""
    arn = os.environ.get("TRAINING_JOB_ARN", "").split(":")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or (arn[3] if len(arn) > 3 else None)
    return os.environ.get("TRAINING_JOB_NAME") or None, region


def read_token(token_file: Path | None) -> str | None:
    """The job's Ray token, from the first of: the option, the input channel, and the three places where Ray looks.

    Raises:
        ConfigError: the place that comes first holds no usable token.
    """
    channel = _folder() / "input/data" / TOKEN_CHANNEL / "token"
    rays_own = Path.home() / ".ray" / "auth_token"
    if token_file is not None:
        where, path = "--token-file", token_file
    elif channel.exists():
        where, path = "the token channel", channel
    elif "RAY_AUTH_TOKEN" in os.environ:
        return _token(os.environ["RAY_AUTH_TOKEN"], "RAY_AUTH_TOKEN")
    elif "RAY_AUTH_TOKEN_PATH" in os.environ:
        where, path = "RAY_AUTH_TOKEN_PATH", Path(os.environ["RAY_AUTH_TOKEN_PATH"])
    elif rays_own.is_file():
        where, path = "Ray's own token", rays_own
    else:
        return None
    try:
        return _token(path.read_text(encoding="utf-8"), f"{where} {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {path} cannot be read: {one_line(error, 200)}") from None


def new_token() -> str:
    """256 random bits, as Ray itself makes them."""
    return secrets.token_hex(32)


def _token(text: str, where: str) -> str:
    token = text.strip()
    if len(token) < TOKEN_MIN_CHARACTERS or any(c.isspace() or not c.isprintable() for c in token):
        raise ConfigError(
            f"{where} must hold one word of at least {TOKEN_MIN_CHARACTERS} characters; "
            "python -c 'import secrets; print(secrets.token_hex(32))' makes a good one"
        )
    return token


def remote_write_password() -> str | None:
    """The password for Prometheus's remote write, when it travels in the environment."""
    return os.environ.get("RAYTRAIN_REMOTE_WRITE_PASSWORD") or None
