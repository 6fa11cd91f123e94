from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl.core.types import Objects, Sample
from mtl.data.families.idrid.family import Idrid
from mtl.data.families.malaria.cells import MalariaCells
from mtl.data.families.malaria.smears import Malaria, parasitemia
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing
from mtl.report.data_pages import class_colours, plot, show_samples, write_stats

AS_STORED = Preprocessing(Geometry())


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_stats_count_what_is_there(smears: Path, tmp_path: Path) -> None:
    family = Malaria(root=str(smears))
    records = family.records()
    written = write_stats(family, records, tmp_path / "stats")
    assert {path.name for path in written} == {
        "images.csv", "patients.csv", "sizes.csv", "counts.png", "parasitemia.png", "sizes.png",
    }  # fmt: skip
    assert all(path.stat().st_size > 0 for path in written)
    rows = table(tmp_path / "stats/patients.csv")
    assert [row["patient"] for row in rows] == [*sorted({record.group for record in records}), "all"]
    total = sum(record.class_counts["Infected"] for record in records)
    assert int(rows[-1]["Infected"]) == total == sum(int(row["Infected"]) for row in rows[:-1])
    assert float(rows[-1]["parasitemia_percent"]) == pytest.approx(parasitemia(records), abs=0.01)
    assert len(table(tmp_path / "stats/images.csv")) == len(records)
    sizes = {(row["class"], row["outline"]): row for row in table(tmp_path / "stats/sizes.csv")}
    assert float(sizes["Healthy", "from point"]["width_p50"]) == pytest.approx(144, abs=0.1)  # in reference pixels
    assert float(sizes["Healthy", "annotated"]["width_p50"]) == pytest.approx(144, rel=0.08)


def test_stats_of_images_without_objects(cells: Path, tmp_path: Path) -> None:
    family = MalariaCells(root=str(cells))
    written = write_stats(family, family.records(), tmp_path)
    assert {path.name for path in written} == {"images.csv", "patients.csv", "counts.png"}
    assert "parasitemia_percent" not in table(tmp_path / "patients.csv")[0]


def test_samples_are_drawn_by_seed(smears: Path, tmp_path: Path) -> None:
    family = Malaria(root=str(smears))
    records = family.records()
    first = show_samples(family, records, tmp_path / "a", 3, seed=1, preprocessing=AS_STORED)
    again = show_samples(family, records, tmp_path / "b", 3, seed=1, preprocessing=AS_STORED)
    assert len(first) == 3 and [path.name for path in first] == [path.name for path in again]
    assert [path.name for path in first] != [
        path.name for path in show_samples(family, records, tmp_path / "c", 3, seed=2, preprocessing=AS_STORED)
    ]
    assert len(show_samples(family, records[:2], tmp_path / "d", 9, seed=0, preprocessing=AS_STORED)) == 2


def test_outlines_are_drawn_where_the_objects_are() -> None:
    square = np.asarray([[100, 50], [200, 50], [200, 150], [100, 150]], np.float32)
    objects = Objects([square], np.zeros(1, np.int64), square.mean(0)[None], np.zeros(1, bool))
    sample = Sample(np.full((400, 800, 3), 255, np.uint8), "s", "g", "test", objects=objects)
    figure = plot(sample, ("Infected",), Malaria.colours)
    axes = figure.axes[0]
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[..., :3].astype(int)
    red = (picture[..., 0] > 180) & (picture[..., 1] < 100)
    for x, y in ((100, 100), (200, 100), (150, 50), (150, 150)):
        column, row = axes.transData.transform((x, y))
        row = picture.shape[0] - row
        assert red[int(row) - 2 : int(row) + 3, int(column) - 2 : int(column) + 3].any()
    column, row = axes.transData.transform((150, 100))
    assert not red[int(picture.shape[0] - row), int(column)]


def test_class_is_in_the_picture_of_a_crop(cells: Path, tmp_path: Path) -> None:
    family = MalariaCells(root=str(cells))
    (path,) = show_samples(family, family.records(), tmp_path, 1, seed=0, preprocessing=AS_STORED)
    with Image.open(path) as image:
        assert image.size[0] >= 400


def test_masks_are_drawn_where_they_lie(retinas: Path, tmp_path: Path) -> None:
    family = Idrid(root=str(retinas), sets=["segmentation"])
    record = next(record for record in family.records() if record.class_counts["soft_exudates"])
    (path,) = show_samples(family, [record], tmp_path, 1, seed=0, preprocessing=AS_STORED)
    with Image.open(path) as image:
        assert image.size[0] >= 400
    sample = family.read_labels(record)
    sample.image = np.full((*record.size, 3), 40, np.uint8)
    disc = sample.masks["optic_disc"] > 0
    tiny = np.zeros_like(disc)
    tiny[3, 5] = True
    figure = plot(
        sample, (), class_colours(family), regions={"optic_disc": disc, "microaneurysms": tiny, "fovea": np.zeros_like(disc)}
    )
    picture = figure.axes[0].get_images()[0].get_array()
    red, cyan = picture[..., 0] > 60, (picture[..., 2] > 150) & (picture[..., 0] < 40)
    assert red[disc].all() and not red[~disc].any()
    assert np.argwhere(cyan).tolist() == [[3, 5]]
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert texts[0].startswith("optic_disc (1.") and texts[2] == "fovea (none)"


def test_stats_of_partly_labelled_images(retinas: Path, tmp_path: Path) -> None:
    """What nobody looked for is blank, not zero."""
    family = Idrid(root=str(retinas))
    written = write_stats(family, family.records(), tmp_path)
    assert {path.name for path in written} == {"images.csv", "groups.csv", "counts.png", "sizes.csv", "sizes.png"}
    rows = {row["sample_id"]: row for row in table(tmp_path / "images.csv")}
    graded, segmented = rows["B/train/IDRiD_001"], rows["A/train/IDRiD_01"]
    assert graded["microaneurysms"] == segmented["no_dr"] == "" and segmented["microaneurysms"] == "1"
    assert sum(int(graded[name]) for name in ("no_dr", "mild_npdr", "moderate_npdr", "severe_npdr", "pdr")) == 1
