"""Which images an evaluation scores: those of the stored split, as long as they are the same, or all of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mtl.core.errors import DataError
from mtl.core.types import Record
from mtl.data.pipeline.datamodule import MultiTaskDataModule
from mtl.data.pipeline.splits import LEFT_OUT
from mtl.runs.loading import LoadedModel

DEFAULT = "test"
# What a reader must know about figures on the images of the training run.
OWN_SPLIT_NOTES = {
    "val": "The checkpoint and the thresholds were chosen on these images: these figures are not a test.",
    "train": "The network was trained on these images: these figures are not a test.",
    "all": "All images are scored, those of training and selection among them: these figures are not a test.",
}


@dataclass
class ChosenSplit:
    """The images that are scored.

    Attributes:
        name: `train`, `val`, `test` or `all`.
        notes: What a reader of the figures must know of them.
        kept_apart: What the split of the run keeps apart; empty for other images than those of the run.
        trained: All training images of the run are there too, so that what depends on them can be counted.
    """

    name: str
    notes: list[str] = field(default_factory=list)
    kept_apart: str = ""
    trained: bool = False


def choose_split(datamodule: MultiTaskDataModule, loaded: LoadedModel, wanted: str | None, elsewhere: bool) -> ChosenSplit:
    """Apply the stored split to the images that are unchanged, and choose what is scored.

    The same image means the same name and the same content: another folder can use the same names for other images.

    Args:
        datamodule: Of the images that are there.
        loaded: The checkpoint, with the split of its run.
        wanted: What was asked for; None is the test split, or all images of a folder that does not hold it.
        elsewhere: The folder is not the one that training read from.

    Raises:
        DataError: The images of the split that was asked for are not there as they were.
    """
    found = {record.sample_id: record.content_hash for record in datamodule.hash_records()}
    stored = {row["sample_id"]: row for row in loaded.split}
    same = {name for name, row in stored.items() if found.get(name) == row["content_hash"]}
    split = wanted or DEFAULT
    rows = list(stored.values()) if split == "all" else [row for row in stored.values() if row["split"] == split]
    gone = [row["sample_id"] for row in rows if row["sample_id"] not in same]
    if gone or (split == "all" and len(found) > len(same)) or not rows:
        if split == "all" or (wanted is None and elsewhere):
            return ChosenSplit("all", _notes_on_others(datamodule, loaded, same))
        raise DataError(_refusal(split, rows, gone, found, bool(same)))
    datamodule.use_split({name: stored[name]["split"] if name in same else LEFT_OUT for name in found})
    apart = datamodule.separation
    notes = [apart if split == "test" else OWN_SPLIT_NOTES[split]]
    if added := [name for name in found if name not in stored]:
        it = "it" if len(added) == 1 else "them"
        notes.append(f"Of the data folder {_images(added)} not scored, since the training run did not have {it}.")
    trained = all(name in same for name, row in stored.items() if row["split"] == "train")
    if other := [name for name in stored if name not in same]:
        counts = "" if trained else "; baselines that need class counts take them from all images that are there"
        notes.append(f"Of the other images of the training run {_images(other)} missing or changed{counts}.")
    return ChosenSplit(split, notes, apart, trained)


def _images(names: Sequence[str]) -> str:
    return f"1 image ({names[0]}) is" if len(names) == 1 else f"{len(names)} images (first: {names[0]}) are"


def _refusal(split: str, rows: list[dict[str, Any]], gone: list[str], found: dict[str, str], any_same: bool) -> str:
    """Return why a split cannot be scored, and what can."""
    instead = "set split=all to score all images of the folder"
    if not rows:
        return f"The training run has no image in its {split} split. Choose another split, or {instead}."
    if not any_same:
        return (
            f"The data folder holds none of the images that the run was trained with, so that it has no {split} split. Set "
            f"data.root to the folder of the run, or {instead}."
        )
    changed = sum(name in found for name in gone)
    parts = [f"{len(gone) - changed} missing"] * (changed < len(gone)) + [f"{changed} changed"] * bool(changed)
    return (
        f"The {split} split of the run cannot be scored: of its {len(rows)} images {' and '.join(parts)} (first: {gone[0]}). "
        f"Restore them, or {instead}."
    )


def _notes_on_others(datamodule: MultiTaskDataModule, loaded: LoadedModel, same: set[str]) -> list[str]:
    """Return what a reader must know where all images of a folder are scored that is not exactly that of the run."""
    unit = datamodule.family.group_by
    scored: list[Record] = datamodule.labelled
    images = "Not the images of the training run" if not same else "Not only the images of the training run"
    development = [row for row in loaded.split if row["split"] in ("train", "val")]
    used, groups = {row["content_hash"] for row in development}, {(row["source"], row["group"]) for row in development}
    notes = [
        f"{images}: all {len(scored)} labelled images of the data folder are scored, and baselines that need class counts take "
        "them from these images."
    ]
    if seen := sum(record.content_hash in used for record in scored):
        notes.append(f"{seen} of them were used in training or selection, so these figures are not a test.")
    if akin := sum(record.content_hash not in used and (record.source, record.group) in groups for record in scored):
        notes.append(
            f"{akin} other images bear the name of a {unit} of training or selection; if it is the same {unit}, these figures "
            "are too good."
        )
    return notes
