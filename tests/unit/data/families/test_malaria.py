from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl.config.plan import too_many_lost
from mtl.core.errors import ConfigError, DataError
from mtl.data.families.malaria.annotations import centroid, read_annotation
from mtl.data.families.malaria.parasitemia import image_labels, parasitemia_grade
from mtl.data.families.malaria.smears import Malaria, field_scale

SQUARE = "1-2,Uninfected,No_comment,Polygon,4,20,10,40,10,40,30,20,30"
POINT = "1-1,Parasitized,No_Comment,Point,1,30.5,20.25"


def put(
    root: Path,
    rows: list[str],
    size: tuple[int, int] = (100, 60),
    name: str = "Point Set/101C1P1thinF/Img/IMG_1.jpg",
    header: str | None = None,
    orientation: int | None = None,
) -> Path:
    """Write an image of (width, height) and its annotation; return the annotation."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(list(root.rglob("*")))).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    exif = Image.Exif()
    if orientation:
        exif[274] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    folder = path.parent.parent / ("gt" if path.parent.name == "img" else "GT")
    folder.mkdir(exist_ok=True)
    annotation = folder / f"{path.stem}.txt"
    annotation.write_text("\n".join([header or f"{len(rows)},{size[0]},{size[1]}", *rows]))
    return annotation


def test_reads_points_and_polygons(tmp_path: Path) -> None:
    put(tmp_path, [POINT, SQUARE, "1-3,White_Blood_Cell,No_Comment,Point,1,70,30"])
    family = Malaria(root=str(tmp_path))
    (record,) = family.records()
    assert record.sample_id == "101C1P1thinF/IMG_1"
    assert record.size == (60, 100)
    assert record.class_counts == {"Infected": 1, "Healthy": 1, "WBC": 1}
    assert record.groups == {"patient": "101C1P1thinF", "field": "101C1P1thinF/IMG_1"}
    objects = family.read_labels(record).objects
    assert objects is not None
    assert objects.labels.tolist() == [0, 1, 2]
    assert objects.derived.tolist() == [True, False, True]
    assert objects.ids.tolist() == [0, 1, 2]
    np.testing.assert_allclose(objects.points, [[30.5, 20.25], [30, 20], [70, 30]])
    # 100 x 60 does not have the proportions of a field: a crop at native resolution.
    np.testing.assert_allclose(objects.boxes[0], [30.5 - 72, 20.25 - 72, 30.5 + 72, 20.25 + 72])
    np.testing.assert_allclose(objects.boxes[1], [20, 10, 40, 30])
    np.testing.assert_allclose(objects.boxes[2, 2] - objects.boxes[2, 0], 235)
    assert objects.mask_outlines is None
    assert family.read_image(record).shape == (60, 100, 3)


def test_derived_sizes_follow_the_scale_of_the_raster(tmp_path: Path) -> None:
    put(tmp_path, [POINT], size=(664, 2988 // 8 + 1))
    record = Malaria(root=str(tmp_path)).records()[0]
    assert record.pixel_scale == pytest.approx(1 / 8)
    published = Malaria(
        root=str(tmp_path), box_size=[290.5, 163.4], mask_shape="rectangle", mask_size=[332.0, 186.75], pixel_scale=0.5
    )
    record = published.records()[0]
    assert record.pixel_scale == 0.5
    objects = published.read_labels(record).objects
    assert objects is not None and objects.mask_outlines is not None
    np.testing.assert_allclose(np.ptp(objects.outlines[0], axis=0), [145.25, 81.7], rtol=1e-5)
    assert objects.mask_outlines[0].shape == (4, 2)
    np.testing.assert_allclose(np.ptp(objects.mask_outlines[0], axis=0), [166, 93.375], rtol=1e-5)
    np.testing.assert_allclose(objects.mask_outlines[0].mean(0), objects.points[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "scale"),
    [((2988, 5312), 1.0), ((1494, 2656), 0.5), ((576, 1024), 1024 / 5312), ((981, 1002), 1.0), ((1000, 1700), 1.0)],
)
def test_field_scale(size: tuple[int, int], scale: float) -> None:
    assert field_scale(size) == pytest.approx(scale)


def test_coordinates_refer_to_the_stored_raster(tmp_path: Path) -> None:
    put(tmp_path, [SQUARE], orientation=8)
    family = Malaria(root=str(tmp_path))
    (record,) = family.records()
    assert record.size == (60, 100)
    assert family.read_image(record).shape == (60, 100, 3)


def test_header_that_disagrees_names_the_turn(tmp_path: Path) -> None:
    put(tmp_path, [], header="0,60,100", orientation=6)
    with pytest.raises(DataError, match=r"IMG_1\.txt:1: .*100 x 60, found 60 x 100.*quarter turn.*orientation 6"):
        Malaria(root=str(tmp_path)).records()
    with pytest.raises(DataError, match="No annotated image"):  # the only image cannot be used
        Malaria(root=str(tmp_path), on_error="skip").records()


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ("1-1,Parasitized,No_Comment,Point,1,5", "at least 7 values, found 6"),
        ("1-1,Parasitized,No_Comment,Point,1,five,6", "not a number"),
        ("1-1,Parasitized,No_Comment,Point,1,nan,6", "not finite"),
        ("1-1,Parasitized,No_Comment,Point,2,5,6,7,8", "2 points declared"),
        ("1-1,Parasitized,No_Comment,Circle,1,5,6", "found `Circle`"),
        ("1-1,Parasitized,No_Comment,Point,1,-5,6", "outside the image"),
        ("1-1,Parasitized,No_Comment,Point,1,5,61", "outside the image"),
        ("1-1,Uninfected,No_comment,Polygon,3,5,6,7,8", "3 points declared, but 4"),
        ("1-1,Uninfected,No_comment,Polygon,2,5,6,7,8", "at least 3 vertices"),
        ("1-1,Uninfected,No_comment,Polygon,3,5,5,10,10,20,20", "no area"),
    ],
)
def test_rows_with_errors_are_named_or_skipped(tmp_path: Path, row: str, text: str) -> None:
    put(tmp_path, [POINT, row, SQUARE])
    with pytest.raises(DataError) as caught:
        Malaria(root=str(tmp_path)).records()
    assert "IMG_1.txt:3:" in str(caught.value) and text in str(caught.value)
    assert "1 error in" in str(caught.value) and "data.on_error=skip" in str(caught.value)
    tolerant = Malaria(root=str(tmp_path), on_error="skip")
    (record,) = tolerant.records()
    assert record.class_counts == {"Infected": 1, "Healthy": 1, "WBC": 0}
    objects = tolerant.read_labels(record).objects
    assert objects is not None and objects.ids.tolist() == [0, 2]  # places in the file stay
    assert text in "\n".join(tolerant.check().errors) and text in "\n".join(tolerant.notes())
    assert [(entry.lost, entry.total) for entry in tolerant.lost_labels() if entry.lost] == [(1, 3)]


def test_files_that_skip_leaves_out_are_lost_labels(tmp_path: Path) -> None:
    annotations = [put(tmp_path, [POINT, SQUARE], name=f"Point Set/101C1P1thinF/Img/IMG_{n}.jpg") for n in range(8)]
    annotations[0].write_text("no header")
    annotations[1].write_text("2,100,60\n1-1,Parasitized,x,Point,1,0.3,0.5\n1-2,Uninfected,x,Point,1,0.9,1")  # as shares
    annotations[2].rename(annotations[2].with_name("IMG_9.txt"))  # without an image
    annotations[3].rename(annotations[3].with_suffix(".csv"))
    annotations[4].write_text("1,60,100\n1-1,Parasitized,x,Point,1,30,20")  # of another size
    family = Malaria(root=str(tmp_path), on_error="skip")
    assert [record.sample_id[-5:] for record in family.records()] == ["IMG_5", "IMG_6", "IMG_7"]
    lost = {entry.what: (entry.lost, entry.total) for entry in family.lost_labels() if entry.lost}
    assert lost == {"annotated cells": (3, 9), "annotation files": (5, 8)}
    _, files = too_many_lost(family.lost_labels(), 0.33)
    assert "5 of 8 annotation files cannot be used" in files
    assert too_many_lost(family.lost_labels(), 0.63) == []


def test_many_errors_are_counted(tmp_path: Path) -> None:
    put(tmp_path, ["broken"] * 3 + [f"1-1,Parasitized,No_Comment,{name},1,5,6" for name in ("A", "B", "C", "D", "E", "F")])
    with pytest.raises(DataError, match=r"(?s)^9 errors.*\n3 times, first \S.*IMG_1.txt:2: .*and 2 more"):
        Malaria(root=str(tmp_path)).records()


def test_rounding_outside_is_clipped(tmp_path: Path) -> None:
    annotation = put(tmp_path, ["1-1,Parasitized,No_Comment,Point,1,100.4,-0.3"])
    np.testing.assert_allclose(read_annotation(annotation).cells[0].vertices, [[100, 0]])


def test_unknown_labels_are_counted_never_mapped(tmp_path: Path) -> None:
    put(tmp_path, [POINT, "1-2,Gametocyte,No_Comment,Point,1,5,6", "1-3,Gametocyte,No_Comment,Point,1,9,9"])
    family = Malaria(root=str(tmp_path))
    (record,) = family.records()
    assert sum(record.class_counts.values()) == 1
    objects = family.read_labels(record).objects
    assert objects is not None and len(objects) == 1
    report = family.check()
    assert report.errors == [] and report.counts["unknown labels"] == 2
    (unknown,) = (entry for entry in family.lost_labels() if entry.lost)
    assert (unknown.lost, unknown.total) == (2, 3) and "Gametocyte (2)" in unknown.why


def test_repeated_rows_count_once_and_contradictions_are_errors(tmp_path: Path) -> None:
    put(tmp_path, [POINT, SQUARE, SQUARE.replace("1-2", "1-7"), POINT])
    family = Malaria(root=str(tmp_path))
    (record,) = family.records()
    assert record.class_counts == {"Infected": 1, "Healthy": 1, "WBC": 0}
    objects = family.read_labels(record).objects
    assert objects is not None and objects.ids.tolist() == [0, 1]
    assert any("2 rows repeat a cell" in note for note in family.check().notes)
    put(tmp_path, [POINT, POINT.replace("Parasitized", "Uninfected")])
    with pytest.raises(DataError, match=r"IMG_1\.txt:3: the cell of line 2 is there again with another label"):
        Malaria(root=str(tmp_path)).records()


@pytest.mark.parametrize(
    "rows",
    [["1-1,Parasitized,x,Point,1,0.3,0.5", "1-2,Uninfected,x,Point,1,0.9,1"], ["1-1,Uninfected,x,Polygon,3,0,0,0.5,0,0.5,0.5"]],
)
def test_coordinates_in_shares_of_the_image_are_refused(tmp_path: Path, rows: list[str]) -> None:
    put(tmp_path, rows)
    put(tmp_path, [POINT], name="Point Set/101C1P1thinF/Img/IMG_2.jpg")
    with pytest.raises(DataError, match=r"IMG_1\.txt: all coordinates lie between 0 and 1, as shares of the image do"):
        Malaria(root=str(tmp_path)).records()
    # Left out, not free of cells.
    assert [record.sample_id[-5:] for record in Malaria(root=str(tmp_path), on_error="skip").records()] == ["IMG_2"]


def test_links_are_followed_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    put(tmp_path / "store", [POINT], name="Img/A.jpg")
    root, patient = tmp_path / "root", tmp_path / "root" / "Point Set" / "101C1P1thinF"
    put(root, [POINT], name="Point Set/101C1P1thinF/Img/B.jpg")
    for name in ("Img", "GT"):
        (patient / name / "more").symlink_to(tmp_path / "store" / name)
        (patient / name / "again").symlink_to(patient / name)  # leads back
    (patient / "Img" / "folder.jpg").mkdir()
    (patient / "Img" / "C.gif").write_bytes(b"x")
    (root / "Point Set" / "102C2P2thinF").symlink_to(patient.parent / "101C1P1thinF")
    (root / "Dot Set").mkdir()
    family = Malaria(root=str(root))
    found = [f"{patient}/{image}" for patient in ("101C1P1thinF", "102C2P2thinF") for image in "AB"]
    assert [record.sample_id for record in family.records()] == found
    notes = " ".join(family.check().notes)
    assert "C.gif left out" in notes and "Dot Set not read" in notes


def test_annotations_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    annotation = put(tmp_path, [POINT])
    annotation.rename(annotation.with_suffix(".csv"))
    with pytest.raises(DataError, match=r"IMG_1\.csv: is not read; expected an annotation that ends in \.txt"):
        Malaria(root=str(tmp_path)).records()
    annotation.symlink_to(tmp_path / "nowhere")
    assert any("IMG_1.txt: cannot be read: it is a link" in error for error in Malaria(root=str(tmp_path)).check().errors)


def test_names_compare_in_one_normal_form(tmp_path: Path) -> None:
    annotation = put(tmp_path, [POINT], name="Point Set/101C1P1thinF/Img/s\u00e4ure.jpg")
    annotation.rename(annotation.with_name("sa\u0308ure.txt"))
    assert len(Malaria(root=str(tmp_path)).records()) == 1
    put(tmp_path, [POINT], name="Point Set/101C1P1thinF/Img/SA\u0308URE.png")
    text = "\n".join(Malaria(root=str(tmp_path)).check().errors)
    assert "s\u00e4ure.jpg: has the same name as SA\u0308URE.png" in text


def test_zero_cells_is_an_annotation(tmp_path: Path) -> None:
    put(tmp_path, [])
    family = Malaria(root=str(tmp_path))
    (record,) = family.records()
    objects = family.read_labels(record).objects
    assert objects is not None and len(objects) == 0 and objects.boxes.shape == (0, 4)
    assert record.stratum == 0


def test_wrong_number_of_rows_is_a_note(tmp_path: Path) -> None:
    put(tmp_path, [POINT], header="7,100,60")
    family = Malaria(root=str(tmp_path))
    assert len(family.records()) == 1
    assert any("7 rows declared, 1 found" in note for note in family.check().notes)


def test_layout_is_matched_without_case(tmp_path: Path) -> None:
    put(tmp_path, [POINT], name="Point Set/101C1P1thinF/img/A.JPG")
    put(tmp_path, [POINT], name="Point Set/101C1P1thinF/img/B.png")
    (tmp_path / "Point Set/101C1P1thinF/img/Thumbs.db").write_bytes(b"x")
    (tmp_path / "Point Set/101C1P1thinF/img/._A.JPG").write_bytes(b"x")
    assert [record.sample_id for record in Malaria(root=str(tmp_path)).records()] == ["101C1P1thinF/A", "101C1P1thinF/B"]


def test_one_patient_in_both_sets_stays_one_group(tmp_path: Path) -> None:
    put(tmp_path, [POINT], name="Point Set/101C1P1thinF/Img/A.jpg")
    put(tmp_path, [SQUARE], name="Polygon Set/101C1P1ThinF/Img/A.jpg")
    put(tmp_path, [SQUARE], name="Polygon Set/101C1P1ThinF/Img/B.jpg")
    records = Malaria(root=str(tmp_path)).records()
    assert len({record.group for record in records}) == 1
    assert len({record.sample_id for record in records}) == 3
    assert [record.sample_id for record in Malaria(root=str(tmp_path), sets=["Polygon Set"]).records()] == [
        "101C1P1ThinF/A",
        "101C1P1ThinF/B",
    ]


def test_two_spellings_of_one_patient_in_one_set(tmp_path: Path) -> None:
    put(tmp_path, [POINT], name="Point Set/101C1P1thinF/Img/A.jpg")
    put(tmp_path, [POINT], name="Point Set/101C1P1ThinF/Img/A.jpg")
    put(tmp_path, [POINT], name="Point Set/101C1P1ThinF/Img/B.jpg")
    with pytest.raises(DataError, match="another folder of patient 101C1P1ThinF"):
        Malaria(root=str(tmp_path)).records()
    records = Malaria(root=str(tmp_path), on_error="skip").records()
    assert len(records) == len({record.sample_id for record in records}) == 2
    assert len({record.group for record in records}) == 1


def test_tiles_of_one_photograph_are_one_field(tmp_path: Path) -> None:
    for tile in ("r0c0", "r2c1"):
        put(tmp_path, [SQUARE], name=f"Polygon Set/101C1P1thinF/Img/IMG_1_{tile}.jpg")
    put(tmp_path, [SQUARE], name="Polygon Set/101C1P1thinF/Img/IMG_2_r0c0.jpg")
    records = Malaria(root=str(tmp_path), group_by="field").records()
    assert [record.group for record in records] == ["101C1P1thinF/IMG_1", "101C1P1thinF/IMG_1", "101C1P1thinF/IMG_2"]
    assert {record.group for record in Malaria(root=str(tmp_path)).records()} == {"101C1P1thinF"}


def test_annotation_without_image_is_an_error_and_image_without_annotation_a_note(tmp_path: Path) -> None:
    first = put(tmp_path, [POINT])
    second = put(tmp_path, [POINT], name="Point Set/101C1P1thinF/Img/IMG_2.jpg")
    first.unlink()
    family = Malaria(root=str(tmp_path))
    assert [record.sample_id for record in family.records()] == ["101C1P1thinF/IMG_2"]
    assert any("IMG_1.jpg: has no annotation" in note for note in family.check().notes)
    (second.parent.parent / "Img/IMG_2.jpg").unlink()
    with pytest.raises(DataError, match=r"IMG_2\.txt: there is no image"):
        Malaria(root=str(tmp_path)).records()


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        Malaria(root=str(tmp_path / "nowhere")).records()
    with pytest.raises(DataError, match="holds no `Point Set/` and no `Polygon Set/`"):
        Malaria(root=str(tmp_path)).locate()
    (tmp_path / "inner/Point Set").mkdir(parents=True)
    with pytest.raises(DataError, match=r"Did you mean data\.root=.*inner"):
        Malaria(root=str(tmp_path)).records()
    with pytest.raises(DataError, match="No annotated image"):
        Malaria(root=str(tmp_path / "inner")).records()
    with pytest.raises(DataError, match="holds no `Polygon Set/`"):
        Malaria(root=str(tmp_path / "inner"), sets=["Polygon Set"]).records()
    assert Malaria(root=str(tmp_path / "nowhere")).check().errors


def test_broken_images_are_named(tmp_path: Path) -> None:
    put(tmp_path, [POINT], size=(400, 300))
    path = tmp_path / "Point Set/101C1P1thinF/Img/IMG_1.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    family = Malaria(root=str(tmp_path))
    (record,) = family.records()  # the header is intact
    with pytest.raises(DataError, match=r"IMG_1\.jpg: cannot be decoded"):
        family.read_image(record)
    assert any("IMG_1.jpg" in error for error in family.check().errors)
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"IMG_1\.jpg: cannot be decoded"):
        Malaria(root=str(tmp_path)).records()


def test_identical_images_are_noted(tmp_path: Path) -> None:
    put(tmp_path, [POINT])
    put(tmp_path, [POINT], name="Point Set/102C2P2thinF/Img/IMG_1.jpg")
    source = tmp_path / "Point Set/101C1P1thinF/Img/IMG_1.jpg"
    (tmp_path / "Point Set/102C2P2thinF/Img/IMG_1.jpg").write_bytes(source.read_bytes())
    assert any("identical to that of 101C1P1thinF/IMG_1" in note for note in Malaria(root=str(tmp_path)).check().notes)


def test_specs_follow_the_classes() -> None:
    assert list(Malaria(classes=1).specs()) == ["detection", "segmentation", "heatmap"]
    specs = Malaria(classes=2).specs()
    assert specs["detection"].classes == specs["roi"].classes == ("Infected", "Healthy")
    assert specs["detection"].object_index(Malaria.object_classes) == {0: 0, 1: 1}
    assert specs["segmentation"].object_index(Malaria.object_classes) == {0: 0, 1: 0, 2: 0}
    assert specs["heatmap"].object_index(Malaria.object_classes) == {0: 0}
    assert Malaria(classes=3).specs()["roi"].classes == ("Infected", "Healthy", "WBC")


def test_wrong_settings_are_listed_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Malaria(classes=4, box_size=-1.0, mask_size=[1.0, 2.0, 3.0], pixel_scale=0.0)
    assert len(caught.value.problems) == 4


@pytest.mark.parametrize(
    ("infected", "healthy", "grade"), [(0, 9, 0), (0, 0, 0), (2, 98, 1), (3, 97, 2), (10, 90, 2), (11, 89, 3)]
)
def test_parasitemia_grade(infected: int, healthy: int, grade: int) -> None:
    assert parasitemia_grade(infected, healthy) == grade


def test_counts_give_a_grade_and_a_number_of_the_image(tmp_path: Path) -> None:
    wbc = "1-3,White_Blood_Cell,No_Comment,Point,1,70,30"
    put(tmp_path, [POINT, *(SQUARE.replace("40", str(x)) for x in (40, 41, 42))])
    put(tmp_path, [wbc], name="Point Set/101C1P1thinF/Img/IMG_2.jpg")
    put(tmp_path, [SQUARE, wbc], name="Point Set/101C1P1thinF/Img/IMG_3.jpg")
    family = Malaria(root=str(tmp_path))
    specs = family.specs()
    assert specs["severity"].ordinal and specs["severity"].classes == ("negative", "low", "moderate", "high")
    assert specs["parasitemia_percent"].unit == "%" and specs["parasitemia_percent"].primary_metric == "pearson"
    assert all(specs[name].whole_image for name in ("severity", "parasitemia_percent"))
    infected, empty, healthy = family.records()
    assert infected.values == family.read_labels(infected).labels == {"severity": 3.0, "parasitemia_percent": 25.0}
    assert healthy.values == family.read_labels(healthy).labels == {"severity": 0.0, "parasitemia_percent": 0.0}
    # Without a red cell there is no share, which is not a share of 0.
    assert empty.values == family.read_labels(empty).labels == {} and empty.labels == ("objects",)
    assert [infected.knows(specs[name].label) for name in specs] == [True] * 6
    # Object counts alone drive class-aware sampling.
    assert infected.class_counts == {"Infected": 1, "Healthy": 3, "WBC": 0}
    (alone, *_) = Malaria(root=str(tmp_path), classes=1).records()
    assert alone.values == {} and alone.labels == ("objects",)


@pytest.mark.parametrize(("infected", "healthy", "percent"), [(2, 98, 2.0), (1, 2, 100 / 3), (0, 1, 0.0)])
def test_number_and_grade_agree(infected: int, healthy: int, percent: float) -> None:
    expected = {"severity": parasitemia_grade(infected, healthy), "parasitemia_percent": pytest.approx(percent)}
    assert image_labels(infected, healthy) == expected


def test_centroid_weighs_area_not_vertices() -> None:
    dense = np.asarray([[0, 0], [10, 0], [10, 10], [0, 10], [0, 8], [0, 6], [0, 4], [0, 2]], float)
    np.testing.assert_allclose(centroid(dense), [5, 5])


def test_import_stays_light() -> None:
    rooms = [f"mtl.data.families.malaria.{name}" for name in ("smears", "cells", "generator")]
    code = f"import sys, mtl.report.data_pages, {', '.join(rooms)}\n"
    code += "print([name for name in ('torch', 'cv2', 'PIL', 'matplotlib') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("folder", "images", "counts"),
    [
        ("NIH-NLM-ThinBloodSmearsPf", 7, (27, 1684, 4)),
        ("NIH-NLM-ThinBloodSmearsPf_tiles", 63, (27, 1844, 4)),
    ],
)
def test_real_smears(real_data: Path, folder: str, images: int, counts: tuple[int, int, int]) -> None:
    root = real_data / "malaria" / folder
    if not root.is_dir():
        pytest.skip(f"{folder} is not among the real data")
    family = Malaria(root=str(root))
    records = family.records()
    assert len(records) == images
    assert tuple(sum(record.class_counts[name] for record in records) for name in family.object_classes) == counts
    assert {record.pixel_scale for record in records} == {1.0 if "tiles" in folder else 0.5}
    for record in records[:: max(1, images // 7)]:
        image, objects = family.read_image(record).astype(int), family.read_labels(record).objects
        assert objects is not None and image.shape[:2] == record.size
        height, width = image.shape[:2]
        x, y = objects.points.astype(int).T
        # Cells absorb green: annotated spots are redder than green, and not on the dark rim.
        spots = image[y.clip(0, height - 1), x.clip(0, width - 1)]
        assert (spots[:, 0] - spots[:, 1] > 35).mean() > 0.9
