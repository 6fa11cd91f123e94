"""Images that the report shows, and how whole images reach the evaluator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, SampleMeta, TaskBatch, Window
from mtl.evaluation import examples
from mtl.evaluation.examples import ExampleKeeper, extremes, masks_for_pictures
from mtl.inference.scoring import WholeImageScorer
from mtl.metrics.evaluator import Evaluator

SPECS = {
    "grade": TaskSpec("grade", "classification", ("a", "b"), label="class:grade"),
    "mask": TaskSpec("mask", "segmentation", ("speck",), label="mask:specks"),
}
THRESHOLDS: dict[str, dict[str, float]] = {"grade": {}, "mask": {"speck": 0.5}}
WINDOW = Window(0, 1, (0.25, 0.25), (0, 0), (0, 0), (16, 24), (32, 32), (16, 24), (80, 110), content=(10, 8, 106, 72))


def pair(name: str, source: str, right: float | None, mask: np.ndarray | None = None) -> tuple[ImageResult, ImageResult]:
    guess: dict[str, Any] = {"mask": {"probabilities": np.zeros((1, 16, 24), np.float32)}}
    truth: dict[str, Any] = {}
    if right is not None:
        guess["grade"], truth["grade"] = {"probabilities": np.array([right, 1 - right])}, {"label": np.array(0)}
    if mask is not None:
        truth["mask"] = {"mask": mask}
    return ImageResult(name, name, source, WINDOW, guess), ImageResult(name, name, source, WINDOW, truth)


def test_each_source_shows_its_worst_and_best() -> None:
    scores = {f"a{n}": n / 10 for n in range(7)} | {"b0": 0.9, "b1": 0.1, "b2": float("nan")}
    sources = {name: name[0] for name in scores}
    assert extremes(scores, sources, 2) == [
        ("Worst examples: a", "a0"), ("Worst examples: a", "a1"), ("Worst examples: b", "b1"),
        ("Best examples: a", "a5"), ("Best examples: a", "a6"), ("Best examples: b", "b0"),
    ]  # fmt: skip
    alone = extremes({"a0": 0.3, "a1": 0.2, "a2": 0.5}, dict.fromkeys(("a0", "a1", "a2"), "a"), 2)
    assert alone == [("Worst examples", "a1"), ("Worst examples", "a0"), ("Best examples", "a2")]
    assert extremes(scores, sources, 0) == []


def test_keeper_holds_no_more_than_it_shows_whatever_the_order() -> None:
    values = np.random.default_rng(0).permutation(20) / 20
    kept = []
    for order in (range(20), reversed(range(20))):
        evaluator = Evaluator(SPECS)
        keeper = ExampleKeeper(evaluator, THRESHOLDS, 2)
        for index in order:
            found = pair(f"i{index:02d}", "left" if index < 12 else "right", float(values[index]))
            evaluator.update(*found)
            keeper(*found)
            assert len(keeper.results) <= 8
        unlabelled = pair("none", "left", None)
        evaluator.update(*unlabelled)
        keeper(*unlabelled)
        assert keeper.results.keys() == {name for _, name in keeper.extremes()} and "none" not in keeper.results
        kept.append(keeper.extremes())
    assert kept[0] == kept[1] and len(kept[0]) == 8
    assert [keeper.scores[name] for _, name in kept[0][:2]] == sorted(values[:12])[:2]


def test_masks_of_the_original_are_kept_small(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.zeros((1, 80, 110), np.uint8)
    mask[0, 40, 58] = 1  # in the content of 64 x 96 at (48, 32)
    mask[0, 0, 0] = 1  # on the border that was cut off
    evaluator = Evaluator(SPECS, native=True)
    found = pair("i", "left", None, mask)
    evaluator.update(*found)
    for longest, size, place in ((1000, (64, 96), [32, 48]), (24, (16, 24), [8, 12])):
        monkeypatch.setattr(examples, "LONGEST", longest)
        keeper = ExampleKeeper(evaluator, THRESHOLDS, 1)
        keeper(*found)
        small = keeper.results["i"][1].tasks["mask"]["mask"]
        assert small.shape == (1, *size) and small.dtype == np.uint8 and np.argwhere(small[0]).tolist() == [place]
    assert found[1].tasks["mask"]["mask"].shape == (1, 80, 110)
    index = {"tissue": TaskSpec("tissue", "segmentation", ("x", "y", "z"), multilabel=False)}
    classes = np.full((80, 110), 2, np.uint8)
    truth = ImageResult("i", "i", "left", WINDOW, {"tissue": {"mask": classes}})
    assert (masks_for_pictures(truth, index).tasks["tissue"]["mask"] == np.full((16, 24), 2)).all()


class Blank(nn.Module):
    """Decodes an empty mask."""

    def __init__(self) -> None:
        super().__init__()
        self.specs = {"mask": SPECS["mask"]}
        self.heads = {"mask": type("Head", (), {"needs_boxes": False})()}

    def decode(self, outputs: Any, boxes: Any) -> Any:
        return {"mask": [{"probabilities": torch.zeros(1, 16, 24)} for _ in outputs]}


def test_scorer_asks_for_the_truth_in_the_raster_of_the_evaluator() -> None:
    asked = []

    def truth(sample_id: str, native: bool = False) -> ImageResult:
        asked.append((sample_id, native))
        size = WINDOW.original_size if native else WINDOW.working_size
        return pair(sample_id, "left", None, np.ones((1, *size), np.uint8))[1]

    for native in (False, True):
        evaluator = Evaluator({"mask": SPECS["mask"]}, native=native)
        scorer = WholeImageScorer(Blank(), evaluator, truth)  # type: ignore[arg-type]
        batch = TaskBatch(torch.zeros(1, 3, 32, 32), {}, {}, [SampleMeta("i", "p", "left", WINDOW)])
        scorer.update({"mask": torch.zeros(1)}, batch)  # type: ignore[arg-type]
        assert evaluator.metrics["mask"].records[0]["truth"] == (80 * 110 if native else 16 * 24)
    assert asked == [("i", False), ("i", True)]
