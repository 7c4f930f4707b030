"""Which bits a matrix gets, by what it is for."""

from __future__ import annotations

from collections.abc import Mapping

from flashmoe.errors import ArgumentError
from flashmoe.places import AFFINE_BITS, PROJECTIONS

_RESIDENT = {
    "embedding": ("embed",),
    "lm_head": ("lm_head",),
    "attention": ("q", "q_gate", "k", "v", "o", "qkv", "z", "b", "a", "out"),
    "shared_expert": ("shared_gate", "shared_up", "shared_down"),
    "dense": PROJECTIONS,
}
_OF_WORD = {word: role for role, words in _RESIDENT.items() for word in words}

ROLES = ("resident", *_RESIDENT, "experts", *PROJECTIONS)
"""What bits can be chosen for: all that stays in memory, or a part of it; the routed experts, or
one of their projections. The narrower one counts where both are given."""


def in_role(word: str) -> bool:
    """Whether a resident matrix has a role; routers, norms and other small tensors have none.

    Args:
        word: The last part of the core's name of it.
    """
    return word in _OF_WORD


def roles_of(word: str, routed: bool) -> tuple[str, ...]:
    """The roles of a matrix, the narrowest first.

    Args:
        word: The last part of the core's name of it, such as ``down``.
        routed: Whether it belongs to routed experts.
    """
    return (word, "experts") if routed else (_OF_WORD[word], "resident")


def read_bits_for(asked: Mapping[str, int] | str) -> dict[str, int]:
    """Bits by role.

    Args:
        asked: Such as ``{"resident": 4, "down": 3}``, or the text ``resident=4+down=3``.

    Raises:
        ArgumentError: No such role or width, or not of that form.
    """
    if isinstance(asked, str):
        pairs = [part.partition("=") for part in asked.split("+") if part]
        if not all(equals and bits.isdigit() for _, equals, bits in pairs):
            raise ArgumentError(f"bits_for is ROLE=BITS, or several joined by +, not {asked!r}")
        asked = {role: int(bits) for role, _, bits in pairs}
    for role, bits in asked.items():
        if role not in ROLES:
            raise ArgumentError(f"bits_for has no role {role!r}; it has {', '.join(ROLES)}")
        if bits not in AFFINE_BITS:
            raise ArgumentError(f"bits for {role} must be one of {AFFINE_BITS}, not {bits!r}")
    return dict(asked)
