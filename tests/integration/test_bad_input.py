"""What a user gets who gives the program something wrong: a sentence and an exit status, never a traceback."""

from __future__ import annotations

import errno
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mtl.cli.main import guarded, without_traceback

TINY = (
    "backbone=test_resnet", "trainer=cpu", "data.geometry.size=[64,64]", "data.loader.batch_size=2", "trainer.max_epochs=1",
    "evaluation.bootstrap=0", "evaluation.cases=0",
)  # fmt: skip
DENSE = "tasks=[segmentation]"
Run = Callable[..., str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a verb that must fail with a status; returns its message after checking its form."""
    monkeypatch.delenv("MTL_DATA_DIR", raising=False)
    monkeypatch.delenv("MTL_TRACEBACK", raising=False)

    def run(status: int, verb: str, *words: str) -> str:
        capfd.readouterr()
        assert guarded(verb, list(words)) == status
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        message = "\n".join(line.removeprefix("error: ") for line in lines)
        assert "Traceback" not in message and message.strip() and len(message) < 1500
        assert message.rstrip()[-1] in ".?"
        return message

    return run


@pytest.fixture
def train(run: Run, tmp_path: Path) -> Run:
    return lambda status, *words: run(
        status, "train", "task=malaria_mttl", *TINY, DENSE, f"paths.run_dir={tmp_path}/run", *words
    )


@pytest.fixture
def copy(smears: Path, tmp_path: Path) -> Path:
    return shutil.copytree(smears, tmp_path / "smears")


# -- data folders ------------------------------------------------------------------------------------------------------


def test_no_data(train: Run, tmp_path: Path) -> None:
    message = train(3)
    assert "data.root" in message and "MTL_DATA_DIR" in message and "mtl data synth malaria" in message
    assert "does not exist" in train(3, f"data.root={tmp_path}/nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no `Point Set/` and no `Polygon Set/`" in train(3, f"data.root={tmp_path}/empty")
    (tmp_path / "file").write_text("x")
    assert "is a file" in train(3, f"data.root={tmp_path}/file")
    assert not (tmp_path / "run").exists()


def test_wrong_level_of_the_data_folder(train: Run, copy: Path) -> None:
    for wrong in (copy.parent, copy / "Point Set", next(copy.glob("Point Set/*"))):
        assert f"Did you mean data.root={copy}?" in train(3, f"data.root={wrong}")


def test_cells_where_smears_are_expected(run: Run, smears: Path, cells: Path, tmp_path: Path) -> None:
    words = ["task=malaria_cells", *TINY, f"paths.run_dir={tmp_path}/run"]
    assert "holds no `Parasitized/`" in run(3, "train", *words, f"data.root={smears}")


# -- broken files ------------------------------------------------------------------------------------------------------


def test_truncated_image(train: Run, run: Run, copy: Path) -> None:
    for path in copy.glob("*/*/Img/*.jpg"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert "cannot be decoded" in train(3, f"data.root={copy}")
    assert guarded("data", ["check", "malaria", f"data.root={copy}"]) == 3


def test_truncated_image_in_a_loading_process(train: Run, copy: Path) -> None:
    for path in copy.glob("*/*/Img/*.jpg"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = train(3, f"data.root={copy}", "data.loader.num_workers=1")
    assert "cannot be decoded" in message and "worker" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('Caught DataError in process 0.\nOriginal Traceback (most recent call last):\n  File "x", line 1, in f\n    raise '
         "ValueError: x\nmtl.core.errors.DataError: a.jpg: broken. Replace it.\nSecond line.\n",
         "a.jpg: broken. Replace it.\nSecond line."),
        ("A plain sentence.", "A plain sentence."),
    ],
)  # fmt: skip
def test_tracebacks_of_loading_processes_are_cut(text: str, expected: str) -> None:
    assert without_traceback(text) == expected


def first_annotation(folder: Path) -> Path:
    return sorted(folder.glob("Point Set/*/GT/*.txt"))[0]


def edit(path: Path, line: int, text: str) -> None:
    lines = path.read_text().splitlines()
    lines[line] = text
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "109,333,222", "expected the size of {image}, 640 x 360, found 333 x 222"),
        (0, "109,360,640", "They differ by a quarter turn"),
        (0, "hello", "expected `<rows>,<width>,<height>`, found `hello`"),
        (1, "1-1,Uninfected,No_Comment,Point,1,-50.0,20", ":2: (-50, 20) lies outside the image"),
        (1, "1-1,Uninfected,No_Comment,Polygon,3,5,5,10,10,20,20", ":2: the polygon has no area"),
        (1, "1-1,Uninfected,No_Comment,Point,1,nan,20", ":2: a coordinate is not finite"),
        (1, "1-1,Uninfected", ":2: expected at least 7 values, found 2"),
    ],
)
def test_wrong_annotation(train: Run, copy: Path, line: int, text: str, message: str) -> None:
    path = first_annotation(copy)
    edit(path, line, text)
    found = train(3, f"data.root={copy}")
    assert "1 error in the annotations" in found and path.name in found and "data.on_error=skip" in found
    assert message.format(image=f"{path.stem}.jpg") in found


def test_annotation_without_image(train: Run, copy: Path) -> None:
    path = first_annotation(copy)
    (path.parents[1] / "Img" / f"{path.stem}.jpg").unlink()
    assert f"{path.name}: there is no image of this name" in train(3, f"data.root={copy}")
    for annotation in copy.glob("*/*/GT/*.txt"):
        annotation.unlink()
    assert "No annotated image" in train(3, f"data.root={copy}")


def test_unknown_labels_are_counted(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in (1, 2, 3):
        edit(first_annotation(copy), line, "1-1,Alien,No_Comment,Point,1,30,20")
    assert guarded("data", ["check", "malaria", f"data.root={copy}"]) == 0
    printed = capsys.readouterr().out
    assert "unknown labels: 3" in printed and "cells cannot be used: unknown labels Alien (3)" in printed


@pytest.mark.parametrize("patients", [1, 2])
def test_too_few_patients(train: Run, copy: Path, patients: int) -> None:
    for home in sorted(copy.glob("*/*"))[patients:]:
        shutil.rmtree(home)
    message = train(3, f"data.root={copy}")
    assert f"at least 3 groups, found {patients}" in message and "data.group_by" in message


# -- checkpoints and weights -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong_checkpoints(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "text.ckpt").write_text("hello")
    (folder / "empty.ckpt").write_bytes(b"")
    with (folder / "pickle.ckpt").open("wb") as file:
        pickle.dump({"a": os.getcwd}, file, protocol=2)
    torch.save({"layer.weight": torch.zeros(3)}, folder / "state.ckpt")
    torch.save({"state_dict": {"x": torch.zeros(1)}, "pytorch-lightning_version": "2.0"}, folder / "lightning.ckpt")
    torch.save([1, 2], folder / "list.ckpt")
    whole = (finished_run / "checkpoints" / "best.ckpt").read_bytes()
    (folder / "half.ckpt").write_bytes(whole[: len(whole) // 2])
    content = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save({**content, "state_dict": dict(list(content["state_dict"].items())[5:])}, folder / "lacking.ckpt")
    torch.save({**content, "mtl": {key: content["mtl"][key] for key in ("format", "config")}}, folder / "entries.ckpt")
    torch.save({**content, "mtl": {**content["mtl"], "format": 99}}, folder / "newer.ckpt")
    (folder / "run").mkdir()
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text.ckpt", "(5 bytes) is damaged, incomplete or another kind of file"),
        ("empty.ckpt", "(0 bytes) is damaged"),
        ("pickle.ckpt", "is damaged, incomplete or another kind of file"),
        ("half.ckpt", "is damaged, incomplete"),
        ("state.ckpt", "a bare state dict with 1 tensors (first: `layer.weight`); it can only serve as backbone.weights"),
        ("lightning.ckpt", "a Lightning checkpoint of another program"),
        ("list.ckpt", "holds a list"),
        ("lacking.ckpt", "does not fit the model it describes"),
        ("entries.ckpt", "lacks `mtl.model`, `mtl.thresholds`, `mtl.split`"),
        ("newer.ckpt", "has format 99"),
        ("run", "is a folder, expected a checkpoint file"),
        ("none.ckpt", "does not exist"),
    ],
)
def test_wrong_checkpoint(run: Run, wrong_checkpoints: Path, smears: Path, tmp_path: Path, name: str, message: str) -> None:
    words = [f"checkpoint={wrong_checkpoints}/{name}", f"output={tmp_path}/out"]
    assert message in run(4, "predict", *words, f"source={smears}")
    assert message in run(4, "evaluate", *words, f"data.root={smears}")
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def cells_run(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another suite."""
    run_dir = tmp_path_factory.mktemp("cells") / "run"
    assert guarded("train", ["task=malaria_cells", *TINY, f"data.root={cells}", f"paths.run_dir={run_dir}"]) == 0
    return run_dir


def test_checkpoint_of_another_suite(run: Run, cells_run: Path, smears: Path, tmp_path: Path) -> None:
    message = run(3, "evaluate", f"checkpoint={cells_run}", f"data.root={smears}", f"output={tmp_path}/out")
    assert "holds no `Parasitized/` and no `Uninfected/`" in message
    assert guarded("predict", [f"checkpoint={cells_run}", f"source={smears}", f"output={tmp_path}/out"]) == 0
    assert "cell" in next((tmp_path / "out").glob("*.json")).read_text()


def test_encoder_of_another_suite(cells_run: Path, smears: Path, tmp_path: Path) -> None:
    words = [*TINY, DENSE, f"data.root={smears}", f"paths.run_dir={tmp_path}/run"]
    assert guarded("train", ["task=malaria_mttl", *words, f"backbone.weights={cells_run}/checkpoints/best.ckpt"]) == 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert f"Weights from {cells_run}/checkpoints/best.ckpt: " in log and "missing" not in log and "unexpected" not in log
    before = torch.load(cells_run / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    keys = [key for key in before if key.startswith("model.encoder.") and not key.endswith("num_batches_tracked")]
    loaded = int(log.partition("best.ckpt: ")[2].partition(" keys loaded")[0])
    assert loaded in (len(keys), len([key for key in before if key.startswith("model.encoder.")]))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.pth", "does not exist"),
        ("text.ckpt", "cannot be read"),
        ("pickle.ckpt", "cannot be read"),
        ("half.ckpt", "cannot be read"),
        ("state.ckpt", "No key of"),
        ("list.ckpt", "holds no state dict"),
    ],
)
def test_wrong_weights(train: Run, smears: Path, wrong_checkpoints: Path, name: str, message: str) -> None:
    assert message in train(4, f"data.root={smears}", f"backbone.weights={wrong_checkpoints}/{name}")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("backbone.weights=/nowhere.pth",), "`/nowhere.pth` does not exist"),
        (("backbone=resnet50", "backbone.pretrained=true"), "neither in the local cache nor"),
    ],
)
def test_a_failed_start_leaves_the_name_free(
    run: Run, smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr("mtl.encoders.hub._cached", lambda config: None)
    named = ("task=malaria_mttl", *TINY, DENSE, f"data.root={smears}", f"paths.output_root={tmp_path}/runs", "name=x", *words)
    for _ in range(2):
        assert message in run(4, "train", *named)
    assert not (tmp_path / "runs" / "malaria_mttl" / "x").exists()


def test_weights_of_another_architecture(train: Run, smears: Path, cells_run: Path) -> None:
    words = [f"data.root={smears}", f"backbone.weights={cells_run}/checkpoints/best.ckpt", "backbone=resnet18"]
    assert "belongs to another network" in train(4, *words)


def test_published_weights_without_a_network(train: Run, smears: Path) -> None:
    assert "backbone.weights=<file>" in train(4, f"data.root={smears}", "backbone=resnet18", "backbone.pretrained=true")


# -- places that cannot be written -------------------------------------------------------------------------------------


def test_output_that_cannot_be_written(run: Run, finished_run: Path, smears: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    image = sorted(smears.glob("*/*/Img/*.jpg"))[0]
    for place in (f"{tmp_path}/file", f"{tmp_path}/file/below"):
        for verb, words in (
            ("predict", (f"checkpoint={finished_run}", f"source={image}", f"output={place}")),
            ("evaluate", (f"checkpoint={finished_run}", f"output={place}")),
            ("data", ("stats", "malaria", f"data.root={smears}", f"output={place}")),
            ("data", ("show", "malaria", f"data.root={smears}", f"output={place}")),
        ):
            assert str(tmp_path / "file") in run(1, verb, *words)
        message = run(2, "train", "task=malaria_mttl", *TINY, f"data.root={smears}", f"paths.run_dir={place}")
        assert str(tmp_path / "file") in message
    assert "exists already" in run(3, "data", "synth", "malaria", f"output={tmp_path}/file")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_one_sentence_that_says_what_is_kept(
    run: Run, finished_run: Path, smears: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.fsync, [0]

    def full(handle: int) -> None:
        # Nothing of the second image fits, whichever thread comes first.
        if not left[0] or images[1].stem in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        real(handle)

    out, images = tmp_path / "out", sorted(smears.glob("*/*/Img/*.jpg"))[:2]
    monkeypatch.setattr(os, "fsync", full)
    for image in images:
        shutil.copy(image, tmp_path / image.name)
    for fit, verb, words, kept in (
        (3, "predict", (f"checkpoint={finished_run}", f"source={tmp_path}/*.jpg", "masks=false"), "predicted before (1)"),
        (1, "evaluate", (f"checkpoint={finished_run}", "bootstrap=0"), "The run is as it was"),
        (1, "data", ("stats", "malaria", f"data.root={smears}", "data.cache.enabled=false"), "written before are whole"),
    ):
        left[0] = fit
        message = run(1, verb, *words, f"output={out}/{verb}")
        assert message.count("No space left on device") == 1 and f"{out}/{verb}/" in message and kept in message, message
        assert message.startswith("`") and message.endswith("repeat the command.") and "\n" not in message
        written = [path.name for path in (out / verb).rglob("*") if path.is_file()]
        assert len(written) == fit and not [name for name in written if "partial" in name or name == "metrics.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_output_without_permission(run: Run, finished_run: Path, smears: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "ermission" in run(1, "predict", f"checkpoint={finished_run}", f"source={smears}", f"output={tmp_path}/out")
    finally:
        tmp_path.chmod(0o700)


# -- runs and caches that were damaged ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "status", "message"),
    [
        ("split.csv", b"\x00\x01garbage", 3, "split.csv"),
        ("split.csv", b"\xff\xfe\x00garbage", 3, "is damaged"),
        ("split.csv", b"sample_id,split\n", 3, "lacks 12 of 12 samples"),
        ("config.json", b'{"suite": ', 2, "is damaged"),
        ("config.json", b"[]", 2, "is not the configuration of a run"),
        ("checkpoints/last.ckpt", b"x", 4, "is damaged, incomplete"),
    ],
)
def test_damaged_run(
    run: Run, finished_run: Path, tmp_path: Path, name: str, content: bytes, status: int, message: str
) -> None:
    damaged = shutil.copytree(finished_run, tmp_path / "run")
    (damaged / name).write_bytes(content)
    assert message in run(status, "train", f"resume={damaged}", "trainer.max_epochs=2")


def test_resume_of_nothing(run: Run, tmp_path: Path) -> None:
    assert "is not a run" in run(2, "train", f"resume={tmp_path}/none")


def test_damaged_cache_is_built_again(smears: Path, tmp_path: Path) -> None:
    from mtl.data.families.malaria.smears import Malaria
    from mtl.data.pipeline.cache import prepare
    from mtl.imaging.preprocessing import Preprocessing

    geometry = {"mode": "stretch", "size": [64, 64], "scale": 1.0, "overlap": 0, "fill": 0, "min_visible": 0.25}
    preprocessing = Preprocessing.from_config(geometry, {})
    family = Malaria(root=str(smears))
    records = family.records()
    expected = prepare(family, records, preprocessing, tmp_path, progress=False).read(records[3].sample_id).copy()
    for damage in ('{"bytes": 3', "[]", '{"bytes": 3, "entries": 5}'):
        next(tmp_path.glob("*/index.json")).write_text(damage)
        assert (prepare(family, records, preprocessing, tmp_path, progress=False).read(records[3].sample_id) == expected).all()
    next(tmp_path.glob("*/images.bin")).write_bytes(b"short")
    assert (prepare(family, records, preprocessing, tmp_path, progress=False).read(records[3].sample_id) == expected).all()


# -- words -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "words", "status", "message"),
    [
        ("predict", ["checkpoint"], 2, "Expected key=value"),
        ("predict", ["checkpoint=x"], 2, "`source` is required"),
        ("predict", ["checkpoint=x", "source=x", "overlay=false"], 2, "Did you mean `overlays`?"),
        ("predict", ["checkpoint=x", "source=/nowhere/*.jpg"], 3, "matches no image"),
        ("predict", ["checkpoint=x", "source=/nowhere"], 3, "does not exist"),
        ("predict", ["checkpoint=x", "source=x", "pixel_scale=0"], 2, "pixel_scale"),
        ("evaluate", ["checkpoint=x", "split=tset"], 2, "split"),
        ("evaluate", [], 2, "`checkpoint` is required"),
        ("data", ["chek", "malaria"], 2, "Did you mean `check`?"),
        ("data", ["check", "malria"], 2, "Did you mean `malaria`?"),
        ("data", ["check"], 2, "Expected one of: brain, idrid, malaria, malaria_cells, skin"),
        ("describe", ["task=malaria_mtl"], 2, "Did you mean `malaria_mttl`?"),
        ("compare", [], 2, "`suite` is required"),
    ],
)
def test_wrong_words(run: Run, verb: str, words: list[str], status: int, message: str) -> None:
    assert message in run(status, verb, *words)


def test_device_that_is_not_there(run: Run, finished_run: Path, smears: Path, tmp_path: Path) -> None:
    words = [f"checkpoint={finished_run}", f"source={smears}", f"output={tmp_path}/out", "device=banana"]
    assert "Use device=auto or device=cpu" in run(2, "predict", *words)
