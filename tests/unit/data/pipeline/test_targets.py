from __future__ import annotations

import numpy as np
import pytest
from data_fakes import CLASSES, disc, make_objects

from mtl.core.errors import DataError
from mtl.core.task import TaskSpec
from mtl.core.types import Objects
from mtl.imaging.outlines import clip_objects, clip_outline, cut_to_content, fill_outlines
from mtl.kinds.base import Annotations, TaskPrediction, rules_of

DETECTION = TaskSpec("detection", "detection", CLASSES, members=(("infected",), ("healthy",)))
SIZE = (40, 60)


def encode(spec, objects, masks, labels, object_classes, size, min_visible=0.0):
    return rules_of(spec).target(spec, Annotations(size, objects, masks, labels, object_classes, min_visible))


def truth_of(spec, target):
    return rules_of(spec).truth(target)


def is_present(spec, objects, masks, labels):
    return Annotations(SIZE, objects, masks, labels).knows(spec.label)


def label_text(spec, value):
    return rules_of(spec).words(TaskPrediction(spec, truth_of(spec, np.asarray(value)), SIZE))


def square(x: float, y: float, width: float, height: float) -> np.ndarray:
    return np.asarray([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], np.float32)


def one(outline: np.ndarray, label: int = 0) -> Objects:
    return Objects([outline], np.asarray([label]), outline.mean(0, keepdims=True), np.zeros(1, bool))


