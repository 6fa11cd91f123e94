"""Terms of the losses: means over labelled samples of all ranks, under the same names everywhere."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtl.core.task import higher_is_better
from mtl.training import loss_terms
from mtl.training.loss_terms import LossTerms, latest_losses


def terms(**values: float) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def add(into: LossTerms, split: str, present: list[bool], **values: float) -> None:
    assert float(into.sum_of("cells", terms(**values))) == pytest.approx(sum(values.values()))
    into.sum_of("grade", terms(only=9.0))
    into.add(split, {"cells": torch.tensor(present), "grade": torch.tensor(present)})


def means(of: LossTerms, split: str, others: list[Any], patch: pytest.MonkeyPatch) -> dict[str, float]:
    patch.setattr(loss_terms, "gather_objects", lambda value, module: others)
    return of.means(split, SimpleNamespace())  # type: ignore[arg-type]


def test_means_weigh_labelled_samples_of_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, idle = LossTerms(), LossTerms(), LossTerms()
    add(first, "train", [True, True, True], box=1.0, score=10.0)
    add(first, "train", [False, False, False], box=0.0, score=0.0)
    add(second, "train", [True, False, False], box=5.0, score=2.0)
    alone = means(second, "train", [], monkeypatch)
    assert alone == {"train/cells/loss_box": 5.0, "train/cells/loss_score": 2.0}  # `grade` has one term, which is its loss
    parts: list[Any] = []
    monkeypatch.setattr(loss_terms, "gather_objects", lambda value, module: parts.append(value) or [])
    for rank in (first, second, idle):
        rank.means("train", SimpleNamespace())  # type: ignore[arg-type]
    for rank, of in enumerate((first, second, idle)):
        others = [part for number, part in enumerate(parts) if number != rank]
        together = means(of, "train", others, monkeypatch)
        assert together == {"train/cells/loss_box": 2.0, "train/cells/loss_score": 8.0}


def test_splits_and_epochs_are_kept_apart_and_nothing_labelled_is_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    found = LossTerms()
    add(found, "train", [True], box=1.0, score=1.0)
    add(found, "val", [False], box=0.0, score=0.0)
    assert all(math.isnan(value) for value in means(found, "val", [], monkeypatch).values())
    found.reset("val")
    assert means(found, "val", [], monkeypatch) == {} and means(found, "train", [], monkeypatch)["train/cells/loss_box"] == 1.0
    found.reset("train")
    assert means(found, "train", [], monkeypatch) == {}


def test_a_batch_that_is_not_counted_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank without an image of its own computes one that belongs to another rank."""
    found = LossTerms()
    found.sum_of("cells", terms(box=1.0, score=1.0))
    assert means(found, "val", [], monkeypatch) == {}


def test_a_term_is_better_when_it_falls() -> None:
    """Else reports would draw it beside the metrics of its task."""
    assert not higher_is_better("val/cells/loss_box")


def test_the_losses_of_a_step_leave_out_tasks_without_a_label() -> None:
    losses = {"cells": torch.tensor(2.0, requires_grad=True), "grade": torch.tensor(0.0)}
    found = latest_losses(losses, {"cells": 4.0, "grade": 0.0}, torch.tensor(2.0))
    assert {name: float(value) for name, value in found.items()} == {"train/loss": 2.0, "train/cells/loss": 2.0}
    assert not any(value.requires_grad for value in found.values())
