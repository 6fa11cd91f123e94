"""Parasitemia: the share of red cells that are infected, in percent, as a number and as a grade."""

from __future__ import annotations

import bisect

from mtl.core.types import Record
from mtl.metrics.parasitemia import percent_infected

SEVERITY = ("negative", "low", "moderate", "high")
GRADES = (2.0, 10.0)  # percent up to which a field with parasites is of low and of moderate grade


def parasitemia_grade(infected: int, healthy: int) -> int:
    """Return an index of `SEVERITY`; without parasites 0, whether or not there are red cells."""
    return 1 + bisect.bisect_left(GRADES, float(percent_infected(infected, healthy))) if infected else 0


def image_labels(infected: int, healthy: int) -> dict[str, float]:
    """Return the grade `severity` and the number `parasitemia_percent` of an image; empty where it shows no red cell."""
    if infected + healthy == 0:
        return {}
    grade = parasitemia_grade(infected, healthy)
    return {"severity": float(grade), "parasitemia_percent": float(percent_infected(infected, healthy))}


def parasitemia(records: list[Record]) -> float:
    """Return the parasitemia of these images together; NaN where they show no red cell."""
    infected = sum(record.class_counts["Infected"] for record in records)
    return float(percent_infected(infected, sum(record.class_counts["Healthy"] for record in records)))
