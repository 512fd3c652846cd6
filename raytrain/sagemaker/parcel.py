"""What is uploaded: the user's source folder, raytrain itself, the job file, a requirements file that leaves the
image's torch alone, and the start of the container."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from raytrain.config.job import Job
from raytrain.config.own_code import is_own_module, own_sources, top_of
from raytrain.errors import ConfigError, looked_for, one_line
from raytrain.sagemaker.drivers import REQUIREMENTS, write_drivers
from raytrain.sagemaker.request import checkpoint_path, settings

IGNORE_FILE = ".raytrainignore"  # the syntax of .gitignore
ALWAYS_IGNORED = (
    ".git/",
    "__pycache__/",
    "*.pyc",
    ".DS_Store",
    ".ipynb_checkpoints/",
    ".cache/",
    ".venv/",
    IGNORE_FILE,
)
# Of the image: another build of these could not use its CUDA, or would take minutes to download on every host. What
# asks the driver, nvidia-ml-py, is neither.
OF_THE_IMAGE = re.compile(r"^(torch|torchvision|torchaudio|triton|pytorch-triton|nvidia-(?!ml-py$).*|raytrain)$")

SECRET_NAMES = re.compile(
    r"(^|/)(\.env(\..*)?|[^/]+\.env|\.netrc|\.pypirc|\.pgpass|\.git-credentials|\.aws|\.ssh|\.docker|\.kube"
    r"|id_(rsa|dsa|ecdsa|ed25519)|credentials(\.json)?|kaggle\.json|[^/]+\.(pem|key|p12|pfx|jks|keystore))$",
    re.IGNORECASE,
)
SECRET_TEXTS = {
    "an AWS access key": re.compile(rb"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "an AWS secret key": re.compile(rb"secret_?access_?key['\"]?\s*[=:]\s*['\"]?[A-Za-z0-9/+=]{40}", re.IGNORECASE),
    "a private key": re.compile(rb"-----BEGIN ([A-Z]+ )*PRIVATE KEY-----"),
    "a GitHub token": re.compile(rb"\b(gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22,})\b"),
    "a Hugging Face token": re.compile(rb"\bhf_[A-Za-z0-9]{34}\b"),
}
LOOKED_INTO_BYTES = 4 << 20  # larger files are data, and are not searched for secrets


@dataclass(frozen=True)
class Parcel:
    """A folder ready to upload.

    Attributes:
        code: becomes the `code` channel.
        drivers: becomes the `sm_drivers` channel.
        num_files, num_bytes: of both.
        left_out: requirements that the image has.
    """

    code: Path
    drivers: Path
    num_files: int
    num_bytes: int
    left_out: tuple[str, ...]


def pack(job: Job, folder: Path, base: Path = Path()) -> Parcel:
    """Like `_pack`, with what the disk refuses on one line.

    Raises:
        ConfigError: there is no such source folder or program in it, it holds a secret or a link out of it, its
            requirements cannot be read, a file cannot be, or a module that the job names is not here.
    """
    try:
        return _pack(job, folder, base)
    except OSError as error:
        raise ConfigError(f"cannot pack {error.filename or base}: {error.strerror}") from None


def _pack(job: Job, folder: Path, base: Path) -> Parcel:
    """Fill a new folder with what the job's hosts need.

    Args:
        folder: does not exist yet.
        base: what a relative `sagemaker.source_dir` starts from.
    """
    asked = settings(job)
    source = base / asked.source_dir
    if not source.is_dir():
        raise ConfigError(f"sagemaker.source_dir: there is no folder {source}{looked_for(source)}")
    code, drivers = folder / "code", folder / "sm_drivers"
    code.mkdir(parents=True)
    drivers.mkdir()
    for relative, path in _files(source):
        _refuse_secret(relative, path, source.resolve())
        target = code / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(path.stat().st_mode & 0o777)
    _check_program(asked.program[0] if asked.program else "", code, source)
    if (code / "raytrain").exists():
        raise ConfigError(f"{source} holds something named raytrain, which is where raytrain itself goes; rename it")
    _copy_own_modules(job, code, source)
    _copy_package(code / "raytrain")
    (code / "job.yaml").write_text(yaml.safe_dump(_as_run(job), sort_keys=False))
    wanted = code / REQUIREMENTS
    lines, left_out = requirements(wanted if wanted.is_file() else None, code)
    wanted.write_text("\n".join(lines) + "\n")
    write_drivers(asked, drivers)
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Parcel(code, drivers, len(sizes), sum(sizes), tuple(left_out))


def _as_run(job: Job) -> dict[str, Any]:
    """The job file for the hosts: without what only the launch needs, and with the run where checkpoints are kept."""
    tree = job.model_dump(mode="json", exclude_unset=True, exclude={"sagemaker", "run_dir"})
    kept = settings(job).checkpoints
    return tree if kept is None else {**tree, "run_dir": checkpoint_path(kept)}


def requirements(path: Path | None, folder: Path) -> tuple[list[str], list[str]]:
    """The user's requirements and raytrain's own, without what the image has.

    Args:
        path: the user's requirements.txt; None for none.
        folder: that files named by `-r` must not leave.

    Returns:
        The lines, and what was left out.

    Raises:
        ConfigError: a line cannot be read, or names a file that is not there.
    """
    kept, left_out, named = [], [], set()
    for line in _lines(path, folder, frozenset()) if path else []:
        try:
            name = canonicalize_name(Requirement(re.split(r"\s--", line)[0]).name)
        except InvalidRequirement:
            if line.startswith(("-", "./", "../", "/")) or "://" in line:
                kept.append(line)  # options, addresses and files are pip's business
                continue
            raise ConfigError(f"{path.name}: {line!r} is not a requirement that pip understands") from None
        named.add(name)
        (left_out if OF_THE_IMAGE.match(name) else kept).append(line)
    for own in _own_requirements():
        name = canonicalize_name(own.name)
        if name not in named and not OF_THE_IMAGE.match(name):
            kept.append(str(own))
    return kept, left_out


def _lines(path: Path, folder: Path, above: frozenset[Path]) -> Iterator[str]:
    """Requirement lines without comments, of the files that it names too, but for those that name it."""
    if path.resolve() in above:
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"requirements: cannot read {path.name}, or it lies outside of source_dir") from None
    for raw in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        other = re.match(r"(-r|--requirement)[\s=]*(\S+)$", line)
        if other and "://" not in other[2]:
            yield from _lines(_inside(path.parent / other[2], folder), folder, above | {path.resolve()})
        elif line:
            yield line


def _inside(path: Path, folder: Path) -> Path:
    resolved = path.resolve()
    return resolved if resolved.is_relative_to(folder.resolve()) else folder / "nowhere"


def _own_requirements() -> list[Requirement]:
    try:
        found = [Requirement(text) for text in requires("raytrain") or []]
    except PackageNotFoundError:
        raise ConfigError("raytrain is not installed as a package here, so that its requirements are unknown") from None
    return [own for own in found if own.marker is None or own.marker.evaluate({"extra": ""})]


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """Files of the source folder that are not ignored, as (path with slashes, where it lies).

    Raises:
        ConfigError: a link leads out of the folder, around in it, or nowhere.
    """
    ignored = _ignored(source / IGNORE_FILE)
    root = source.resolve()

    def walk(folder: Path, above: str, via: frozenset[Path]) -> Iterator[tuple[str, Path]]:
        for entry in sorted(os.scandir(folder), key=lambda e: e.name):
            relative = above + entry.name
            path = Path(entry.path)
            is_folder = entry.is_dir()
            if ignored.match_file(relative + "/" if is_folder else relative):
                continue
            _check_name(path)
            resolved = path.resolve()
            if entry.is_symlink() and not resolved.is_relative_to(root):
                raise ConfigError(f"{path} is a link out of {source}; copy what it means, or name it in {IGNORE_FILE}")
            if entry.is_symlink() and ignored.match_file(resolved.relative_to(root).as_posix() + "/" * is_folder):
                raise ConfigError(f"{path} is a link to something that {IGNORE_FILE} leaves here; name the link too")
            if is_folder:
                if resolved in via:
                    raise ConfigError(f"{path} is a link to a folder around it; name it in {IGNORE_FILE}")
                yield from walk(path, relative + "/", via | {resolved})
            elif entry.is_file():
                yield relative, path
            else:
                raise ConfigError(f"{path} is a link to nothing, or no plain file; name it in {IGNORE_FILE}")

    yield from walk(source, "", frozenset({root}))


def _check_name(path: Path) -> None:
    """
    Raises:
        ConfigError: S3 has no such names.
    """
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(
            f"the file name {str(path)!r} is not UTF-8; rename it, or name its folder in {IGNORE_FILE}"
        ) from None


def _ignored(path: Path) -> Any:
    """What the ignore file, and we always, leave out.

    Raises:
        ConfigError: pathspec is not installed, or the file cannot be understood.
    """
    try:
        from pathspec import GitIgnoreSpec
    except ImportError:
        raise ConfigError("launching needs pathspec: pip install 'raytrain[sagemaker]'") from None
    try:
        own = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        return GitIgnoreSpec.from_lines([*ALWAYS_IGNORED, *own])
    except ValueError as error:
        raise ConfigError(f"{path} has a line that .gitignore would not know: {one_line(error, 200)}") from None


def _refuse_secret(relative: str, path: Path, root: Path) -> None:
    """
    Raises:
        ConfigError: by its name or what is in it, the file is a secret.
    """
    real = path.resolve().relative_to(root).as_posix()  # of a link, what it means
    names = (*_leading(relative), *_leading(real))
    found = "a secret, by its name," if any(SECRET_NAMES.search(name) for name in names) else None
    if found is None and path.stat().st_size <= LOOKED_INTO_BYTES:
        content = path.read_bytes()
        found = next((what for what, pattern in SECRET_TEXTS.items() if pattern.search(content)), None)
    if found:
        raise ConfigError(
            f"{path} looks like {found} and would be uploaded; take it out, or leave it here by {IGNORE_FILE}"
        )


def _leading(relative: str) -> list[str]:
    """The path and every folder above it."""
    parts = relative.split("/")
    return ["/".join(parts[: n + 1]) for n in range(len(parts))]


def _check_program(program: str, code: Path, source: Path) -> None:
    """
    Raises:
        ConfigError: it is a script that is not in the source folder.
    """
    if not program:
        raise ConfigError("sagemaker.program is empty; name what the head runs, such as [train.py, job.yaml]")
    if program.endswith((".py", ".sh")) and not program.startswith("/") and not (code / program).is_file():
        raise ConfigError(f"sagemaker.program: {program} is not in {source}, or is ignored there")


def _copy_own_modules(job: Job, code: Path, source: Path) -> None:
    """Modules of the user's own that the job names and the source folder lacks, with all of the user's that they
    import.

    Raises:
        ConfigError: one is a secret, or is not here.
    """
    given = {path.name.removesuffix(".py") for path in code.iterdir()}
    for name, module in own_sources(job.imports).items():
        target = (
            code.joinpath(*name.split("."), "__init__.py")
            if module.is_package
            else code / f"{name.replace('.', '/')}.py"
        )
        path = Path(module.file)
        if top_of(name) in given:
            if module.text and not (target.is_file() and target.read_bytes() == module.text):
                raise ConfigError(
                    f"module {name!r} is {path}, but {source} has another {top_of(name)!r}, which the job would import "
                    "in its place; rename one of them"
                )
            continue
        if module.text:
            _refuse_secret(path.name, path, path.resolve().parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(module.text)
    there = {path.name.removesuffix(".py") for path in code.iterdir()}
    if REQUIREMENTS in there:  # who knows what they bring
        return
    for name in job.imports:
        if is_own_module(name) and top_of(name) not in there:
            raise ConfigError(
                f"the job names {name!r}, and nothing of that name would be uploaded: put {top_of(name)}.py into "
                f"{source}, or the package that has it into {source / REQUIREMENTS}"
            )


def _copy_package(target: Path) -> None:
    """raytrain as it runs here."""
    import raytrain

    source = Path(raytrain.__file__).parent
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
