"""Which images an evaluation scores, and what its notes say about them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from mtl.core.errors import DataError
from mtl.core.types import Record
from mtl.evaluation.chosen import ChosenSplit, choose_split

STORED = {"a": "train", "b": "train", "c": "val", "d": "test", "e": "test"}


def choose(present: dict[str, str], wanted: str | None, elsewhere: bool = False) -> tuple[ChosenSplit, dict[str, str]]:
    """Choose among images of the given names and contents; return also the split that was applied."""
    records = [Record(name, name, "s", "p", content_hash=content) for name, content in present.items()]
    applied: dict[str, str] = {}
    datamodule: Any = SimpleNamespace(
        family=SimpleNamespace(group_by="group"), hash_records=lambda: records, labelled=records,
        use_split=applied.update, separation="No group is in two splits.",
    )  # fmt: skip
    rows = [{"sample_id": n, "split": s, "content_hash": n, "source": "s", "group": n} for n, s in STORED.items()]
    return choose_split(datamodule, SimpleNamespace(split=rows), wanted, elsewhere), applied  # type: ignore[arg-type]


def here(*names: str) -> dict[str, str]:
    return {name: name for name in names}


def test_of_another_folder_only_labelled_images_are_counted() -> None:
    records = [Record(str(number), "g", "s", "p", content_hash=str(number)) for number in range(5)]
    datamodule: Any = SimpleNamespace(
        family=SimpleNamespace(group_by="group"), hash_records=lambda: records, labelled=records[:3]
    )
    loaded: Any = SimpleNamespace(split=[])
    chosen = choose_split(datamodule, loaded, None, elsewhere=True)
    assert chosen.name == "all" and len(chosen.notes) == 1 and not chosen.trained
    assert "all 3 labelled images of the data folder are scored" in chosen.notes[0]


def test_added_images_are_left_out_and_named() -> None:
    chosen, applied = choose(here(*STORED, "new"), "test")
    assert chosen == ChosenSplit(
        "test",
        [
            "No group is in two splits.",
            "Of the data folder 1 image (new) is not scored, since the training run did not have it.",
        ],
        "No group is in two splits.",
        True,
    )
    assert applied == {**STORED, "new": "left_out"}


def test_training_images_that_are_gone_or_changed_are_named_and_not_counted() -> None:
    chosen, applied = choose({**here("a", "c", "d", "e"), "b": "edited"}, "test")
    assert chosen.name == "test" and not chosen.trained and applied["b"] == "left_out"
    assert chosen.notes[1:] == [
        "Of the other images of the training run 1 image (b) is missing or changed; baselines that need class counts take them "
        "from all images that are there."
    ]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_split_that_is_not_there_as_it_was_is_refused(elsewhere: bool) -> None:
    changed = {**here("a", "b", "c", "d"), "e": "edited"}
    with pytest.raises(DataError, match=r"of its 2 images 1 changed \(first: e\)\. Restore them, or set split=all"):
        choose(changed, "test", elsewhere)
    with pytest.raises(DataError, match=r"of its 2 images 1 missing \(first: d\)"):
        choose(here("a", "b", "c", "e"), "test", elsewhere)
    with pytest.raises(DataError, match="holds none of the images that the run was trained with"):
        choose(here("x"), "val", elsewhere)


def test_what_is_not_asked_for_by_name_may_be_chosen_for_another_folder_only() -> None:
    damaged = here("a", "b", "c", "e")
    with pytest.raises(DataError, match="test split of the run cannot be scored"):
        choose(damaged, None)
    chosen, _ = choose(damaged, None, elsewhere=True)
    assert chosen.name == "all" and "3 of them were used in training or selection" in chosen.notes[1]
    assert choose(here(*STORED), None, elsewhere=True)[0].name == "test"
    everything, _ = choose(here(*STORED), "all")
    assert everything.name == "all" and everything.trained and "not a test" in everything.notes[0]
