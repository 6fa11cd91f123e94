"""Mends what shares of single sources leave unbalanced in a split: ratios over all sources, and labels in every part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

Unit = tuple[str, int]  # its name, and how many samples it has
LEAST_KEPT = 2 / 3  # of its share, of a part that gives a unit away without getting one


@dataclass
class _Place:
    line: int  # of which source it is
    part: int
    weight: float  # in units: a volume of many slices weighs as much as a single picture


def balanced(lines: list[list[list[Unit]]], shares: np.ndarray, labels: Mapping[str, frozenset[str]]) -> list[list[str]]:
    """Return the units of each part, as few of them moved as will do.

    Args:
        lines: By source and part, units.
        shares: Of the parts; their sum is 1.
        labels: What is known of each unit. A label that as many units have as there are parts is in every part.
    """
    places: dict[str, _Place] = {}
    for number, line in enumerate(lines):
        sizes = [size for part in line for _, size in part]
        mean = sum(sizes) / max(len(sizes), 1)
        places |= {name: _Place(number, index, size / mean) for index, part in enumerate(line) for name, size in part}
    if len(lines) > 1:
        _keep_ratios(places, len(lines), shares)
    for label in _spreadable(labels, places, len(shares)):
        _spread(label, places, labels, shares)
    return [[name for name, place in places.items() if place.part == index] for index in range(len(shares))]


def _keep_ratios(places: dict[str, _Place], lines: int, shares: np.ndarray) -> None:
    """Move units from the fullest to the emptiest part until none is more than one unit from its share.

    A few units per source, each with a part of every source, would leave little for training.
    """
    while True:
        surplus = np.zeros((lines, len(shares)))
        for place in places.values():
            surplus[place.line, place.part] += place.weight
        surplus -= surplus.sum(axis=1, keepdims=True) * shares
        total = surplus.sum(axis=0)
        if np.abs(total).max() <= 1 + 1e-9:
            return
        full, empty = int(np.argmax(total)), int(np.argmin(total))
        gap = total[full] - total[empty]
        here = [name for name, place in places.items() if place.part == full]
        fitting = [name for name in here if places[name].weight < gap]
        if len(here) < 2 or not fitting:
            return
        # Of the source that has too much of the one and too little of the other itself.
        lopsided = surplus[:, full] - surplus[:, empty]
        chosen = min(fitting, key=lambda name: (-lopsided[places[name].line], abs(places[name].weight - gap / 2)))
        places[chosen].part = empty


def _spreadable(labels: Mapping[str, frozenset[str]], places: dict[str, _Place], parts: int) -> list[str]:
    """Return the labels that enough units have, the rarest first."""
    counts: dict[str, int] = {}
    for name in places:
        for label in labels.get(name, frozenset()):
            counts[label] = counts.get(label, 0) + 1
    return sorted((label for label, count in counts.items() if count >= parts), key=lambda label: (counts[label], label))


def _spread(label: str, places: dict[str, _Place], labels: Mapping[str, frozenset[str]], shares: np.ndarray) -> None:
    """Give each part without a label a unit that has it: in exchange for the least missed one, or as a gift."""
    for lacking in range(len(shares)):
        holders = [
            [name for name, place in places.items() if place.part == part and label in labels.get(name, ())]
            for part in range(len(shares))
        ]
        donor = max(range(len(shares)), key=lambda part: len(holders[part]))
        if holders[lacking] or len(holders[donor]) < 2:
            continue
        back = [name for name, place in places.items() if place.part == lacking]
        swaps = [(name, other) for name in holders[donor] for other in back if _may_go(name, places, labels, other)]
        swaps = [(name, other) for name, other in swaps if _may_go(other, places, labels, name)]
        left = sum(place.part == donor for place in places.values()) - 1
        gifts = [name for name in holders[donor] if _may_go(name, places, labels)]
        if swaps:
            name, other = min(swaps, key=lambda swap: _cost(swap[0], swap[1], places))
            places[name].part, places[other].part = lacking, donor
        elif gifts and left >= LEAST_KEPT * shares[donor] * len(places):
            places[min(gifts, key=lambda name: places[name].weight)].part = lacking


def _may_go(leaving: str, places: dict[str, _Place], labels: Mapping[str, frozenset[str]], coming: str = "") -> bool:
    """Return whether a part keeps a unit with every label of the one that leaves it; `coming` takes its place."""
    stay = [name for name, place in places.items() if place.part == places[leaving].part and name != leaving]
    there = frozenset[str]().union(*(labels.get(name, frozenset()) for name in (*stay, coming)))
    return labels.get(leaving, frozenset()) <= there


def _cost(name: str, other: str, places: dict[str, _Place]) -> tuple[bool, float]:
    """Return how much an exchange changes: within a source and between units of one size, nothing."""
    return places[name].line != places[other].line, abs(places[name].weight - places[other].weight)
