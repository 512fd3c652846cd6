"""What looks like a secret, by the name it goes under, is not written down: in no record, profile, page or message.

The one place that decides. A name is a secret's if one of its words is (`db_password`, `clientSecret`), if two that
follow each other are (`api_key`, `AWS_SECRET_ACCESS_KEY`), or if it ends in `token` (`HF_TOKEN`; neither `token_dim`
nor what models of text have, `pad_token`). Of such a name all text is masked, and numbers but for a token's; of any
other text, what a URL holds of credentials (`raytrain.errors.without_credentials`). A secret under another name is not
found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from raytrain.errors import HIDDEN, ConfigError, without_credentials

WORDS = {"password", "passwd", "passphrase", "pwd", "secret", "secrets", "credential", "credentials", "apikey"}
PAIRS = {(first, "key") for first in ("api", "access", "private", "secret", "account", "signing", "encryption")}
LAST = "token"
OF_TEXT = {"pad", "bos", "eos", "sep", "cls", "class", "mask", "unk", "start", "end", "special"}  # tokens of models
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_NAMED = re.compile(r"""(?<![\w.-])([\w.-]++)["']?\s*[:=]\s*""")  # from where a word begins: each is looked at once
_VALUE = re.compile(r"""\"[^"]*"|'[^']*'|[^\s,{}\[\]"']+""")


def is_secret(name: str) -> bool:
    """Whether what goes under that name is to be masked."""
    words = [word.lower() for word in _WORDS.findall(name)]
    return bool(
        words
        and (
            (words[-1] == LAST and OF_TEXT.isdisjoint(words))
            or not WORDS.isdisjoint(words)
            or not PAIRS.isdisjoint(zip(words, words[1:], strict=False))
        )
    )


def masked(tree: Any, name: str = "") -> Any:
    """A job, or a part of one, as it is written down.

    Args:
        name: that it goes under.
    """
    if isinstance(tree, Mapping):
        return {key: masked(value, name if is_secret(name) else str(key)) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [masked(each, name) for each in tree]
    if isinstance(tree, str):
        return HIDDEN if tree and is_secret(name) else without_credentials(tree)
    number = isinstance(tree, int | float) and not isinstance(tree, bool)
    return HIDDEN if number and is_secret(name) and not name.lower().endswith(LAST) else tree


def masked_command(words: Sequence[str]) -> list[str]:
    """A command line as it is written down: `--set model.options.api_key=***`."""
    named = ["", *words]  # `--password hunter2`
    return [
        HIDDEN if before.startswith("--") and "=" not in before and is_secret(before) else masked_setting(word)
        for before, word in zip(named, words, strict=False)
    ]


def masked_setting(word: str) -> str:
    """`key=value`, or any other word."""
    key, equals, _ = word.partition("=")
    return f"{key}={HIDDEN}" if equals and is_secret(key.rpartition(".")[2]) else masked_text(word)


def masked_text(text: str) -> str:
    """Without the values that it gives to names of secrets, as `name=value` or `name: value`."""
    parts, at = [], 0
    for found in _NAMED.finditer(text):
        in_url = found.start() > 0 and text[found.start() - 1] in "?&"
        if found.start() < at or in_url or not is_secret(found[1].rpartition(".")[2]):
            continue
        if value := _VALUE.match(text, found.end()):
            parts += [text[at : found.end()], HIDDEN]
            at = value.end()
    return without_credentials("".join([*parts, text[at:]]))


def secrets_in(tree: Any) -> list[str]:
    """The keys of what `masked` masks, such as `model.options.api_key`."""
    pairs = zip(_leaves(tree), _leaves(masked(tree)), strict=True)
    return [key for (key, value), (_, shown) in pairs if value != shown]


def check_whole(tree: Any, where: str) -> None:
    """That a job which was written down can be used again.

    Raises:
        ConfigError: it had a secret.
    """
    for key, value in _leaves(tree):
        if isinstance(value, str) and (value == HIDDEN or f"://{HIDDEN}@" in value or f"={HIDDEN}" in value):
            raise ConfigError(
                f"{where} does not have {key}, which looked like a secret when it was written; put it back there, or "
                "have your code read it from the environment"
            )


def _leaves(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping | list | tuple):
        for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(value, f"{where}.{key}" if where else str(key))
    else:
        yield where, tree