def brute_force(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Even-odd rule at every pixel centre."""
    rows, columns = np.indices(size) + 0.5
    inside = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(outline, np.roll(outline, -1, 0), strict=True):
        if y0 != y1:
            inside ^= ((y0 <= rows) != (y1 <= rows)) & (columns > x0 + (rows - y0) / (y1 - y0) * (x1 - x0))
    return inside


def test_fill_covers_exactly_the_pixel_centres_inside():
    assert fill_outlines([square(10, 10, 10, 10)], SIZE).sum() == 100
    assert fill_outlines([square(10.4, 10.4, 10, 10)], SIZE).sum() == 100
    assert fill_outlines([square(-5, -5, 15, 10)], SIZE).sum() == 10 * 5
    rng = np.random.default_rng(0)
    for _ in range(20):
        outline = disc(rng.uniform(-5, 65), rng.uniform(-5, 45), rng.uniform(1, 20), 11) + rng.normal(0, 0.3, (11, 2))
        np.testing.assert_array_equal(fill_outlines([outline], SIZE), brute_force(outline, SIZE))


def test_fill_unites_outlines_whichever_way_they_run():
    left, right = square(5, 5, 10, 10), square(10, 5, 10, 10)[::-1]
    assert fill_outlines([left, right], SIZE).sum() == 150
    assert fill_outlines([left[::-1], right], SIZE).sum() == 150
    assert not fill_outlines([], SIZE).any() and not fill_outlines([left[:2]], SIZE).any()


def test_clipping_follows_the_outline_not_its_corners():
    # A diamond centred on the left border: inside it reaches 10 px to the right, and 10 up and down at x = 0.
    diamond = np.asarray([[0, 10], [10, 20], [0, 30], [-10, 20]], np.float32)
    clipped = clip_outline(diamond, SIZE)
    assert [*clipped.min(0), *clipped.max(0)] == [0, 10, 10, 30]
    shifted = clip_outline(diamond - [5, 0], SIZE)
    np.testing.assert_allclose([*shifted.min(0), *shifted.max(0)], [0, 15, 5, 25])


def test_hardly_visible_objects_are_dropped_and_counted():
    # Three quarters outside; the box keeps exactly a quarter.
    objects, dropped = clip_objects(one(square(-7.5, 10, 10, 10)), SIZE, 0.25)
    assert (len(objects), dropped) == (1, 0)
    np.testing.assert_allclose(objects.boxes, [[0, 10, 2.5, 20]])
    assert clip_objects(one(square(-7.6, 10, 10, 10)), SIZE, 0.25)[1] == 1
    assert clip_objects(one(square(70, 10, 10, 10)), SIZE, 0.0)[1] == 1
    # Its box reaches into the corner, the outline does not.
    triangle = np.asarray([[-10, 5], [-10, -10], [5, -10]], np.float32)
    assert clip_objects(one(triangle), SIZE, 0.0)[1] == 1


def test_what_the_picture_does_not_show_is_cut_before_it_moves():
    objects = Objects(
        [square(-5, 10, 10, 10), square(-9, 10, 10, 10), square(30, 10, 10, 10), square(70, 10, 10, 10)],
        np.zeros(4, np.int64), np.asarray([[0, 15], [-4, 15], [35, 15], [75, 15]], np.float32), np.zeros(4, bool),
    )  # fmt: skip
    cut, enough, pointed = cut_to_content(objects, SIZE, 0.25)
    assert cut.ids.tolist() == [0, 1, 2] and enough.tolist() == [True, False, True] and pointed.tolist() == [True, False, True]
    np.testing.assert_array_equal(cut.boxes, [[0, 10, 5, 20], [0, 10, 1, 20], [30, 10, 40, 20]])
    # A mask outline may be shown where the box is not.
    objects.mask_outlines = [square(o[0, 0] - 12, 8, 14, 14) for o in objects.outlines]
    cut, enough, _ = cut_to_content(objects, SIZE, 0.25)
    assert cut.ids.tolist() == [0, 1, 2, 3]
    assert not enough[cut.ids == 3].any() and fill_outlines([cut.mask_outlines[-1]], SIZE).sum() == 2 * 14
    assert max(outline[:, 0].max() for outline in cut.mask_outlines) <= 60


def test_boxes_without_area_never_reach_a_head():
    flat = Objects(
        [square(5, 5, 10, 0), square(5, 5, 0, 10), square(20, 5, 4, 4)],
        np.zeros(3, np.int64),
        np.zeros((3, 2)),
        np.zeros(3, bool),
    )
    target = encode(DETECTION, flat, {}, {}, CLASSES, SIZE)
    np.testing.assert_array_equal(target["boxes"], [[20, 5, 24, 9]])
    assert target["ids"].tolist() == [2]
    assert clip_objects(flat, SIZE)[1] == 2


def test_absent_is_not_empty():
    assert encode(DETECTION, None, {}, {}, CLASSES, SIZE) is None
    empty = encode(DETECTION, make_objects([]), {}, {}, CLASSES, SIZE)
    assert empty["boxes"].shape == (0, 4) and empty["labels"].shape == (0,) and empty["points"].shape == (0, 2)
    grade = TaskSpec("grade", "classification", ("a", "b"), label="class:grade")
    assert encode(grade, None, {}, {}, CLASSES, SIZE) is None
    assert encode(grade, None, {}, {"grade": float("nan")}, CLASSES, SIZE) is None
    assert encode(grade, None, {}, {"grade": 0}, CLASSES, SIZE) == 0
    lesions = TaskSpec("lesions", "segmentation", ("x",), label="mask:lesions")
    assert encode(lesions, make_objects([]), {}, {}, CLASSES, SIZE) is None
    assert encode(lesions, None, {"lesions": np.zeros(SIZE, np.uint8)}, {}, CLASSES, SIZE).sum() == 0


def test_members_decide_what_a_task_sees():
    objects = make_objects([(10, 10), (30, 20), (50, 30)], labels=[0, 1, 1])
    assert encode(DETECTION, objects, {}, {}, CLASSES, SIZE)["labels"].tolist() == [0, 1, 1]
    only_healthy = TaskSpec("h", "heatmap", ("healthy",), members=(("healthy",),))
    target = encode(only_healthy, objects, {}, {}, CLASSES, SIZE)
    assert target["labels"].tolist() == [0, 0] and target["ids"].tolist() == [1, 2]
    np.testing.assert_array_equal(target["points"], [[30, 20], [50, 30]])


def test_masks_use_whole_outlines_even_of_objects_too_hidden_for_a_box():
    cells = TaskSpec("cells", "segmentation", ("cell",), members=(CLASSES,))
    objects = one(square(-9, 10, 10, 10))
    assert len(encode(DETECTION, objects, {}, {}, CLASSES, SIZE, min_visible=0.25)["boxes"]) == 0
    assert encode(cells, objects, {}, {}, CLASSES, SIZE, min_visible=0.25).sum() == 10
    objects.mask_outlines = [square(20, 20, 4, 4)]
    assert encode(cells, objects, {}, {}, CLASSES, SIZE).sum() == 16


def test_multiclass_drawing_needs_a_background_class_or_ignores_the_rest():
    objects = make_objects([(15, 20), (45, 20)], labels=[0, 1])
    spec = TaskSpec("s", "segmentation", ("none", *CLASSES), members=((), ("infected",), ("healthy",)), multilabel=False)
    target = encode(spec, objects, {}, {}, CLASSES, SIZE)
    assert (target[20, 15], target[20, 45], target[0, 0]) == (1, 2, 0)
    without = TaskSpec("s", "segmentation", CLASSES, members=(("infected",), ("healthy",)), multilabel=False)
    target = encode(without, objects, {}, {}, CLASSES, SIZE)
    assert (target[20, 15], target[20, 45], target[0, 0]) == (0, 1, 255)


def test_stored_masks():
    multilabel = TaskSpec("m", "segmentation", ("a", "b"), label="mask:m")
    mask = np.zeros(SIZE, np.uint8)
    mask[0, 0], mask[1, 1] = 1, 2
    target = encode(multilabel, None, {"m": mask}, {}, CLASSES, SIZE)
    assert target.shape == (2, *SIZE) and target[0].sum() == target[1].sum() == 1 and target[1, 1, 1] == 1
    channels = np.stack([mask == 1, mask == 2], axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(encode(multilabel, None, {"m": channels}, {}, CLASSES, SIZE), target)
    multiclass = TaskSpec("m", "segmentation", ("a", "b"), label="mask:m", multilabel=False)
    mask[mask == 2] = 255
    np.testing.assert_array_equal(encode(multiclass, None, {"m": mask}, {}, CLASSES, SIZE), mask)
    mask[0, 0] = 2
    with pytest.raises(DataError, match="values up to 2"):
        encode(multiclass, None, {"m": mask}, {}, CLASSES, SIZE)
    with pytest.raises(DataError, match="values up to 255"):
        encode(multilabel, None, {"m": mask}, {}, CLASSES, SIZE)


def test_truth_keys_follow_the_kind():
    cells = TaskSpec("cells", "segmentation", ("cell",), members=(CLASSES,))
    assert set(truth_of(cells, np.zeros((1, 2, 2)))) == {"mask"}
    assert truth_of(TaskSpec("g", "classification", ("a",), label="class:g"), np.int64(1))["label"].shape == ()


FINDINGS = TaskSpec("findings", "multilabel_classification", ("a", "b", "c"), label="class:findings")
AGE = TaskSpec("age", "regression", (), label="class:age", unit="years")


def test_independent_classes_may_be_known_in_part():
    partly, nothing = {"findings": np.array([1, np.nan, 0])}, {"findings": np.full(3, np.nan)}
    assert is_present(FINDINGS, None, {}, partly)
    assert not is_present(FINDINGS, None, {}, nothing) and not is_present(FINDINGS, None, {}, {})
    target = encode(FINDINGS, None, {}, partly, (), SIZE)
    assert target.dtype == np.float32
    np.testing.assert_array_equal(truth_of(FINDINGS, target)["labels"], [1, np.nan, 0])
    assert encode(FINDINGS, None, {}, nothing, (), SIZE) is None
    rows = rules_of(FINDINGS).stack(FINDINGS, [target, None], SIZE)
    assert rows.shape == (2, 3) and rows[1].isnan().all() and rows[0].isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("values", [[1, 0], [1, 0, 2], [0.5, 0, 0], 1.0])
def test_impossible_labels_of_independent_classes_are_refused(values):
    with pytest.raises(DataError, match=r"expected 1 \(true\), 0 \(not\) or NaN.*a, b, c"):
        encode(FINDINGS, None, {}, {"findings": np.asarray(values, float)}, (), SIZE)


def test_labels_in_words():
    assert label_text(FINDINGS, np.array([1, np.nan, 0])) == "a, b?" and label_text(FINDINGS, np.zeros(3)) == "none"
    assert label_text(AGE, 61.23456) == "61.23 years" and label_text(TaskSpec("x", "regression", ()), 2.0) == "2"
    assert label_text(TaskSpec("cell", "classification", CLASSES), 1.0) == CLASSES[1]
    assert encode(AGE, None, {}, {"age": 61.25}, (), SIZE) == np.float32(61.25)
    assert encode(AGE, None, {}, {"age": float("nan")}, (), SIZE) is None
