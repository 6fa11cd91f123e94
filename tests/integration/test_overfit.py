"""Each task can learn four images by heart. Slow; run by `make test-all`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

SIDE = 192  # pixels of a crop; a red cell measures 28
WIDTH = 1024  # pixels of the field it is cut from
PATIENTS = 6  # four to learn from, one each for the two other splits


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One crop per patient, around an infected cell, in the native layout."""
    from mtl.data.families.malaria.generator import generate_malaria

    source, folder = tmp_path_factory.mktemp("fields") / "smears", tmp_path_factory.mktemp("crops")
    generate_malaria(source, patients=8, fields=1, seed=5, width=WIDTH, kind="points")
    cut = [_cut(annotation, folder) for annotation in sorted(source.glob("Point Set/*/GT/*.txt"))]
    assert sum(cut) >= PATIENTS
    return folder


def _cut(annotation: Path, folder: Path) -> bool:
    """Cut the window with the most infected cells; says whether there is one."""
    import cv2

    image = cv2.imread(str(annotation.parents[1] / "Img" / f"{annotation.stem}.jpg"))
    rows = [line.split(",") for line in annotation.read_text().splitlines()[1:]]
    points = np.array([[float(value) for value in row[5:7]] for row in rows])
    infected = points[[row[1] == "Parasitized" for row in rows]]
    limits = np.array([image.shape[1], image.shape[0]]) - SIDE
    corners = [np.clip(np.rint(point - SIDE / 2), 0, limits).astype(int) for point in infected]
    if not corners:
        return False
    left, top = max(corners, key=lambda corner: int(_inside(infected - corner).sum()))
    kept = [row for row, inside in zip(rows, _inside(points - [left, top]), strict=True) if inside]
    home = folder / "Point Set" / annotation.parents[1].name
    for name in ("Img", "GT"):
        (home / name).mkdir(parents=True)
    cv2.imwrite(str(home / "Img" / f"{annotation.stem}.png"), image[top : top + SIDE, left : left + SIDE])
    lines = [f"{len(kept)},{SIDE},{SIDE}"]
    lines += [",".join([*row[:5], f"{float(row[5]) - left:.2f}", f"{float(row[6]) - top:.2f}"]) for row in kept]
    (home / "GT" / f"{annotation.stem}.txt").write_text("\n".join(lines))
    return True


def _inside(points: np.ndarray) -> np.ndarray:
    return ((points > 8) & (points < SIDE - 8)).all(axis=1)


def learn(crops: Path, run_dir: Path, tasks: str, *more: str) -> dict[str, Any]:
    """Train on the crops and return the metrics of the training images, at thresholds chosen on them."""
    from mtl.config.plan import Plan
    from mtl.experiments.score import score
    from mtl.experiments.train import train
    from mtl.runs.loading import load_model

    epochs = 15  # of ten steps each, since every epoch writes a checkpoint
    words = [
        "task=malaria_mttl", f"tasks={tasks}", f"data.root={crops}", f"data.pixel_scale={WIDTH / 5312}",
        f"data.geometry.size=[{SIDE},{SIDE}]", "data.augmentation=null", "data.loader.batch_size=4",
        "data.loader.samples_per_epoch=40", "backbone=timm", "backbone.architecture=resnet10t",
        "optimizer.lr=1e-3", "optimizer.weight_decay=0", f"trainer.max_epochs={epochs}", "trainer=cpu",
        f"trainer.check_val_every_n_epoch={epochs}", "trainer.gradient_clip_val=5", "evaluation.bootstrap=0",
        "evaluation.cases=0", f"paths.run_dir={run_dir}",
    ]  # fmt: skip
    train(Plan.from_words([*words, *more]))
    evaluation = score(load_model(run_dir / "checkpoints" / "last.ckpt", "cpu"), "train", bootstrap=0)
    assert evaluation.summary["n_samples"] >= 4
    return evaluation.evaluator.compute(evaluation.evaluator.thresholds())


FEW_PROPOSALS = ("rpn_pre_nms_top_n_train=200", "rpn_post_nms_top_n_train=100", "box_batch_size_per_image=64")


@pytest.mark.parametrize("head", ["faster_rcnn", "fcos"])
def test_detection(crops: Path, tmp_path: Path, head: str) -> None:
    cheaper = [f"heads.detection.{word}" for word in FEW_PROPOSALS] if head == "faster_rcnn" else []
    metrics = learn(crops, tmp_path / "run", "[detection]", f"head@heads.detection={head}", *cheaper)
    assert metrics["detection"]["map50"] >= 0.9


def test_segmentation(crops: Path, tmp_path: Path) -> None:
    metrics = learn(crops, tmp_path / "run", "[segmentation]")
    assert metrics["segmentation"]["dice_per_image"] >= 0.95


def test_roi_classification(crops: Path, tmp_path: Path) -> None:
    metrics = learn(crops, tmp_path / "run", "[roi]")
    assert metrics["roi"]["accuracy"] == 1.0


def test_heatmap(crops: Path, tmp_path: Path) -> None:
    metrics = learn(crops, tmp_path / "run", "[heatmap]")
    assert metrics["heatmap"]["peak_f1"] == 1.0


def test_single_cells_start_the_smears(crops: Path, cells: Path, tmp_path: Path) -> None:
    """Crops of single cells are learned, and their encoder starts the smear suite with every key accounted for."""
    from mtl.config.plan import Plan
    from mtl.experiments.score import score
    from mtl.experiments.train import train
    from mtl.runs.loading import load_model

    words = [
        "task=malaria_cells", f"data.root={cells}", "data.augmentation=null", "data.loader.batch_size=8",
        "data.loader.samples_per_epoch=160", "backbone=timm", "backbone.architecture=resnet10t", "optimizer.lr=1e-3",
        "trainer.max_epochs=5", "trainer=cpu", "evaluation.bootstrap=0", "evaluation.cases=0",
        f"paths.run_dir={tmp_path}/cells",
    ]  # fmt: skip
    train(Plan.from_words(words))
    last = tmp_path / "cells" / "checkpoints" / "last.ckpt"
    learned = score(load_model(last, "cpu"), "train", bootstrap=0).summary["tasks"]["cell"]
    assert learned["accuracy"] == 1.0
    learn(
        crops,
        tmp_path / "smears",
        "[segmentation]",
        f"backbone.weights={last}",
        "trainer.max_epochs=1",
        "trainer.check_val_every_n_epoch=1",
    )
    log = (tmp_path / "smears" / "log.txt").read_text(encoding="utf-8")
    state = load_model(last, "cpu").model.encoder.body.state_dict()
    assert f"Weights from {last}: " in log
    assert int(log.partition(f"{last}: ")[2].split(" ")[0]) in (len(state), sum("num_batches" not in key for key in state))
    assert not any(word in log for word in ("missing in the file", "unexpected in the file", "of another shape"))
