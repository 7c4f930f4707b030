"""What is measured: one setting, and the sweeps over several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, TypeVar

KINDS = ("decode", "prefill")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing to measure; ``None`` leaves the choice to :class:`flashmoe.Model`.

    Attributes:
        kind: ``"decode"``: tokens one after another; ``"prefill"``: a prompt at once.
        memory: The model's budget in bytes.
        cap: Limit of the whole process in bytes, page cache included.
        context: Tokens before the first that is decoded.
        prompt: Tokens of a prompt.
        tokens: Tokens decoded.
        experts_per_token: Routed experts a token.
        threads: Threads that compute.
        read: How experts are read.
        batch: Sequences decoded together.
        cold: Whether nothing of the model is in memory or page cache at first.
        options: Other keyword arguments of :class:`flashmoe.Model`.
    """

    kind: str = "decode"
    memory: int | None = None
    cap: int | None = None
    context: int = 64
    prompt: int = 512
    tokens: int = 32
    experts_per_token: int | None = None
    threads: int | None = None
    read: str = "auto"
    batch: int = 1
    cold: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Setting:
        """The opposite of :meth:`as_dict`.

        Args:
            values: Keys as the attributes.
        """
        return cls(**{**values, "options": tuple(values.get("options", {}).items())})


def sweep(first: Setting, values: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every combination of some values; what a kind does not use is not varied.

    Args:
        first: Where the other attributes come from.
        values: For some attributes of :class:`Setting`, what to try.
    """
    unused = {"decode": ("prompt",), "prefill": ("context", "tokens", "batch")}
    out: dict[Setting, None] = {}
    for combination in product(*values.values()):
        setting = replace(first, **dict(zip(values, combination, strict=True)))
        idle = {name: getattr(Setting(), name) for name in unused[setting.kind]}
        out[replace(setting, **idle)] = None
    return list(out)


def in_turns(settings: Sequence[T], rounds: int) -> Iterable[T]:
    """ABBA: there and back, so that a machine that grows slower or faster treats all alike.

    Args:
        settings: What takes turns.
        rounds: How often each has its turn.
    """
    for i in range(rounds):
        yield from settings if i % 2 == 0 else settings[::-1]
