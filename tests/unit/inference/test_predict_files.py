"""`mtl predict` on folders in which something is wrong: one bad file never ends a batch."""

from __future__ import annotations

import csv
import errno
import json
import os
import struct
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import mtl.inference.predict as command
from mtl.core.errors import ConfigError
from mtl.inference import outputs
from mtl.inference.predictor import Predictor

Run = Callable[..., list[str]]


@pytest.fixture
def run(make_model, study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`predict` with a network of squares, from `in` to `out`."""
    predictor = Predictor(make_model(), device="cpu", study=study)
    monkeypatch.setattr(command, "load_predictor", lambda *given: predictor)

    def go(**settings: Any) -> list[str]:
        return command.predict("none.ckpt", str(tmp_path / "in"), str(tmp_path / "out"), **settings)

    return go


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def bomb(path: Path) -> None:
    """Write a PNG of a few bytes that says it has 60,000 x 60,000 pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))


def test_each_bad_file_is_one_sentence(run: Run, field, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(field[0]).save(folder / "a.png")
    whole = (folder / "a.png").read_bytes()
    good = [b"z.png", b"p" * 236 + b".png", b"caf\xe9.png", b"two\nlines.png"]
    for name in good:
        (folder / os.fsdecode(name)).write_bytes(whole)
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    bomb(folder / "bomb.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "far.tif").write_bytes(b"II+\0\x08\0\0\0" + b"\xff" * 8)  # its directory begins behind any file's end
    problems = run(overlays=False)
    printed = capsys.readouterr()
    named = ["pipe.png", "bomb.png", "empty.png", "far.tif", "half.png"]
    assert [Path(problem.split(": ")[0]).name for problem in problems] == named
    assert [line[:7] for line in printed.err.splitlines()] == ["error: "] * 5
    assert printed.out.splitlines()[-1] == f"5 images predicted, 5 skipped (pipe.png, bomb.png, empty.png, ...): {out}"
    rows = rows_of(out)
    assert {row["image"] for row in rows} == {
        str(folder / name) for name in ("a.png", "z.png", "p" * 236 + ".png", "caf\\xe9.png", "two\nlines.png")
    }
    # Every image of the table has all of its files, and each says the same.
    stems = sorted(path.stem for path in out.glob("*.json"))
    assert len(stems) == 5 and {"a", "z", "caf_", "two_lines"} < set(stems)
    for stem in stems:
        assert len(json.loads((out / f"{stem}.json").read_text())["tasks"]["detection"]["objects"]) == 24
        assert {path.name for path in out.glob(f"{stem}_*")} == {
            f"{stem}_heatmap.png", f"{stem}_segmentation.png", f"{stem}_segmentation_confidence.png",
        }  # fmt: skip


def test_what_cannot_be_written_leaves_neither_row_nor_files(
    run: Run, field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name in "abc":
        Image.fromarray(field[0]).save(folder / f"{name}.png")
    (out / "b.json").mkdir(parents=True)  # a folder where a file has to stand
    (problem,) = run(overlays=False)
    assert "b.png: its results cannot be written to" in problem and "Is a directory" in problem
    assert {Path(row["image"]).name for row in rows_of(out)} == {"a.png", "c.png"} and not list(out.glob("b_*"))

    def full(path: Path, content: Any) -> None:
        if path.name.startswith("c"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_text("{}")

    monkeypatch.setattr("mtl.inference.outputs.write_json", full)
    (out / "b.json").rmdir()
    with pytest.raises(OSError, match="No space left"):  # the next file would meet it too
        run(overlays=False)
    assert {Path(row["image"]).name for row in rows_of(out)} == {"a.png", "b.png"} and not list(out.glob("c_*"))


def test_results_are_written_while_the_next_image_is_predicted(
    run: Run, field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first image's files wait for those of the second; rows keep the order of the images."""
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.fromarray(field[0]).save(tmp_path / "in" / f"{name}.png")
    second, write = threading.Event(), outputs.write_json

    def slow(path: Path, content: Any) -> None:
        assert path.stem != "a" or second.wait(60)
        write(path, content)
        if path.stem == "b":
            second.set()

    monkeypatch.setattr(outputs, "write_json", slow)
    assert run(batch_size=1) == []
    names = [Path(row["image"]).name for row in rows_of(tmp_path / "out")]
    assert names == sorted(names) and set(names) == {"a.png", "b.png", "c.png"}


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device", "c.json")])
def test_an_early_end_leaves_files_with_rows_only(
    raised: BaseException, run: Run, field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for name in "abcdefghij":
        Image.fromarray(field[0]).save(tmp_path / "in" / f"{name}.png")
    write = outputs.write_json

    def refused(path: Path, content: Any) -> None:
        if path.stem == "c":
            raise raised
        write(path, content)

    monkeypatch.setattr(outputs, "write_json", refused)
    with pytest.raises(type(raised)):
        run()
    found = {path.stem for path in (tmp_path / "out").glob("*.json")}
    assert {Path(row["image"]).stem for row in rows_of(tmp_path / "out")} == found >= {"a", "b"}
    assert "c" not in found and len(found) < 9  # what had not begun is not done
    left = {path.name for path in (tmp_path / "out").iterdir() if path.name[0] not in found and path.name != "predictions.csv"}
    assert not {name for name in left if name.endswith(".partial") or not name.startswith(".")}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_files_do_not_depend_on_what_shares_a_batch(run: Run, field, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(5):
        Image.fromarray(np.roll(field[0], 17 * number, axis=1)).save(tmp_path / "in" / f"{number}.png")

    def written() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}

    assert run(batch_size=1) == []
    alone = written()
    assert run(batch_size=7) == [] and written() == alone and len(alone) > 20


def test_results_inside_the_source_are_no_images(
    run: Run, field, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(field[0]).save(tmp_path / "in" / "a.png")
    for _ in range(2):
        command.predict("none.ckpt", str(tmp_path / "in"), str(tmp_path / "in" / "first"))
        assert run() == []
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if "left out" in line] == [
        f"{tmp_path}/in/first: 4 files left out, the results of an earlier prediction."
    ] * 3
    assert {Path(row["image"]).name for row in rows_of(tmp_path / "out")} == {"a.png"}


def test_classes_leave_the_numbers_of_the_others_out_and_change_none(run: Run, field, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(field[0]).save(tmp_path / "in" / "a.png")
    run()
    whole = json.loads((tmp_path / "out" / "a.json").read_text())
    command.predict("none.ckpt", str(tmp_path / "in"), str(tmp_path / "few"), classes=["Infected"])
    content, rows = json.loads((tmp_path / "few" / "a.json").read_text()), rows_of(tmp_path / "few")
    found = content["tasks"]["detection"]["objects"]
    assert content["counts"] == {"Infected": 7} and {entry["class"] for entry in found} == {"Infected"} and len(found) == 7
    assert set(content["tasks"]) == {"detection", "roi", "heatmap"}  # `cell` and the grades are no such class
    assert content["parasitemia"] == whole["parasitemia"] == pytest.approx(100 * 7 / 24)  # still of all cells
    assert found == [entry for entry in whole["tasks"]["detection"]["objects"] if entry["class"] == "Infected"]
    assert "n_Healthy" not in rows[0] and rows[0]["n_Infected"] == "7" and "roi_p_Healthy" in rows[0]
    before, after = (cv2.imread(str(tmp_path / name / "a_overlay.png"))[:400, :600] for name in ("out", "few"))
    blue = [
        (np.abs(picture - np.array([245, 90, 30])).max(axis=2) < 3).sum() for picture in (before.astype(int), after.astype(int))
    ]
    assert blue[0] > 100 and blue[1] == 0
    with pytest.raises(ConfigError, match=r"Unknown class `Infectd`.*Did you mean `Infected`"):
        run(classes=["Infectd"])


def test_tasks_and_thresholds(run: Run, field, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(field[0]).save(tmp_path / "in" / "a.png")
    run(tasks=["detection", "grade"], thresholds={"detection": 0.999, "grade": {"some": 0.8}})
    content = json.loads((tmp_path / "out" / "a.json").read_text())
    assert set(content["tasks"]) == {"detection", "grade"} and content["tasks"]["detection"]["objects"] == []
    assert content["tasks"]["grade"]["class_name"] == "none" and content["thresholds"]["detection"] == {"score": 0.999}
    assert not list((tmp_path / "out").glob("*segmentation*"))


def test_a_mask_is_shown_only_where_a_class_is_likely(run: Run, field, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(field[0]).save(tmp_path / "in" / "a.png")
    run(when={"grade": 0.7})  # `some` has 0.75
    shown = (tmp_path / "out" / "a_overlay.png").read_bytes()
    assert (tmp_path / "out" / "a_segmentation.png").exists()
    command.predict("none.ckpt", str(tmp_path / "in"), str(tmp_path / "not"), when={"grade": 0.8})
    content = json.loads((tmp_path / "not" / "a.json").read_text())
    assert content["tasks"]["segmentation"] == {"kind": "segmentation", "withheld": "grade: some 0.75, below 0.8"}
    assert len(content["tasks"]["detection"]["objects"]) == 24 and not list((tmp_path / "not").glob("*segmentation*"))
    assert rows_of(tmp_path / "not")[0]["segmentation_cell_area_ratio"] == ""
    assert (tmp_path / "not" / "a_overlay.png").read_bytes() != shown
    with pytest.raises(ConfigError, match="looks at `grade`, which is not among the tasks"):
        run(when={"grade": 0.8}, classes=["cell"])
