"""Parts of a network as settings name them: `backbone`, `adapters`, `neck.<name>`, `head.<task>`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ENCODER = "encoder"  # as a source of features; every other one is a neck


def covers(name: str, part: str) -> bool:
    """Return whether a name used in settings (`head`) means a part (`head.presence`)."""
    return part == name or part.startswith(f"{name}.")


def part_of(parameter: str) -> str:
    """Return the part that a parameter of `MultiTaskModel` belongs to by its name; adapters count to the backbone here."""
    steps = parameter.split(".")
    if steps[0] in ("necks", "heads") and len(steps) > 1:
        return f"{steps[0][:-1]}.{steps[1]}"
    return "backbone" if steps[0] == "encoder" else steps[0]


def neck_chain(source: str, necks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the necks that features pass through before a reader gets them, the one nearest to the encoder first.

    Args:
        source: What the reader names in `features`: `encoder` or a neck.
        necks: The `necks` section; each may name the neck it reads in its own `features`.

    Raises:
        ValueError: The necks read each other in a circle.
    """
    chain: list[str] = []
    while source != ENCODER:
        if source in chain:
            raise ValueError(" -> ".join([*reversed(chain), source]))
        chain.append(source)
        source = necks[source].get("features", ENCODER)
    return chain[::-1]
