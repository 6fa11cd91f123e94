from __future__ import annotations

from pathlib import Path

import pytest
from data_fakes import FakeFamily

from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing


@pytest.fixture
def family(tmp_path: Path) -> FakeFamily:
    (tmp_path / "images").mkdir()
    return FakeFamily(tmp_path / "images").generate()


@pytest.fixture
def stretch() -> Preprocessing:
    return Preprocessing(Geometry("stretch", (64, 64)))


@pytest.fixture
def tiles() -> Preprocessing:
    return Preprocessing(Geometry("tiles", (64, 64), scale=1.0, overlap=32, fill=7))
