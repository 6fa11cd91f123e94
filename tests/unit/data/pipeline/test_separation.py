"""What is said of a split is computed: it holds for the units that are known, and says for how many images they are."""

from __future__ import annotations

from mtl.core.types import Record
from mtl.data.pipeline.separation import separation


def record(name: str, group: str, **groups: str) -> Record:
    return Record(name, group, "s", f"{name}.png", groups=groups)


THREE = {"a": "train", "b": "val", "c": "test"}


def test_the_claim_needs_every_unit() -> None:
    known = [record(name, f"p{name}", patient=f"p{name}") for name in "abc"]
    apart = "No patient is in two splits: training, selection and test are kept apart by patient."
    assert separation(known, THREE, "patient") == apart
    partly = separation([*known[:2], record("c", "c")], THREE, "patient")
    assert partly == (
        "The patient is known for 2 of 3 images; the others are assumed independent. Of the known ones: no patient is in two "
        "splits: training, selection and test are kept apart by patient."
    )
    none = separation([record(name, name) for name in "abc"], THREE, "patient")
    assert none == "The patient is known for 0 of 3 images: all are assumed independent."
    assert separation([record(name, name) for name in "abc"], THREE, "group").startswith("No group is in two splits")


def test_it_is_computed_on_the_split_and_not_from_its_construction() -> None:
    twice = [record("a", "a", patient="p1"), record("b", "b", patient="p2"), record("c", "c", patient="p1")]
    assert separation(twice, THREE, "patient") == "1 patient is in two splits (first: p1), so that results are too good."
    assert separation(twice, THREE | {"c": "left_out"}, "patient").startswith("No patient is in two splits")


def test_a_unit_wider_than_what_is_kept_apart_is_named() -> None:
    fields = [record(name, f"p/{name}", patient="p", field=f"p/{name}") for name in "abc"]
    assert separation(fields, THREE, "field") == (
        "No field is in two splits: training, selection and test are kept apart by field. "
        "1 patient is in two splits (first: p)."
    )


def test_a_finer_validation_unit_is_not_called_kept_apart() -> None:
    rows = [record(name, group, patient=group, field=name) for name, group in (("a", "p"), ("b", "p"), ("c", "q"))]
    finer = "No patient of a test image is in training or selection; those two are kept apart by field only."
    assert separation(rows, THREE, "patient", "field") == finer
    assert separation(rows, THREE, "patient").startswith("1 patient is in two splits (first: p)")
