"""What the notes of an evaluation say about the images that are scored."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mtl.core.types import Record
from mtl.experiments.score import _choose_split


def test_of_another_folder_only_labelled_images_are_counted() -> None:
    records = [Record(str(number), "g", "s", "p", content_hash=str(number)) for number in range(5)]
    datamodule: Any = SimpleNamespace(
        family=SimpleNamespace(group_by="group"), hash_records=lambda: records, labelled=records[:3]
    )
    loaded: Any = SimpleNamespace(split=[])
    split, notes = _choose_split(datamodule, loaded, "test")
    assert split == "all" and len(notes) == 1
    assert "all 3 labelled images of the data folder are scored" in notes[0]
