"""Runs that several files of this folder look at; none of them may change one."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def finished_run(smears: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of all malaria tasks with everything it leaves behind."""
    from tiny_runs import tiny_run

    run_dir = tmp_path_factory.mktemp("runs") / "finished"
    tiny_run(smears, run_dir, "debug=fast", "data.geometry.size=[128,128]", score=True)
    return run_dir


@pytest.fixture(scope="session")
def tiles_run(smears: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with several overlapping windows per image."""
    from tiny_runs import tiny_run

    run_dir = tmp_path_factory.mktemp("runs") / "tiles"
    tiles = ("data.geometry.mode=tiles", "data.geometry.overlap=32", "data.geometry.scale=0.03")
    tiny_run(smears, run_dir, "debug=fast", "data.geometry.size=[96,96]", *tiles, score=True)
    return run_dir


@pytest.fixture(scope="session")
def eager_checkpoint(finished_run: Path, smears: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `finished_run`, alone in a folder, with a threshold at which some cells are found."""
    import torch

    import mtl
    from mtl.data.formats.images import read_rgb

    image = read_rgb(sorted(smears.glob("*/*/Img/*.jpg"))[0])
    scores = mtl.load(finished_run, device="cpu").predict(image).tasks["detection"]["scores"]
    content = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    content["mtl"]["thresholds"]["detection"]["score"] = float(scores[20])
    path = tmp_path_factory.mktemp("eager") / "eager.ckpt"
    torch.save(content, path)
    return path
