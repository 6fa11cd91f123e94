"""Boxes of cells: which count, where their points lie, and what a wrong COCO file says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiger_tools import BOTH, EMPTY, box, image, put_coco, put_mask, read, refusal

from mtl.data.families.tiger.coco import base_name
from mtl.data.families.tiger.family import Tiger


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
    assert records[f"cells/{BOTH}"].class_counts["lymphocyte"] == 2
    notes = " ".join(family.check().notes)
    assert "1 boxes of other categories are left out" in notes and "1 boxes are there more than once" in notes
    put_coco(folder, [image(7, BOTH)], boxes, categories=[{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    assert "expected a category with `lymphocyte` in its name" in refusal(folder)


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
