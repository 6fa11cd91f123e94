"""Parts of a network as settings name them: `backbone`, `adapters`, `neck.<name>`, `head.<task>`."""

from __future__ import annotations


def covers(name: str, part: str) -> bool:
    """Say whether a name used in settings (`head`) means a part (`head.presence`)."""
    return part == name or part.startswith(f"{name}.")


def part_of(parameter: str) -> str:
    """Return the part that a parameter of `MultiTaskModel` belongs to by its name; adapters count to the backbone here."""
    steps = parameter.split(".")
    if steps[0] in ("necks", "heads") and len(steps) > 1:
        return f"{steps[0][:-1]}.{steps[1]}"
    return "backbone" if steps[0] == "encoder" else steps[0]
