from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from mtl.core.errors import ConfigError, DataError
from mtl.data.families.malaria.cells import MalariaCells
from mtl.data.families.malaria.generator import generate_malaria, generate_malaria_cells
from mtl.data.families.malaria.smears import Malaria
from mtl.data.families.writing import MARK
from mtl.imaging.outlines import fill_outlines


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("[!.]*")) if path.is_file()}


def test_native_layout(smears: Path) -> None:
    report = Malaria(root=str(smears)).check()
    assert report.errors == [] and report.notes == []
    assert report.counts["images"] == 12 and report.counts["patients"] == 6
    assert report.counts["cells with a point"] > 0 and report.counts["cells with an outline"] > 0
    text = next((smears / "Polygon Set").rglob("*.txt")).read_text()
    assert not text.endswith("\n") and ",No_comment,Polygon," in text
    assert ",No_Comment,Point,1," in next((smears / "Point Set").rglob("*.txt")).read_text()


def test_patients_differ_and_some_are_healthy(smears: Path) -> None:
    infected: dict[str, int] = {}
    for record in Malaria(root=str(smears)).records():
        infected[record.group] = infected.get(record.group, 0) + record.class_counts["Infected"]
    assert infected["104C4NThinF"] == 0
    assert sum(count > 0 for count in infected.values()) == 5


def test_cells_have_the_size_and_place_that_the_labels_say(smears: Path) -> None:
    family = Malaria(root=str(smears))
    records = [record for record in family.records() if "Polygon" in record.path]
    sides = []
    for record in records:
        objects = family.read_labels(record).objects
        assert objects is not None
        red = objects.labels < 2
        boxes = objects.boxes[red]
        sides.append((boxes[:, 2:] - boxes[:, :2]) / record.pixel_scale)
        green = family.read_image(record)[..., 1].astype(float)
        assert record.size is not None
        inside = fill_outlines(objects.outlines, record.size)
        ground = (green > 60) & ~inside
        assert np.median(green[inside]) < np.median(green[ground]) - 15
        # Shifted outlines must fit worse, else this test could not see a wrong place.
        shifted = np.roll(inside, 12, axis=1)
        assert green[inside].mean() < green[shifted].mean() - 5
    assert np.median(np.concatenate(sides)) == pytest.approx(144, rel=0.08)


def test_infected_cells_hold_something_dark(smears: Path) -> None:
    family = Malaria(root=str(smears))
    darkest: dict[int, list[float]] = {0: [], 1: []}
    for record in family.records():
        green, objects = family.read_image(record)[..., 1], family.read_labels(record).objects
        assert objects is not None
        for (x, y), label in zip(objects.points.astype(int), objects.labels, strict=True):
            if label < 2:
                darkest[int(label)].append(float(green[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7].min()))
    assert np.median(darkest[0]) < np.percentile(darkest[1], 20)


def test_only_seed_patient_and_field_decide(tmp_path: Path) -> None:
    generate_malaria(tmp_path / "small", patients=2, fields=1, seed=5, width=256)
    generate_malaria(tmp_path / "large", patients=3, fields=2, seed=5, width=256)
    generate_malaria(tmp_path / "other", patients=2, fields=1, seed=6, width=256)
    small, large, other = (files(tmp_path / name) for name in ("small", "large", "other"))
    assert len(small) == 4 and len(large) == 12
    assert all(large[name] == content for name, content in small.items())
    assert all(other[name] != content for name, content in small.items())


@pytest.mark.parametrize(("kind", "folder"), [("points", "Point Set"), ("polygons", "Polygon Set")])
def test_kinds_and_counts(tmp_path: Path, kind: str, folder: str) -> None:
    generate_malaria(tmp_path / "out", 2, 1, 0, width=320, kind=kind, cells_per_field=(20, 30))  # type: ignore[arg-type]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [MARK, folder]
    for record in Malaria(root=str(tmp_path / "out")).records():
        assert 15 <= record.class_counts["Infected"] + record.class_counts["Healthy"] <= 32


def test_existing_folders_are_safe(tmp_path: Path) -> None:
    output = tmp_path / "out"
    generate_malaria(output, 1, 1, 0, width=128)
    before = files(output)
    with pytest.raises(DataError, match="exists already"):
        generate_malaria(output, 1, 1, 1, width=128)
    assert files(output) == before
    generate_malaria(output, 1, 1, 1, width=128, overwrite=True)
    assert files(output) != before
    (output / "thesis.doc").write_text("years of work")
    with pytest.raises(DataError, match=r"not made by this command: `thesis\.doc`, added or changed"):
        generate_malaria(output, 1, 1, 2, width=128, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_failure_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk is full")

    monkeypatch.setattr("mtl.data.families.malaria.generator.write_image", fail)
    with pytest.raises(OSError, match="disk is full"):
        generate_malaria(tmp_path / "out", 1, 1, 0, width=128)
    assert list(tmp_path.iterdir()) == []


def test_wrong_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        generate_malaria(tmp_path / "out", 0, 0, -1, kind="circles")  # type: ignore[arg-type]
    assert len(caught.value.problems) == 4
    with pytest.raises(ConfigError):
        generate_malaria_cells(tmp_path / "out", 0, 1, 0)


def test_cells(cells: Path) -> None:
    family = MalariaCells(root=str(cells))
    report = family.check()
    assert report.errors == [] and report.notes == []
    assert report.counts["images"] == 48 and report.counts["patients"] == 8
    records = family.records()
    assert not any(record.class_counts["Infected"] for record in records if "NThinF" in record.group)
    darkest: dict[int, list[float]] = {0: [], 1: []}
    for record in records:
        image = family.read_image(record)
        assert min(image.shape[:2]) >= 100 and max(image.shape[:2]) <= 220
        assert image[0, 0].max() == 0  # black around the cell
        height, width = image.shape[:2]
        darkest[record.stratum].append(float(image[height // 4 : -height // 4, width // 4 : -width // 4, 1].min()))
    assert np.median(darkest[0]) < min(darkest[1])


def test_speed(tmp_path: Path) -> None:
    start = time.perf_counter()
    generate_malaria(tmp_path / "out", 2, 2, 0, width=1024)
    assert (time.perf_counter() - start) / 4 < 1.5  # about 0.13 s on an idle core; generous for a busy machine
