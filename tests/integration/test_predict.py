"""Using a checkpoint: the array interface, the files it reads and the files it writes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import mtl
from mtl.cli.main import guarded
from mtl.inference.predict import predict
from mtl.inference.predictor import Predictor

REPOSITORY = Path(__file__).resolve().parents[2]
# Predicts one image in a process that stops at every YAML file and at everything below the data folder.
ALONE = """
import json, os, sys
checkpoint, pixels, data = sys.argv[1:]
def guard(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        path = os.path.abspath(arguments[0])
        if path.startswith(data) or (path.endswith((".yaml", ".yml")) and "site-packages" not in path):
            raise RuntimeError("opened " + path)
sys.addaudithook(guard)
import numpy as np
import mtl
print(json.dumps(mtl.load(checkpoint, device="cpu").predict(np.load(pixels)).to_json()))
"""


@pytest.fixture(scope="module")
def predictor(eager_checkpoint: Path) -> Predictor:
    return mtl.load(eager_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def image(smears: Path) -> np.ndarray:
    return np.array(Image.open(sorted(smears.glob("*/*/Img/*.jpg"))[0]).convert("RGB"))


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_checkpoint_alone_predicts_what_the_command_line_writes(
    eager_checkpoint: Path, smears: Path, image: np.ndarray, tmp_path: Path
) -> None:
    Image.fromarray(image).save(tmp_path / "smear.png")
    np.save(tmp_path / "smear.npy", image)
    assert guarded("predict", [f"checkpoint={eager_checkpoint}", f"source={tmp_path}/smear.png", f"output={tmp_path}/out"]) == 0
    written = content(tmp_path / "out" / "smear.json")
    environment = {key: value for key, value in os.environ.items() if key != "MTL_DATA_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(eager_checkpoint), str(tmp_path / "smear.npy"), str(smears.resolve())],
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = {
        task: entry.pop(key)
        for task, entry in written["tasks"].items()
        for key in list(entry)
        if str(entry[key])[-4:] == ".png"
    }
    assert set(files) == {"segmentation", "heatmap"}
    assert {"image": str(tmp_path / "smear.png"), **json.loads(done.stdout)} == written


def test_boxes_lie_in_the_image_and_belong_to_its_pixels(predictor: Predictor, image: np.ndarray) -> None:
    small = predictor.predict(image)
    large = predictor.predict(cv2.resize(image, (1280, 720), interpolation=cv2.INTER_LINEAR))
    for prediction, (height, width) in ((small, (360, 640)), (large, (720, 1280))):
        boxes = prediction.tasks["detection"]["boxes"]
        assert prediction.size == (height, width) and len(boxes) > 0
        assert boxes.min() >= 0 and boxes[:, 2].max() <= width and boxes[:, 3].max() <= height
        assert (boxes[:, 2:] > boxes[:, :2]).all()
    # Twice the pixels, the same picture: the best box is found at twice the place.
    best = small.tasks["detection"]["boxes"][0] * 2
    assert np.abs(large.tasks["detection"]["boxes"] - best).max(axis=1).min() < 12


@pytest.mark.parametrize("kind", ["grey", "rgba", "palette", "exif", "bilevel"])
def test_kinds_of_image_files(predictor: Predictor, image: np.ndarray, tmp_path: Path, kind: str) -> None:
    picture, path, expected = Image.fromarray(image), tmp_path / f"{kind}.png", image
    if kind == "grey":
        picture = picture.convert("L")
        expected = np.repeat(np.asarray(picture)[..., None], 3, axis=2)
    elif kind == "rgba":
        picture.putalpha(128)
    elif kind == "palette":
        picture = picture.quantize(64)
        expected = np.asarray(picture.convert("RGB"))
    elif kind == "bilevel":
        picture = picture.convert("1")
        expected = np.asarray(picture.convert("RGB"))
    exif = Image.Exif()
    exif[274] = 6  # to be shown turned by 90 degrees; coordinates refer to the pixels as stored
    picture.save(path, **({"exif": exif} if kind == "exif" else {}))
    (outcome,) = predictor.predict_paths([path])
    assert outcome.prediction is not None and outcome.prediction.size == (360, 640)
    assert outcome.prediction.to_json() == predictor.predict(expected).to_json()


def test_more_than_eight_bits_are_refused(predictor: Predictor, image: np.ndarray, tmp_path: Path) -> None:
    deep = image[..., 1].astype(np.uint16) * 16  # twelve bits in sixteen, as microscope cameras store them
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    cv2.imwrite(str(tmp_path / "deep.tif"), deep)
    outcomes = list(predictor.predict_paths(sorted(tmp_path.iterdir())))
    assert [outcome.prediction for outcome in outcomes] == [None, None]
    assert all("more than 8 bits per channel" in str(outcome.error) for outcome in outcomes)


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (7, 5)])
@pytest.mark.parametrize("kind", ["finished_run", "tiles_run"])
def test_tiny_images(kind: str, size: tuple[int, int], request: pytest.FixtureRequest) -> None:
    predictor = mtl.load(request.getfixturevalue(kind), device="cpu")
    prediction = predictor.predict(np.full((*size, 3), 200, np.uint8))
    boxes = prediction.tasks["detection"]["boxes"]
    assert prediction.size == size and prediction.mask("segmentation").shape == (1, *size)
    assert (boxes >= 0).all() and (boxes[:, 2:] <= [size[1], size[0]]).all()


@pytest.fixture(scope="module")
def predicted(eager_checkpoint: Path, smears: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    """A folder with two images of one name, a broken and a truncated file, and what `mtl predict` made of it."""
    import contextlib
    import io

    folder = tmp_path_factory.mktemp("slides")
    first, second = sorted(smears.glob("*/*/Img/*.jpg"))[:2]
    for name, source in (("a/field.jpg", first), ("b/field.jpg", second)):
        (folder / name).parent.mkdir()
        shutil.copy(source, folder / name)
    (folder / "half.jpg").write_bytes(first.read_bytes()[:20_000])
    (folder / "text.png").write_text("not an image")
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = guarded("predict", [f"checkpoint={eager_checkpoint}", f"source={folder}", f"output={folder}/out"])
    return folder, status, errors.getvalue()


def test_unreadable_files_are_named_and_skipped(predicted: tuple[Path, int, str]) -> None:
    folder, status, errors = predicted
    assert status == 1
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2 and "half.jpg" in lines[0] and "text.png" in lines[1] and "Traceback" not in errors
    assert sorted(path.name for path in (folder / "out").glob("*.json")) == ["a__field.json", "b__field.json"]


def test_json_says_everything_about_each_object(predicted: tuple[Path, int, str]) -> None:
    folder, _, _ = predicted
    for name in ("a", "b"):
        found = content(folder / "out" / f"{name}__field.json")
        objects = found["tasks"]["detection"]["objects"]
        assert found["image"] == str(folder / name / "field.jpg") and (found["width"], found["height"]) == (640, 360)
        assert len(objects) >= 5 and all(
            entry["score"] >= found["thresholds"]["detection"]["score"] - 1e-4 for entry in objects
        )
        for entry in objects:
            x1, y1, x2, y2 = entry["box"]
            assert 0 <= x1 < x2 <= 640 and 0 <= y1 < y2 <= 360
            assert entry["class"] in ("Infected", "Healthy", "WBC")
            classes = entry["roi"]["probabilities"]
            assert set(classes) == {"Infected", "Healthy", "WBC"} and sum(classes.values()) == pytest.approx(1, abs=2e-3)
            assert entry["roi"]["class_name"] == max(classes, key=lambda key: classes[key])
        counts = {key: sum(entry["class"] == key for entry in objects) for key in ("Infected", "Healthy", "WBC")}
        assert found["counts"] == counts
        cells = counts["Infected"] + counts["Healthy"]
        assert found["parasitemia"] == (pytest.approx(100 * counts["Infected"] / cells) if cells else None)
        assert 0 <= found["tasks"]["segmentation"]["cell_area_ratio"] <= 1


def test_table_agrees_with_json(predicted: tuple[Path, int, str]) -> None:
    folder, _, _ = predicted
    with (folder / "out" / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for name in ("a", "b"):
        found = content(folder / "out" / f"{name}__field.json")
        mine = [row for row in rows if row["image"] == found["image"] and row["task"] == "detection"]
        assert len(mine) == len(found["tasks"]["detection"]["objects"])
        for row, entry in zip(mine, found["tasks"]["detection"]["objects"], strict=True):
            assert [float(row[key]) for key in ("x_min", "y_min", "x_max", "y_max")] == entry["box"]
            assert row["class"] == entry["class"] and float(row["score"]) == entry["score"]
            assert row["roi_class_name"] == entry["roi"]["class_name"]
            for key, value in entry["roi"]["probabilities"].items():
                assert float(row[f"roi_p_{key}"]) == value
            assert int(row["n_Infected"]) == found["counts"]["Infected"]
            if found["parasitemia"] is not None:
                assert float(row["parasitemia"]) == pytest.approx(found["parasitemia"], abs=1e-4)


def test_maps_have_the_size_of_the_image(predicted: tuple[Path, int, str]) -> None:
    folder, _, _ = predicted
    mask = cv2.imread(str(folder / "out" / "a__field_segmentation.png"), cv2.IMREAD_UNCHANGED)
    heat = cv2.imread(str(folder / "out" / "a__field_heatmap.png"), cv2.IMREAD_UNCHANGED)
    assert mask.shape == (360, 640) and mask.dtype == np.uint8 and set(np.unique(mask)) <= {0, 255}
    assert heat.shape == (360, 640) and heat.dtype == np.uint16
    area = content(folder / "out" / "a__field.json")["tasks"]["segmentation"]["cell_area_ratio"]
    assert (mask > 0).mean() == pytest.approx(area, abs=1e-6)
    assert (folder / "out" / "a__field_overlay.png").stat().st_size > 10_000


def test_results_are_not_taken_for_images(
    predicted: tuple[Path, int, str], eager_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = predicted
    before = sorted((folder / "out").iterdir())
    predict(str(eager_checkpoint), str(folder), str(folder / "out"), device="cpu")
    assert sorted((folder / "out").iterdir()) == before
    words = [f"checkpoint={eager_checkpoint}", f"source={folder}/a", f"output={folder}/a"]
    assert guarded("predict", words) == 2 and "is where the images" in capsys.readouterr().err
    assert [path.name for path in (folder / "a").iterdir()] == ["field.jpg"]


def test_globs_and_odd_names(eager_checkpoint: Path, smears: Path, tmp_path: Path) -> None:
    names = ["a=b, c (1).jpg", "é~#.jpg", "2024.jpg", "it's.jpg"]
    for name in names:
        shutil.copy(sorted(smears.glob("*/*/Img/*.jpg"))[0], tmp_path / name)
    checkpoint, off = f"checkpoint={eager_checkpoint}", ["overlays=false", "masks=false"]
    assert guarded("predict", [checkpoint, f"source={tmp_path}/*.jpg", f"output={tmp_path}/all", *off]) == 0
    assert len(list((tmp_path / "all").glob("*.json"))) == 4 and not list((tmp_path / "all").glob("*.png"))
    for name in names:
        out = tmp_path / f"out {name}"
        assert guarded("predict", [checkpoint, f"source={tmp_path / name}", f"output={out}", *off]) == 0
        assert len(list(out.glob("*.json"))) == 1


def test_tiles_predict_from_the_command_line(tiles_run: Path, smears: Path, tmp_path: Path) -> None:
    source = sorted(smears.glob("*/*/Img/*.jpg"))[0]
    assert guarded("predict", [f"checkpoint={tiles_run}", f"source={source}", f"output={tmp_path}"]) == 0
    assert cv2.imread(str(tmp_path / f"{source.stem}_segmentation.png"), cv2.IMREAD_UNCHANGED).shape == (360, 640)


NEEDLESS = {
    "albumentations", "torchmetrics", "pytorch_lightning", "lightning_fabric", "matplotlib", "sklearn", "pandas",
    "nibabel", "wandb", "tensorboard",
}  # fmt: skip


def imported(code: str, *words: str) -> set[str]:
    """Run Python in a process of its own; return what it has imported."""
    ending = "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code + ending, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(done.stdout.splitlines()[-1].split())


def test_a_prediction_imports_what_it_needs(eager_checkpoint: Path, smears: Path, tmp_path: Path) -> None:
    """Most of the time of a first prediction goes into imports."""
    image = str(next(smears.rglob("*.jpg")))
    assert {"torch", "numpy"} & imported("import mtl") == set()
    code = "import sys, mtl; mtl.load(sys.argv[1], device='cpu').predict(sys.argv[2])"
    assert (NEEDLESS | {"hydra", "omegaconf"}) & imported(code, str(eager_checkpoint), image) == set()
    code = "import sys; from mtl.cli.main import guarded; assert guarded('predict', sys.argv[1:]) == 0"
    words = [f"checkpoint={eager_checkpoint}", f"source='{image}'", f"output={tmp_path / 'out'}"]
    assert NEEDLESS & imported(code, *words) == set()
