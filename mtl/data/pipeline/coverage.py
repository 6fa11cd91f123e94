"""What the splits hold of each task: labels and classes that are missing are said before training, or end it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mtl.core.decision import DEFAULT_THRESHOLD, positive_class
from mtl.core.errors import DataError
from mtl.core.task import TaskSpec
from mtl.core.types import Record
from mtl.data.pipeline.split_words import unused_words
from mtl.kinds.base import rules_of


def split_line(scheme: str, table: Sequence[Mapping[str, Any]], left_out: int) -> str:
    """Return one line that says what is in each split.

    Args:
        scheme: How the split was made.
        table: As `MultiTaskDataModule.split_table`.
        left_out: Images that are in no split.
    """
    parts = [
        f"{row['split']} {row['images']} images of {row['groups']} groups"
        + (f" ({', '.join(f'{name} {count}' for name, count in row['classes'].items())})" if row["classes"] else "")
        for row in table
    ]
    parts += [unused] if (unused := unused_words(table)) else []
    if left_out:
        parts.append(f"left out {left_out} official training images that share a group with a test image")
    return f"split {scheme}: {'; '.join(parts)}."


def check_labelled(train: list[str], val: list[str], tasks: list[str], sources: Sequence[str] | None) -> None:
    """Refuse a split that nothing could be learned or chosen from.

    Args:
        train: Tasks without a labelled training image.
        val: Those without a labelled validation image.
        tasks: All active ones.
        sources: Where training images come from; None is everywhere.

    Raises:
        DataError: A task has no training label, or no task has a validation label.
    """
    if train:
        among = f" of {', '.join(sources)}" if sources else ""
        raise DataError(
            f"No training image{among} is labelled for {', '.join(train)}. Expected at least one per task: leave it "
            "out of `tasks`, choose another data.split, or complete the data folder."
        )
    if len(val) == len(tasks):
        raise DataError(
            f"No validation image is labelled for {', '.join(tasks)}, so nothing could choose a checkpoint. Use "
            "another data.split.seed, other data.split.ratios, or more data."
        )


def label_gaps(specs: Mapping[str, TaskSpec], splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Return a sentence per task and split that lacks all its labels or one of its classes.

    Args:
        specs: The active tasks.
        splits: Samples that the run uses, by split.
    """
    found = []
    for split, records in splits.items():
        for task, spec in specs.items():
            labelled = [record for record in records if record.knows(spec.label)]
            if not labelled:
                cannot = {"val": ", so that nothing can choose its thresholds", "test": ", so that it is not tested"}
                found.append(f"{split}: task {task} has no labelled image{cannot.get(split, '')}.")
            elif absent := _absent(spec, labelled):
                names = ", ".join(f"`{name}`" for name in absent)
                stays = f", so that the threshold of {positive_class(spec)} stays at {DEFAULT_THRESHOLD:g}"
                found.append(f"{split}: task {task} has no {names}{stays if split == 'val' and positive_class(spec) else ''}.")
    return found


def _absent(spec: TaskSpec, records: Sequence[Record]) -> list[str]:
    """Return the classes of a task that no record shows; none where the index does not count them."""
    names = {name for members in spec.members or tuple((name,) for name in spec.classes) for name in members}
    counts = rules_of(spec).class_counts(spec, records) if spec.classes else []
    told = any(counts) or any(names & record.class_counts.keys() for record in records)
    return [name for name, count in zip(spec.classes, counts, strict=True) if not count] if told else []
