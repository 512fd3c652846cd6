"""What raytrain relies on beyond Ray's public API: by name, checked before use, each with a public way in its place."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

from raytrain.errors import RaytrainError


@dataclass(frozen=True, eq=False)
class Contract:
    """One thing that raytrain does with Ray's own parts.

    Attributes:
        does: in words that go on "… through Ray's public API".
        needs: Ray's names as `module:attribute.attribute`. `a|b` is either, `()` calls what stands before it, and
            ` with x y` are parameters that a function takes.
        looked_up: what raytrain puts something of its own in place of, or a plain word, and the module that names it
            whenever it needs it: where none does, nothing would change, and nobody would notice.
        proof: tried when all of that is there; whatever it raises breaks the contract.
        buys: figures (benchmarks/LOG.md has more).
        instead: the public way.
    """

    does: str
    needs: tuple[str, ...]
    buys: str
    instead: str
    looked_up: dict[str, str] = field(default_factory=dict)
    proof: Callable[[], Any] | None = None

    def broken(self) -> list[str]:
        """What this Ray does not have, or does not look up."""
        return list(_broken(self))

    def holds(self, public: bool) -> bool:
        """Whether to go the private way: unless the user has chosen the `public` one, or Ray has changed, which is said
        once a process."""
        if public:
            return False
        if (words := self.words()) is not None:
            _say(words)
        return words is None

    def words(self) -> str | None:
        """What to say where this Ray is another one than the contract is about; None where it holds."""
        if not (broken := self.broken()):
            return None
        import ray

        return f"Ray {ray.__version__} lacks {broken[0]}; {self.does} now goes through Ray's public API: {self.instead}"


@contextlib.contextmanager
def standing_in(*places: tuple[Any, str, Any]) -> Iterator[None]:
    """Meanwhile an attribute of Ray's is ours: (owner, name, ours) each."""
    kept = [(owner, name, getattr(owner, name)) for owner, name, _ in places]
    for owner, name, ours in places:
        setattr(owner, name, ours)
    try:
        yield
    finally:
        for owner, name, rays in kept:
            setattr(owner, name, rays)


def find(name: str) -> Any:
    """What a name of a contract stands for: of alternatives, the first that is there.

    Raises:
        LookupError: there is no such thing in this Ray.
    """
    name, *parameters = name.split(" with ")
    module, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except ImportError as error:
        raise LookupError(f"module {module}: {error}") from None
    for part in path.split("."):
        found = _attribute(found, part.removesuffix("()"), name)
        found = found() if part.endswith("()") else found
    taken = inspect.signature(found).parameters if parameters else {}
    if absent := [each for text in parameters for each in text.split() if each not in taken]:
        raise LookupError(f"parameter {absent[0]} of {name}")
    return found


def _attribute(owner: Any, alternatives: str, name: str) -> Any:
    """An attribute of a module, class or instance, or None where only the instances of a class have it."""
    for each in alternatives.split("|"):
        if hasattr(owner, each):
            return getattr(owner, each)
        if inspect.isclass(owner) and any(_declares(kind, each) for kind in owner.__mro__):
            return None
    raise LookupError(name)


def _declares(kind: type, name: str) -> bool:
    return name in kind.__dict__.get("__annotations__", {}) or any(name in names_in(code) for code in codes_of(kind))


@cache
def _broken(contract: Contract) -> tuple[str, ...]:
    broken = [problem for name in contract.needs if (problem := _problem(find, name))]
    for name, module in contract.looked_up.items():
        if problem := (":" in name and _problem(find, name)) or _problem(_looks_up, module, name):
            broken.append(problem)
    if not broken and contract.proof and (problem := _problem(contract.proof)):
        broken.append(problem)
    return tuple(broken)


def _problem(attempt: Callable[..., Any], *arguments: str) -> str | None:
    try:
        attempt(*arguments)
    except RaytrainError:
        raise  # the user's Ctrl-C, say
    except LookupError as error:
        return str(error.args[0])
    except Exception as error:  # noqa: BLE001 - whatever another Ray does here, the public way is open
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return None


def _looks_up(module: str, name: str) -> None:
    word = name.rpartition(":")[2].rpartition(".")[2]
    if not any(word in names_in(code) for code in codes_of(importlib.import_module(module))):
        raise LookupError(f"a look-up of {name} in {module}")


def codes_of(owner: ModuleType | type) -> Iterator[CodeType]:
    """The code of every function of a module, its classes' included, or of a class; decorated ones too."""
    for value in list(vars(owner).values()):
        value = inspect.unwrap(value) if callable(value) and hasattr(value, "__wrapped__") else value
        value = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
        if isinstance(value, FunctionType):
            yield value.__code__
        elif inspect.isclass(value) and isinstance(owner, ModuleType) and value.__module__ == owner.__name__:
            yield from codes_of(value)


def names_in(code: CodeType) -> set[str]:
    """Globals, attributes and strings that a function's code names, those of the functions within it included."""
    found = {*code.co_names, *(each for each in code.co_consts if isinstance(each, str))}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found |= names_in(inner)
    return found


@cache
def _say(words: str) -> None:
    print(f"raytrain: {words}", file=sys.stderr, flush=True)  # noqa: T201
