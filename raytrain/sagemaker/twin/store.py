"""Where the twin takes what a request points to: folders of this machine that stand for places in S3, and S3 itself."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raytrain.errors import ConfigError
from raytrain.sagemaker import aws


@dataclass(frozen=True)
class Store:
    """What lies where.

    Attributes:
        local: S3 address -> the folder of this machine that stands for it.
        known: the account to ask for every other address; None for none.
        made_up: addresses that exist in no account.
    """

    local: Mapping[str, Path] = field(default_factory=dict)
    known: aws.Account | None = None
    made_up: frozenset[str] = frozenset()

    def answers(self, uri: str) -> bool:
        """Whether an address can be looked at; one made up for a twin only where a folder stands for it."""
        return uri in self.local or (self.known is not None and uri not in self.made_up)

    def fetch(self, uri: str, folder: Path, *, shard: tuple[int, int] = (0, 1)) -> int:
        """Copy all that lies below an S3 prefix into a folder, and say how many objects that were.

        Args:
            shard: (k, n) for every n-th object from the k-th on, as ShardedByS3Key hands them out.

        Raises:
            ConfigError: nobody can be asked for the address.
            CloudError: it cannot be read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if uri in self.local:
            return _copy(self.local[uri], folder, shard)
        if self.known is None:
            raise ConfigError(f"{uri}: no AWS account was asked; give a folder in its place by --channel NAME=FOLDER")
        return self._download(uri, folder, shard)

    def _download(self, uri: str, folder: Path, shard: tuple[int, int]) -> int:
        bucket, prefix = aws.split(uri)
        with aws.explained(f"fetching {uri}"):
            pages = self.known.s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            keys = sorted(entry["Key"] for page in pages for entry in page.get("Contents", []))
            mine = [key for key in keys if not key.endswith("/")][shard[0] :: shard[1]]
            for key in mine:
                target = _within(folder, relative_key(key, prefix), key)
                try:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    self.known.s3.download_file(bucket, key, str(target))
                except (FileExistsError, IsADirectoryError, NotADirectoryError):
                    raise ConfigError(f"s3://{bucket}/{key}: another object has this key as its folder") from None
        return len(mine)


def _within(folder: Path, relative: str, key: str) -> Path:
    """
    Raises:
        ConfigError: a key with `..` in it would lead out of the folder.
    """
    target = (folder / relative).resolve()
    if not target.is_relative_to(folder.resolve()):
        raise ConfigError(f"the key {key!r} leads out of its channel's folder; the twin does not follow it")
    return target


def relative_key(key: str, prefix: str) -> str:
    """The path under the channel's folder of an object of an S3 prefix.

    A prefix names a folder, with or without a slash at its end; a prefix that is an object's whole key is that object.
    """
    if key == prefix:
        return key.rpartition("/")[2]
    rest = key.removeprefix(prefix)
    return rest.lstrip("/") if prefix.endswith("/") or rest.startswith("/") else key.removeprefix(_folder_of(prefix))


def _folder_of(prefix: str) -> str:
    """`a/b/` of `a/b/c`."""
    return prefix.rpartition("/")[0] + "/" if "/" in prefix else ""


def _copy(source: Path, folder: Path, shard: tuple[int, int]) -> int:
    if source.is_file():
        shutil.copyfile(source, folder / source.name)
        shutil.copymode(source, folder / source.name)  # the token is for its owner alone
        return 1
    files = sorted(path for path in source.rglob("*") if path.is_file())[shard[0] :: shard[1]]
    for path in files:
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        shutil.copymode(path, target)
    return len(files)
