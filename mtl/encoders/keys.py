"""Names of weights: one form for all, and what became of each."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class KeyReport:
    """What a weight file and a network have in common.

    Attributes:
        source: The file, or the name of the published weights.
        loaded: Keys of the network that received values.
        missing: Keys of the network that the file does not have.
        unexpected: Keys of the file that belong to a part the network has, but not to its layers: another architecture.
        mismatched: Keys with another shape, as `key: file shape, network shape`.
        adapted: Loaded keys whose values were changed to fit another number of input channels.
        leftover: Keys of the file for parts that the network does not have (classifier, projection head, decoder, adapters),
            and those of a second copy of the network.
        kept: Keys of the network that were to stay at their random start.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    adapted: tuple[str, ...] = ()
    leftover: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """True if every layer of the network was loaded and nothing contradicts it."""
        return not (self.missing or self.unexpected or self.mismatched)

    def describe(self) -> list[str]:
        """Return lines for the log."""
        lines = [f"Weights from {self.source}: {len(self.loaded)} keys loaded"]
        for title, keys in (
            ("adapted to the input channels", self.adapted),
            ("missing in the file", self.missing),
            ("unexpected in the file", self.unexpected),
            ("of another shape", self.mismatched),
            ("left over (parts this encoder does not have)", self.leftover),
            ("kept at their random start", self.kept),
        ):
            if keys:
                lines.append(f"  {len(keys)} {title}: {', '.join(keys)}")
        return lines


def canonical(name: str) -> str:
    """Return a module or parameter name in the form in which timm's full and features-only networks agree.

    The features-only wrappers turn `stages.0` into `stages_0` or put the network under `model.`.
    """
    return re.sub(r"^(model|body)\.", "", name).replace("_", ".")


def spelled(name: str) -> str:
    """Return a module name of the body as timm's full network spells it: `stages_0.blocks` -> `stages.0.blocks`."""
    return re.sub(r"^([A-Za-z]+)_(\d+)(?=\.|$)", r"\1.\2", re.sub(r"^(model|body)\.", "", name))


def under(name: str, prefix: str) -> bool:
    """Return whether a module or parameter is `prefix` itself or lies inside it."""
    name, prefix = canonical(name), canonical(prefix)
    return name == prefix or name.startswith(prefix + ".")
