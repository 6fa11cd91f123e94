"""How much of each split is used, in numbers and in words: one place for the log and the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mtl.core.types import Record

UNUSED = "not used, because no active task has a label there or the image only serves evaluation"


def split_row(name: str, used: Iterable[Record], split: Mapping[str, str]) -> dict[str, Any]:
    """Return the numbers of one split: images and groups that are used, and how many images beside them are not.

    Args:
        name: `train`, `val` or `test`.
        used: What a run uses of it.
        split: Split name by sample id, for all samples.
    """
    records = list(used)
    return {
        "split": name,
        "images": len(records),
        "groups": len({record.group for record in records}),
        "unused": sum(where == name for where in split.values()) - len(records),
    }


def unused_words(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return what a run does not use, so that a count of the whole split can be understood; empty where it uses all.

    Args:
        rows: As `split_row` gives them.
    """
    counts = [f"{row['split']} {row['unused']}" for row in rows if row["unused"]]
    return f"{UNUSED}: {', '.join(counts)}" if counts else ""
