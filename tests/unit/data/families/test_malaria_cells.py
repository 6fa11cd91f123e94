from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mtl.core.errors import DataError
from mtl.data.families.malaria.cells import MalariaCells, parse_name


def put(root: Path, name: str, value: int = 120, mode: str = "RGB") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(value).integers(0, 255, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


@pytest.fixture
def crops(tmp_path: Path) -> Path:
    put(tmp_path, "Parasitized/C100P61ThinF_IMG_20150918_144104_cell_162.png", 1)
    put(tmp_path, "Uninfected/C100P61ThinF_IMG_20150918_144104_cell_3.png", 2, "L")
    put(tmp_path, "Uninfected/C1_thinF_IMG_20150604_104722_cell_9.png", 3)
    (tmp_path / "Uninfected/Thumbs.db").write_bytes(b"x")
    return tmp_path


@pytest.mark.parametrize(
    ("stem", "patient", "field"),
    [
        ("C100P61ThinF_IMG_20150918_144104_cell_162", "C100P61ThinF", "C100P61ThinF/IMG_20150918_144104"),
        ("C33P1thinF_IMG_20150619_114756a_cell_179", "C33P1thinF", "C33P1thinF/IMG_20150619_114756a"),
        ("C65P26N_ThinF_IMG_20150818_154436_cell_3", "C65P26NThinF", "C65P26N_ThinF/IMG_20150818_154436"),
        ("C47P8thin_Original_Motic_IMG_20150714_1_cell_1", "C47P8thin", "C47P8thin_Original_Motic/IMG_20150714_1"),
        ("C47P8thinOriginalOlympusCX21_IMG_2_cell_1", "C47P8thin", "C47P8thinOriginalOlympusCX21/IMG_2"),
        ("C9slide_IMG_2_cell_1", "C9slide", "C9slide/IMG_2"),
    ],
)
def test_names(stem: str, patient: str, field: str) -> None:
    assert parse_name(stem) == (patient, field)


def test_reads_crops(crops: Path) -> None:
    family = MalariaCells(root=str(crops))
    records = family.records()
    assert [record.stratum for record in records] == [0, 1, 1]
    assert [record.group for record in records] == ["C100P61ThinF", "C100P61ThinF", "C1thinF"]
    assert records[0].class_counts == {"Infected": 1, "Healthy": 0}
    assert [family.read_labels(record).labels["cell"] for record in records] == [0, 1, 1]
    image = family.read_image(records[1])
    assert image.shape == (9, 7, 3) and image.dtype == np.uint8
    assert (image[..., 0] == image[..., 2]).all()
    assert family.specs()["cell"].classes == ("Infected", "Healthy")
    assert MalariaCells(root=str(crops), group_by="field").records()[0].group == "C100P61ThinF/IMG_20150918_144104"


def test_spelling_does_not_split_a_patient(crops: Path) -> None:
    put(crops, "Parasitized/C1ThinF_IMG_20150604_104722_cell_10.png", 4)
    groups = {record.group for record in MalariaCells(root=str(crops)).records() if record.group.startswith("C1t")}
    groups |= {record.group for record in MalariaCells(root=str(crops)).records() if record.group.startswith("C1T")}
    assert len(groups) == 1


def test_errors(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no `Parasitized/` and no `Uninfected/`"):
        MalariaCells(root=str(crops / "Uninfected")).records()
    put(crops, "Uninfected/strange.png", 5)
    with pytest.raises(DataError, match=r"do not name their patient, for example strange\.png"):
        MalariaCells(root=str(crops)).records()


def test_check_finds_broken_and_repeated_crops(crops: Path) -> None:
    source = crops / "Uninfected/C1_thinF_IMG_20150604_104722_cell_9.png"
    (crops / "Parasitized/C1_thinF_IMG_20150604_104722_cell_8.png").write_bytes(source.read_bytes())
    (crops / "Parasitized/C1_thinF_IMG_20150604_104722_cell_7.png").write_bytes(source.read_bytes()[:60])
    report = MalariaCells(root=str(crops)).check()
    assert len(report.errors) == 1 and "cell_7.png: cannot be decoded" in report.errors[0]
    assert len(report.notes) == 1 and "identical" in report.notes[0]
    assert report.counts == {"images": 5, "patients": 2, "fields": 2, "Infected": 3, "Healthy": 2}


def test_links_are_followed_and_what_is_not_read_is_named(crops: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tmp_path_factory.mktemp("store")
    put(store, "C100P61ThinF_IMG_20150918_144104_cell_5.png", 5)
    (crops / "Uninfected" / "second").symlink_to(store)
    (crops / "Uninfected" / "folder.png").mkdir()
    (crops / "Parasitized" / "C2thinF_IMG_1_cell_1.gif").write_bytes(b"x")
    (crops / "Parasitized" / "gone.png").symlink_to(store / "gone.png")
    report = MalariaCells(root=str(crops)).check()
    assert report.counts["images"] == 4 and report.errors == []
    assert len(report.notes) == 1 and "2 entries (first: C2thinF_IMG_1_cell_1.gif) left out" in report.notes[0]


def test_two_crops_of_one_name_are_named(crops: Path) -> None:
    put(crops, "Uninfected/c1_THINF_IMG_20150604_104722_cell_9.tif", 6)
    with pytest.raises(DataError, match=r"c1_THINF.*\.tif: has the same name as .*C1_thinF.*\.png\. Rename"):
        MalariaCells(root=str(crops)).records()


def test_empty(tmp_path: Path) -> None:
    for name in ("Parasitized", "Uninfected"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataError, match="No image"):
        MalariaCells(root=str(tmp_path)).records()


def test_real_crops(real_data: Path) -> None:
    root = real_data / "malaria" / "cell_images"
    if not root.is_dir():
        pytest.skip("cell_images is not among the real data")
    records = MalariaCells(root=str(root)).records()
    assert len(records) == 400 and sum(record.stratum for record in records) == 200
    assert len({record.group for record in records}) == 148
