"""Settings and data that all tests share."""

from __future__ import annotations

import os

# Before any library reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def float32_machine() -> Iterator[None]:
    """Let no result depend on the processor: `auto` is float32, as on a machine that is not made for bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtl.runs.precision.made_for_bfloat16", lambda kind: "")
        yield


@pytest.fixture(scope="session")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients with two small fields each, in the native layout of the malaria family."""
    from mtl.data.families.malaria.generator import generate_malaria

    folder = tmp_path_factory.mktemp("data") / "smears"
    generate_malaria(folder, patients=6, fields=2, seed=3, width=640)
    return folder


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single-cell crops of eight patients, in the native layout of the malaria_cells family."""
    from mtl.data.families.malaria.generator import generate_malaria_cells

    folder = tmp_path_factory.mktemp("data") / "cells"
    generate_malaria_cells(folder, patients=8, cells=6, seed=3)
    return folder


@pytest.fixture(scope="session")
def retinas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty retinal photographs of ten people, in the native layout of the idrid family."""
    from mtl.data.families.idrid.generator import generate_idrid

    folder = tmp_path_factory.mktemp("data") / "retinas"
    generate_idrid(folder, patients=10, fields=2, seed=3, width=192)
    return folder


@pytest.fixture(scope="session")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 skin images of twelve people, 8 with a mask, in the native layout of the skin family with two attributes."""
    from mtl.data.families.skin.generator import generate_skin

    folder = tmp_path_factory.mktemp("data") / "lesions"
    generate_skin(folder, patients=12, fields=2, seed=3, width=64)
    return folder


@pytest.fixture(scope="session")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six volumes of eight small slices with four sequences, and 22 pictures, in the native layouts of the brain family."""
    from mtl.data.families.brain.generator import generate_brain

    folder = tmp_path_factory.mktemp("data") / "brains"
    generate_brain(folder, patients=6, fields=8, seed=3, width=64)
    return folder


@pytest.fixture(scope="session")
def regions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """18 regions of six slides in the native layout of the tiger family; of 13 with cells 2 are not listed, 3 have none."""
    from mtl.data.families.tiger.generator import generate_tiger

    folder = tmp_path_factory.mktemp("data") / "regions"
    generate_tiger(folder, patients=6, fields=3, seed=3, width=128)
    return folder


@pytest.fixture(scope="session")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiled slide 900 pixels wide and 700 high, `images/105S.tif`; its tissue mask and truth lie in folders beside."""
    pytest.importorskip("tifffile", reason="slides need the extra `slides`")
    from mtl.data.families.tiger.slide_generator import generate_slide

    return generate_slide(tmp_path_factory.mktemp("data") / "images" / "105S.tif", (700, 900), seed=3, tile=256)


@pytest.fixture(scope="session")
def slide_checkpoint(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained network for slides that reports all tissues and some cells, with windows of 96 pixels."""
    import importlib
    import sys

    from mtl.config.plan import Plan

    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
    try:
        benchmark = importlib.import_module("benchmark_slide")
    finally:
        sys.path.pop(0)
    words = ["task=tiger_mtl", "backbone=test_resnet", "data.geometry.size=[96,96]", "data.geometry.overlap=32"]
    path = tmp_path_factory.mktemp("untrained") / "untrained.ckpt"
    benchmark.build_checkpoint(Plan.from_words(words), slide, path, density=10_000)
    return path


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images; tests that need it skip where it is not given."""
    folder = os.environ.get("MTL_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MTL_DATA_DIR is not set: no real images here")
    return Path(folder)
