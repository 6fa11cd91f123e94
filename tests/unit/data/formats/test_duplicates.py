from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mtl.core.errors import DataError
from mtl.data.families.idrid.generator import generate_idrid
from mtl.data.formats.duplicates import connected, fingerprint, near_duplicates


def picture(seed: int, size: tuple[int, int] = (300, 450)) -> np.ndarray:
    """A blurred random picture with structure at all scales."""
    noise = np.random.default_rng(seed).normal(0, 1, (*size, 3)).astype(np.float32)
    smooth = sum(cv2.GaussianBlur(noise, (0, 0), sigma) * sigma for sigma in (2, 6, 20))
    return np.clip(120 + 60 * smooth, 0, 255).astype(np.uint8)


def save(path: Path, image: np.ndarray, width: int | None = None, **how: int) -> Path:
    whole = Image.fromarray(image)
    small = whole if width is None else whole.resize((width, round(width * whole.height / whole.width)))
    small.save(path, **how)
    return path


def test_copies_of_other_size_and_compression(tmp_path: Path) -> None:
    one, two = picture(1), picture(2)
    paths = [
        save(tmp_path / "two.png", two),
        save(tmp_path / "one.png", one),
        save(tmp_path / "one.jpg", one, 200, quality=60),
        save(tmp_path / "other.jpg", two, 333, quality=80),
        save(tmp_path / "three.jpg", picture(3), quality=90),
        save(tmp_path / "mirrored.png", one[:, ::-1]),
    ]
    assert near_duplicates(paths) == [0, 1, 1, 0, 2, 3]
    assert near_duplicates(paths, threshold=0.99999) == [0, 1, 2, 3, 4, 5]
    assert near_duplicates([]) == []
    assert near_duplicates(paths, mirrored=True) == [0, 1, 1, 0, 2, 1]
    assert near_duplicates(paths, mirrored=True, disc=False) == [0, 1, 1, 0, 2, 1]


def bright_box(grey: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero((grey > 20).mean(1) > 0.1), np.flatnonzero((grey > 20).mean(0) > 0.1)
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def test_a_box_finds_copies_with_other_margins(tmp_path: Path) -> None:
    one = np.maximum(picture(1, (240, 240)), 40)
    wide = np.zeros((300, 420, 3), np.uint8)
    wide[20:260, 150:390] = one
    paths = [save(tmp_path / "one.png", one), save(tmp_path / "wide.png", wide), save(tmp_path / "other.png", picture(2))]
    assert near_duplicates(paths) == [0, 1, 2]
    assert near_duplicates(paths, box=bright_box) == [0, 0, 1]


def test_equal_bytes_are_one_photograph_even_without_structure(tmp_path: Path) -> None:
    black = np.zeros((40, 60, 3), np.uint8)
    first = save(tmp_path / "a.png", black)
    (tmp_path / "b.png").write_bytes(first.read_bytes())
    other = save(tmp_path / "c.png", black + 3)
    assert near_duplicates([first, tmp_path / "b.png", other]) == [0, 0, 1]
    assert not fingerprint(first).any()


def test_disc_leaves_the_border_out(tmp_path: Path) -> None:
    """Pictures that differ in the corners only: with the disc they are one, without it they are two."""
    y, x = np.mgrid[:300, :300] - 149.5
    inside = (x**2 + y**2 < 148**2)[..., None]
    centre = picture(4, (300, 300))
    paths = [
        save(
            tmp_path / f"{seed}.png",
            np.where(inside, centre, np.clip(3.0 * picture(seed, (300, 300)), 0, 255)).astype(np.uint8),
        )
        for seed in (5, 6)
    ]
    assert near_duplicates(paths, 0.98) == [0, 0]
    assert near_duplicates(paths, 0.98, disc=False) == [0, 1]


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", picture(1))
    before = fingerprint(path)
    save(path, picture(2))
    assert fingerprint(path) @ before < 0.5


def test_unreadable_files(tmp_path: Path) -> None:
    good = save(tmp_path / "good.png", picture(1))
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"bad\.jpg: cannot be decoded"):
        near_duplicates([good, bad])
    with pytest.raises(DataError, match=r"gone\.png: there is no such image"):
        near_duplicates([good, tmp_path / "gone.png"])


def test_connected() -> None:
    assert connected(6, [(4, 1), (5, 2), (2, 4)]) == [0, 1, 1, 2, 1, 1]
    assert connected(0, []) == []


@pytest.mark.parametrize(("width", "patients"), [(160, 8), (480, 5)])
def test_drawn_retinas(tmp_path: Path, width: int, patients: int) -> None:
    """Copies are far above the threshold, all other pairs far below it."""
    generate_idrid(tmp_path / "out", patients, 2, seed=1, width=width)
    images = {letter: sorted((tmp_path / "out").glob(f"{letter}.*/1. Original Images/*/*.jpg")) for letter in "AB"}
    files = images["A"] + images["B"]
    clusters = near_duplicates(files)
    photographs = 2 * patients
    assert len(set(clusters)) == photographs < len(files)
    assert len(set(clusters[: len(images["A"])])) == len(images["A"])
    assert len(set(clusters[len(images["A"]) :])) == len(images["B"])
    prints = np.stack([fingerprint(path) for path in files])
    same = np.equal.outer(clusters, clusters)
    likeness = prints @ prints.T
    assert likeness[same].min() > 0.975 and likeness[~same].max() < 0.8


def test_real_photographs(real_data: Path) -> None:
    """Exactly the pairs that were found by comparing all pixels."""
    root = real_data / "idrid" / "IDRiD"
    table = real_data / "idrid" / "derived_segmentation_to_grading_match.csv"
    if not table.is_file():
        pytest.skip("IDRiD with its table of copies is not among the real data")
    files = sorted(root.glob("A. Segmentation/1. Original Images/*/*.jpg"))
    files += sorted(root.glob("B. Disease Grading/1. Original Images/*/*.jpg"))
    members = defaultdict(list)
    for path, cluster in zip(files, near_duplicates(files), strict=True):
        members[cluster].append(path)
    found = sorted(
        (a.stem, b.parent.name, b.stem) for a, b in (pair for pair in members.values() if len(pair) > 1)
    )  # fails to unpack where three are joined
    with table.open(newline="") as file:
        rows = [(row["Segmentation image"], row["Grading set"], row["Grading image"]) for row in csv.DictReader(file)]
    assert len(rows) == 15 and found == sorted(rows)
