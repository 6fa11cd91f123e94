"""Small hand-made folders in the layout of TIGER."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mtl.core.errors import DataError
from mtl.core.types import Record
from mtl.data.families.tiger.family import Tiger
from mtl.data.pipeline.dataset import SampleDataset
from mtl.imaging.geometry import Geometry
from mtl.imaging.preprocessing import Preprocessing

SIZE = (40, 60)
TCGA = "TCGA-A1-A0SK-01Z-00-DX1.A44D70FA_[100, 200, 160, 240]"
BOTH, EMPTY, NEITHER, MASKED = "100B_[0, 0, 60, 40]", "100B_[60, 0, 120, 40]", "114S_[5, 5, 65, 45]", "114S_[70, 5, 130, 45]"


def put_image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(sum(path.stem.encode()))
    Image.fromarray(rng.integers(60, 240, (*size, 3)).astype(np.uint8)).save(path)
    return path


def put_mask(path: Path, size: tuple[int, int] = SIZE, values: tuple[int, ...] = (0, 1, 2, 6, 7)) -> Path:
    """Write a mask of upright stripes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(stripes(values, size)).save(path)
    return path


def stripes(values: tuple[int, ...], size: tuple[int, int] = SIZE) -> np.ndarray:
    columns = np.asarray(values, np.uint8)[np.arange(size[1]) * len(values) // size[1]]
    return np.repeat(columns[None], size[0], axis=0)


def put_coco(folder: Path, images: list[Any], annotations: list[Any], **other: Any) -> Path:
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "lymphocytes and plasma cells"}]}
    path = folder / "tissue-cells" / "tiger-coco.json"
    path.write_text(json.dumps({**content, **other}))
    return path


def image(number: int, name: str) -> dict[str, Any]:
    return {"id": number, "file_name": f"images/{name}.png", "width": SIZE[1], "height": SIZE[0]}


def box(number: int, of: int, *corners: float, category: int = 1) -> dict[str, Any]:
    return {"id": number, "image_id": of, "category_id": category, "bbox": list(corners)}


def read(folder: Path, **settings: Any) -> tuple[Tiger, dict[str, Record]]:
    family = Tiger(root=str(folder), **settings)
    return family, {record.sample_id: record for record in family.records()}


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(DataError) as error:
        Tiger(root=str(folder), **settings).records()
    return str(error.value)


def dataset_of(family: Tiger, scale: float = 2.0, tasks: list[str] | None = None) -> SampleDataset:
    geometry = Geometry("tiles", (64, 64), scale, 32, fill=(240, 240, 240))
    return SampleDataset(family, family.records(), family.specs(), Preprocessing(geometry), tasks=tasks)


def generate_folder(root: Path) -> Path:
    """One region with tissue, four of the other set: both labels, listed without boxes, nothing, a mask only."""
    level = root / "tiger" / "wsirois" / "roi-level-annotations"
    for name in (BOTH, EMPTY, NEITHER, MASKED):
        put_image(level / "tissue-cells" / "images" / f"{name}.png")
    for path in (level / "tissue-bcss" / "images" / f"{TCGA}.png",):
        put_image(path)
    put_mask(level / "tissue-bcss" / "masks" / f"{TCGA}.png", values=(0, 1, 5))
    put_mask(level / "tissue-cells" / "masks" / f"{BOTH}.png")
    put_mask(level / "tissue-cells" / "masks" / f"{MASKED}.png", values=(2,))
    put_coco(level, [image(7, BOTH), image(9, EMPTY)], [box(1, 7, 20, 10, 16, 16), box(2, 7, 50, 30, 16, 16)])
    return level
