"""Settings and data that all tests share."""

from __future__ import annotations

import os

# Before any library reads them.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smears(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six patients with two small fields each, in the native layout of the malaria family."""
    from mtl.data.synthetic.malaria import draw_malaria

    folder = tmp_path_factory.mktemp("data") / "smears"
    draw_malaria(folder, patients=6, fields=2, seed=3, width=640)
    return folder


@pytest.fixture(scope="session")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Single-cell crops of eight patients, in the native layout of the malaria_cells family."""
    from mtl.data.synthetic.malaria import draw_malaria_cells

    folder = tmp_path_factory.mktemp("data") / "cells"
    draw_malaria_cells(folder, patients=8, cells=6, seed=3)
    return folder


@pytest.fixture(scope="session")
def retinas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty retinal photographs of ten people, in the native layout of the idrid family."""
    from mtl.data.synthetic.idrid import draw_idrid

    folder = tmp_path_factory.mktemp("data") / "retinas"
    draw_idrid(folder, patients=10, fields=2, seed=3, width=192)
    return folder


@pytest.fixture(scope="session")
def lesions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 skin images of twelve people, 8 with a mask, in the native layout of the skin family with two attributes."""
    from mtl.data.synthetic.skin import draw_skin

    folder = tmp_path_factory.mktemp("data") / "lesions"
    draw_skin(folder, patients=12, fields=2, seed=3, width=64)
    return folder


@pytest.fixture(scope="session")
def brains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six volumes of eight small slices with four sequences, and 22 pictures, in the native layouts of the brain family."""
    from mtl.data.synthetic.brain import draw_brain

    folder = tmp_path_factory.mktemp("data") / "brains"
    draw_brain(folder, patients=6, fields=8, seed=3, width=64)
    return folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real images; tests that need it skip where it is not given."""
    folder = os.environ.get("MTL_DATA_DIR")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MTL_DATA_DIR is not set: no real images here")
    return Path(folder)
