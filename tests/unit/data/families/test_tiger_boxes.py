"""Boxes of cells: which count, where their points lie, and what a wrong COCO file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiger_tools import BOTH, EMPTY, SIZE, box, image, put_coco, put_mask, read, refusal

from mtl.core.types import REGION
from mtl.data.families.tiger.crowds import Crowd
from mtl.data.families.tiger.family import Tiger
from mtl.data.formats.tables import base_name


def test_boxes_are_cut_at_the_edge_and_points_are_their_centres(folder: Path) -> None:
    family, records = read(folder)
    objects = family.read_labels(records[f"cells/{BOTH}"]).objects
    assert objects is not None and not objects.derived.any() and objects.ids.tolist() == [0, 1]
    np.testing.assert_array_equal(objects.boxes, [[20, 10, 36, 26], [50, 30, 60, 40]])
    np.testing.assert_array_equal(objects.points, [[28, 18], [58, 38]])
    assert all(len(outline) == 4 for outline in objects.outlines)


@pytest.mark.parametrize(
    "name",
    [
        f"images/{BOTH}.png", f"{BOTH}.png", f"./tissue-cells/images/{BOTH}.PNG", f"C:\\data\\images\\{BOTH.lower()}.png", BOTH,
        f"..\\images/{BOTH}.png ",
    ],
)  # fmt: skip
def test_only_the_base_name_counts(folder: Path, name: str) -> None:
    put_coco(folder, [{"id": 1, "file_name": name}], [box(1, 1, 0, 0, 8, 8)])
    _, records = read(folder)
    assert records[f"cells/{BOTH}"].class_counts["lymphocyte"] == 1
    assert not records[f"cells/{EMPTY}"].knows("objects")
    assert "\\" not in base_name(name) and "/" not in base_name(name)


@pytest.mark.parametrize(
    ("annotations", "says"),
    [
        ([box(41, 5, 1, 1, 8, 8)], "annotation 41: there is no image with id 5"),
        ([box(42, 7, 1, 1, 8, 8, category=3)], "annotation 42: unknown category 3; expected one of 1"),
        ([box(43, 7, 1, 1, 0, 8)], "annotation 43: the box is [1, 1, 0, 8]; expected x, y, width, height with an area"),
        ([box(43, 7, 1, 1, 8, -8)], "annotation 43: the box is"),
        ([box(44, 7, 1, 1, 8)], "annotation 44: the box is [1, 1, 8]"),
        ([box(44, 7, 1, 1, 8, float("nan"))], "annotation 44: the box is"),
        ([{"id": 44, "image_id": 7, "category_id": 1}], "annotation 44: the box is None"),
        ([{"id": 44, "image_id": [7], "category_id": 1}], "annotation 44: there is no image"),
        ([box(45, 7, 60, 1, 16, 16)], f"annotation 45: the box around (68, 9) lies outside `{BOTH}.png`, which is 60 x 40"),
        ([box(46, 7, -16, 1, 16, 16)], "annotation 46: the box around (-8, 9)"),
        (["x"], "annotations[0]: expected an object"),
    ],
)
def test_wrong_boxes(folder: Path, annotations: list[Any], says: str) -> None:
    path = put_coco(folder, [image(7, BOTH)], annotations)
    text = refusal(folder)
    assert says in text and str(path) in text and text.startswith("1 error below")
    assert len(Tiger(root=str(folder)).check().errors) == 1


@pytest.mark.parametrize("corners", [(55, 1), (-10, 1), (52, 1), (20, 32), (20, -15)])  # the third: centre on the border
def test_boxes_whose_centre_is_beyond_the_border_are_left_out(folder: Path, corners: tuple[int, int]) -> None:
    boxes = [box(1, 7, *corners, 16, 16), box(2, 7, 50, 20, 16, 16), box(3, 9, *corners, 16, 16)]
    path = put_coco(folder, [image(7, BOTH), image(9, EMPTY)], boxes)
    family, records = read(folder)
    objects = family.read_labels(records[f"cells/{BOTH}"]).objects
    assert objects is not None and objects.ids.tolist() == [1] and objects.points.tolist() == [[58, 28]]
    assert [records[f"cells/{name}"].class_counts["lymphocyte"] for name in (BOTH, EMPTY)] == [1, 0]
    assert records[f"cells/{EMPTY}"].knows("objects")
    report = family.check()
    (lost,) = family.lost_labels()
    assert report.errors == [] and (lost.lost, lost.total, lost.what) == (2, 3, "boxes") and str(path) in lost.why


@pytest.mark.parametrize(
    ("images", "says"),
    [
        ([image(7, BOTH), image(8, BOTH)], f"lists `{BOTH}.png` twice, as image 8 too"),
        ([image(7, BOTH), image(8, BOTH.lower())], "twice, as image 8 too"),
        ([image(7, BOTH), image(7, EMPTY)], f"image id 7 is that of `{BOTH}.png` and of `{EMPTY}.png`"),
        ([{"id": 7}], "images[0]: expected an object with `id` and `file_name`"),
        ([{**image(7, BOTH), "width": 40, "height": 60}], "with 40 x 60 pixels, but the image has 60 x 40"),
    ],
)
def test_wrong_lists_of_images(folder: Path, images: list[Any], says: str) -> None:
    put_coco(folder, images, [])
    assert says in refusal(folder)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"images": [{"id": 1, "file_name": "a.p', "is no valid JSON, or cut off"),
        ("", "is no valid JSON, or cut off"),
        ("[]", "expected an object with lists `images` and `annotations`"),
        ('{"images": []}', "expected an object with lists"),
    ],
)
def test_broken_coco_files(folder: Path, text: str, says: str) -> None:
    path = folder / "tissue-cells" / "tiger-coco.json"
    path.write_text(text)
    message = refusal(folder)
    assert says in message and str(path) in message and "Traceback" not in message


def test_categories(folder: Path) -> None:
    categories = [{"id": 1, "name": "monocytes"}, {"id": 2, "name": "Lymphocytes"}]
    boxes = [box(1, 7, 0, 0, 8, 8), box(2, 7, 8, 0, 8, 8, category=2), box(3, 7, 8, 0, 8, 8, category=2)]
    put_coco(folder, [image(7, BOTH)], boxes, categories=categories)
    family, records = read(folder)
    assert records[f"cells/{BOTH}"].class_counts["lymphocyte"] == 1
    notes = " ".join(family.check().notes)
    assert "1 boxes of other categories are left out" in notes and "1 boxes are there more than once; each counts once" in notes
    put_coco(folder, [image(7, BOTH)], boxes, categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    assert "expected a category whose name begins with `lymphocyte`" in refusal(folder)


def test_files_that_miss_their_partner_are_noted(folder: Path) -> None:
    put_mask(folder / "tissue-bcss" / "masks" / "gone_[1, 2, 3, 4].png")
    put_coco(folder, [image(7, BOTH), image(8, "gone too"), image(9, EMPTY)], [box(1, 8, 900, 900, 8, 8)])
    family, records = read(folder)
    assert "gone too.png listed, but there is no such image" in " ".join(family.check().notes)
    masks, listed = family.lost_labels()
    assert masks.lost == 1 and "there is no image for gone_[1, 2, 3, 4].png" in masks.why
    # One image of this set is not listed, so that the entry may be about it, under another name.
    assert (listed.lost, listed.total, listed.what) == (1, 3, "listed images")
    assert len(records) == 5 and family.check().errors == []
    (folder / "tissue-cells" / "tiger-coco.json").unlink()
    family, records = read(folder)
    assert not any(record.knows("objects") for record in records.values())
    assert any("there is no tiger-coco.json, so that no cell is labelled" in note for note in family.check().notes)


# -- what annotations mean ---------------------------------------------------------------------------------------------


def crowd(number: int, of: int, segmentation: Any, *corners: float) -> dict[str, Any]:
    return {**box(number, of, *corners), "iscrowd": 1, "segmentation": segmentation}


def test_crowds_are_no_cells_and_their_area_is_not_looked_at(folder: Path) -> None:
    rows, columns = SIZE
    runs = [0, 30 * rows, 30 * rows]  # the left half, down the columns
    boxes = [box(1, 7, 20, 10, 16, 16), box(2, 7, 50, 30, 16, 16), crowd(3, 7, {"size": [rows, columns], "counts": runs})]
    put_coco(folder, [image(7, BOTH), image(9, EMPTY)], [*boxes, crowd(4, 9, [[0, 0, 60, 0, 60, 10, 0, 10]])])
    family, records = read(folder)
    assert [records[f"cells/{name}"].class_counts["lymphocyte"] for name in (BOTH, EMPTY)] == [2, 0]
    both, empty = (family.read_labels(records[f"cells/{name}"]) for name in (BOTH, EMPTY))
    assert both.objects is not None and both.objects.ids.tolist() == [0, 1]
    expected = np.arange(columns)[None].repeat(rows, axis=0) >= 30  # what nobody annotated lies in the left half
    np.testing.assert_array_equal(both.masks[REGION], expected)
    assert empty.masks[REGION].sum() == 30 * 60 and not empty.masks[REGION][:10].any()
    assert any("2 crowds (iscrowd) are no cells" in note for note in family.check().notes)


def test_an_image_that_is_one_crowd_has_no_cell_label(folder: Path) -> None:
    put_coco(folder, [image(7, BOTH), image(9, EMPTY)], [box(1, 7, 20, 10, 16, 16), crowd(2, 9, [], 0, 0, 60, 40)])
    family, records = read(folder)
    assert not records[f"cells/{EMPTY}"].knows("objects") and records[f"cells/{BOTH}"].knows("objects")
    assert family.read_labels(records[f"cells/{EMPTY}"]).objects is None


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ({"size": [60, 40], "counts": [0, 2400]}, "its run lengths are for [height, width] [60, 40]; the image has [40, 60]"),
        ({"size": [40, 60], "counts": [0, 2399]}, "its run lengths do not fill the image"),
        ({"size": [40, 60], "counts": None}, "its run lengths do not fill the image"),
        ([[1, 2, 3]], "its polygons are no lists of x and y"),
        ([[1, 2, 3, 4]], "its polygons need three corners"),
        (None, "it has no area"),
    ],
)
def test_crowds_whose_area_cannot_be_read(folder: Path, segmentation: Any, says: str) -> None:
    path = put_coco(folder, [image(7, BOTH)], [crowd(5, 7, segmentation)])
    assert f"{path}: annotation 5, a crowd of `{BOTH}.png`: {says}" in refusal(folder)


def test_packed_run_lengths_are_those_of_coco() -> None:
    area = np.random.default_rng(0).random((40, 60)) > 0.7
    area[5:30, 10:50] = True
    coco = pytest.importorskip("faster_coco_eval.core.mask")
    packed = coco.encode(np.asfortranarray(area.astype(np.uint8)))
    text = packed["counts"].decode()
    np.testing.assert_array_equal(Crowd(1, {"size": [40, 60], "counts": text}, None).area((40, 60)), area)


def test_boxes_in_shares_of_the_image_are_refused(folder: Path) -> None:
    boxes = [box(1, 7, 0.2, 0.3, 0.1, 0.1), box(2, 7, 0.9, 0.9, 0.1, 0.1)]
    path = put_coco(folder, [image(7, BOTH), image(9, EMPTY)], boxes)
    text = refusal(folder)
    assert f"{path}: the boxes of {BOTH}.png lie between 0 and 1, as shares of the image do" in text
    assert text.startswith("1 error below")


def test_boxes_that_are_two_corners_are_refused(folder: Path) -> None:
    boxes = [box(1, 7, 20, 10, 36, 26), box(2, 7, 40, 20, 56, 36), box(3, 7, 22, 2, 38, 18), box(4, 9, 30, 20, 8, 8)]
    path = put_coco(folder, [image(7, BOTH), image(9, EMPTY)], boxes)
    text = refusal(folder)
    assert f"{path}: boxes of {BOTH}.png reach over the edge of the image, and all would fit if they were two corners" in text
    assert text.startswith("1 error below") and len(Tiger(root=str(folder)).check().errors) == 1
    put_coco(folder, [image(7, BOTH), image(9, EMPTY)], [*boxes[:2], box(3, 9, 2, 2, 18, 18)])  # few per image, several in all
    assert "boxes of 2 entries" in refusal(folder)
    # One that can be no pair of corners tells that they are right.
    put_coco(folder, [image(7, BOTH), image(9, EMPTY)], [*boxes[:2], box(3, 7, 30, 30, 8, 8)])
    assert read(folder)[1][f"cells/{BOTH}"].class_counts["lymphocyte"] == 2


def test_ids_and_categories_are_read_or_refused(folder: Path) -> None:
    floats = [{**image(7, BOTH), "id": 7.0}, {**image(9, EMPTY), "id": 0}]
    zero = [{"id": 0, "name": "lymphocyte"}, {"id": 5, "name": "other"}]
    boxes = [box(1, 7, 1, 1, 8, 8, category=0), box(2, 0, 1, 1, 8, 8, category=5), box(3, 0, 9, 9, 8, 8, category=0)]
    put_coco(folder, floats, boxes, categories=zero)
    _, records = read(folder)
    assert [records[f"cells/{name}"].class_counts["lymphocyte"] for name in (BOTH, EMPTY)] == [1, 1]
    for categories, says in (
        ([{"id": 1, "name": "non-lymphocyte"}], "begins with `lymphocyte`, found non-lymphocyte"),
        ([{"id": 1, "name": "tumor cell"}], "expected a category whose name begins with `lymphocyte`, found tumor cell"),
        ([], "expected a category whose name begins with `lymphocyte`, found none"),
        ([{"id": 1, "name": "lymphocyte"}, {"id": 1, "name": "tumor"}], "lymphocyte, tumor have the same id"),
    ):
        put_coco(folder, [image(7, BOTH)], [box(1, 7, 1, 1, 8, 8)], categories=categories)
        assert says in refusal(folder)
    put_coco(folder, [image(7, BOTH)], [{**box(1, 7, 1, 1, 8, 8), "iscrowd": "yes"}])
    assert "annotation 1: `iscrowd` is yes; expected 0 or 1" in refusal(folder)


def test_one_cause_is_one_line_and_keys_are_unique(folder: Path) -> None:
    path = put_coco(folder, [image(7, BOTH)], [box(number, 5, 1, 1, 8, 8) for number in range(40, 60)])
    text = refusal(folder)
    assert "annotation 40: there is no image with id 5" in text and "The same is wrong with 19 more annotations." in text
    assert text.startswith("1 error below")
    path.write_text('{"images": [], "annotations": [], "annotations": [{"id": 1}]}')
    assert "`annotations` is there twice with different values" in refusal(folder)


def test_what_is_not_read_is_named(folder: Path, tmp_path: Path) -> None:
    cells = folder / "tissue-cells"
    (cells / "images").rename(tmp_path / "store")
    (cells / "images").symlink_to(tmp_path / "store")
    (cells / "images" / "folder.png").mkdir()
    (cells / "nuclei").mkdir()
    (cells / "masks" / f"{EMPTY}.gif").write_bytes(b"x")
    family, records = read(folder)
    assert len(records) == 5
    notes = " ".join(family.check().notes)
    assert "nuclei not read" in notes and f"{EMPTY}.gif left out" in notes and "lists 2 of 4 images" in notes
    (cells / "tiger-coco.json").rename(cells / "cells.json")
    assert "there is no tiger-coco.json, only cells.json" in refusal(folder)
    (cells / "tiger-coco.json").symlink_to(tmp_path / "nowhere")
    assert "tiger-coco.json: cannot be read: it is a link that leads nowhere" in refusal(folder)
    (cells / "images").unlink()
    assert "tissue-cells: expected a folder `images`, found none" in refusal(folder)


def test_a_file_about_other_images_is_an_error(folder: Path) -> None:
    put_coco(folder, [image(7, "elsewhere")], [])
    assert "none of the 1 listed images is there (first: elsewhere.png)" in refusal(folder)
