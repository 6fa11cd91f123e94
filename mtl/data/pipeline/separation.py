"""What a split keeps apart, computed from the records and the split itself: the one text of log, results and report."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from mtl.core.types import Record
from mtl.data.pipeline.splits import SPLITS, Split

UNNAMED = "group"  # of a family that does not say what its groups are: known of every sample


def separation(records: Sequence[Record], split: Split, unit: str, finer: str | None = None) -> str:
    """Return the sentences about what a split keeps apart, as far as it is known of the images.

    Args:
        records: All samples; those in no split do not count.
        split: Split name by sample id.
        unit: What the split keeps apart (`DataFamily.group_by`).
        finer: What training and validation are kept apart by, where that is something else.
    """
    used = [record for record in records if split.get(record.sample_id) in SPLITS]
    known = [record for record in used if unit == UNNAMED or unit in record.groups]
    count = f"The {unit} is known for {len(known)} of {len(used)} images"
    shared = _shared(known, split, unit, finer is not None)
    if shared:
        sentence = f"{_counted(len(shared), unit)} in two splits (first: {shared[0]}), so that results are too good."
    elif finer:
        sentence = f"No {unit} of a test image is in training or selection; those two are kept apart by {finer} only."
    else:
        sentence = f"No {unit} is in two splits: training, selection and test are kept apart by {unit}."
    if not known:
        sentence = f"{count}: all are assumed independent."
    elif len(known) < len(used):
        sentence = f"{count}; the others are assumed independent. Of the known ones: {sentence[0].lower()}{sentence[1:]}"
    return " ".join([sentence, *_wider(used, split, unit)])


def _shared(records: Sequence[Record], split: Split, unit: str, test_only: bool) -> list[str]:
    """Return the ids of a unit that serve two splits; with `test_only` training and validation count as one."""
    sides: dict[str, set[str]] = defaultdict(set)
    for record in records:
        side = split[record.sample_id]
        name = record.group if unit == UNNAMED else record.groups[unit]
        sides[name].add("development" if test_only and side != "test" else side)
    return sorted(name for name, found in sides.items() if len(found) > 1)


def _wider(records: Sequence[Record], split: Split, unit: str) -> list[str]:
    """Return a sentence for each unit wider than the groups that is in two splits (patients, where fields are kept apart)."""
    sentences = []
    for other in dict.fromkeys(name for record in records for name in record.groups if name != unit):
        known = [record for record in records if other in record.groups]
        inside: dict[str, set[str]] = defaultdict(set)
        for record in known:
            inside[record.group].add(record.groups[other])
        if all(len(ids) == 1 for ids in inside.values()) and (shared := _shared(known, split, other, False)):
            sentences.append(f"{_counted(len(shared), other)} in two splits (first: {shared[0]}).")
    return sentences


def _counted(count: int, unit: str) -> str:
    return f"1 {unit} is" if count == 1 else f"{count} {unit}s are"
