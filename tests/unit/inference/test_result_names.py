"""Names of results: apart, short enough, and never taken for images later."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from mtl.core.errors import ConfigError, DataError
from mtl.core.names import readable
from mtl.inference.images import case_files, find_images
from mtl.inference.result_names import mark_results, output_names


def names(*paths: str, endings: tuple[str, ...] = (".json",)) -> list[str]:
    found = output_names((Path(path) for path in paths), endings)
    assert len({name.casefold() for name in found.values()}) == len(paths)
    return [found[Path(path)] for path in paths]


def test_equal_names_keep_their_folders() -> None:
    assert names("a/x.png", "b/x.png", "a/y.png") == ["a__x", "b__x", "y"]
    assert names("a/x.png", "b/x.jpg") == ["a__x", "b__x"]
    assert names("a/x.png", "a/x.jpg", "b/x.png") == ["a__x_png", "a__x_jpg", "b__x"]
    assert names("p1/Img/a.png", "p2/Img/A.png") == ["p1__Img__a", "p2__Img__A"]
    assert names("b/x.png", "a/x.png") == ["b__x", "a__x"]  # whatever the order


def test_one_result_is_never_called_like_another() -> None:
    endings = (".json", "_tumor.png", "_whole_tumor.png", "_overlay.png")
    first, second = names("s/a.png", "s/a_whole.png", endings=endings)  # both would have `a_whole_tumor.png`
    assert len({name + ending for name in (first, second) for ending in endings}) == 2 * len(endings)
    assert names("s/a.png", "s/a_whole.png") == ["a", "a_whole"]


def test_long_names_are_cut_and_stay_apart() -> None:
    long = "p" * 236
    first, second, other = names(f"s/{long}.png", f"s/{long}q.png", "s/é.png", endings=("_segmentation_confidence.png",))
    assert first == "p" * (len(first) - 9) + "~" + hashlib.sha256(long.encode()).hexdigest()[:8] and other == "é"
    assert len(f"{first}_segmentation_confidence.png") == 255 == len(f"{second}_segmentation_confidence.png")
    assert names(f"s/{long}.png", endings=("_segmentation_confidence.png",)) == [first]  # whatever lies beside it
    assert len(names("s/" + "ü" * 125 + ".png")[0].encode()) <= 255


def test_bytes_that_are_no_text_and_line_breaks_do_not_reach_result_names() -> None:
    path = os.fsdecode(b"s/caf\xe9\n.png")
    assert names(path) == ["caf__"] and readable(path) == "s/caf\\xe9\n.png"


def test_results_are_left_out_and_said(tmp_path: Path) -> None:
    for file in ("x.png", "y.png", "out/x.json", "out/x_overlay.png", "out/x_mask.nii.gz", "out/own.png", "out/s/overview.png",
                 "old/a.json", "old/a_overlay.png", "slide/til-score.json", "slide/tissue.tif"):  # fmt: skip
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    mark_results(tmp_path / "out", ["x"], [".json", "_overlay.png"])
    mark_results(tmp_path / "out", ["s"], ["_mask.nii.gz"])  # of another prediction into the same folder
    (tmp_path / "old" / "predictions.csv").write_text("image,width,height,object\n")  # of a release that left no mark
    found = find_images(tmp_path, leave_out=tmp_path / "elsewhere")
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["out/own.png", "x.png", "y.png"]
    said = [note.replace(str(tmp_path), "") for note in found.notes]
    assert said == [
        f"/{folder}: {count} left out, the results of an earlier prediction."
        for folder, count in (("old", "1 file"), ("out", "2 files"), ("out/s", "1 file"), ("slide", "1 file"))
    ]
    for file in ("out/x_overlay.png", "slide/tissue.tif"):
        with pytest.raises(DataError, match="is a result of an earlier prediction"):
            find_images(tmp_path / file)
    with pytest.raises(DataError, match=r"holds no image.*results of an earlier prediction"):
        find_images(tmp_path / "old")
    with pytest.raises(ConfigError, match="is where the images"):
        find_images(tmp_path, leave_out=tmp_path)


def test_a_table_of_somebody_else_marks_nothing(tmp_path: Path) -> None:
    for file in ("x.json", "x_2.png"):
        (tmp_path / file).write_bytes(b"{}")
    (tmp_path / "predictions.csv").write_text("id,label\n1,2\n")
    assert [path.name for path in find_images(tmp_path)] == ["x_2.png"]


def test_what_is_not_predicted_is_named(tmp_path: Path) -> None:
    for name in ("a.png", "b.dcm", "c.heic", "d.txt"):
        (tmp_path / name).write_bytes(b"")
    found = find_images(tmp_path)
    assert [path.name for path in found] == ["a.png"]
    assert found.notes == [f"{tmp_path}: 2 files left out, of other suffixes (first: b.dcm)."]
    for name in ("k_flair.nii", "k_flair.nii.gz", "k_t1.nii"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"k_flair\.nii and k_flair\.nii\.gz are both flair"):
        case_files(tmp_path / "k")


def test_links_are_followed_and_what_is_no_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (tmp_path / "elsewhere").mkdir()
    (folder / "named.png").mkdir(parents=True)
    for file in ("elsewhere/c.png", "in/a.png", "in/named.png/b.png"):
        (tmp_path / file).write_bytes(b"")
    (folder / "batch2").symlink_to(tmp_path / "elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (folder / "gone").symlink_to(tmp_path / "no_folder")
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "control")
    found = find_images(folder)
    assert [path.relative_to(folder).as_posix() for path in found] == ["a.png", "batch2/c.png", "named.png/b.png"]
    said = {path.name: sentence.split(": ")[1].split(".")[0] for path, sentence in found.unread.items()}
    assert said == {
        "gone": "is a link that leads nowhere", "gone.jpg": "is a link that leads nowhere",
        "pipe.png": "is no regular file but a pipe, a device or a socket",
    }  # fmt: skip
    globbed = find_images(f"{folder}/*.png")
    assert [path.name for path in globbed] == ["a.png"]
    assert [path.name for path in globbed.unread] == ["named.png", "pipe.png"] and "is a folder" in globbed.unread[
        folder / "named.png"
    ]
    with pytest.raises(DataError, match="is no regular file but a pipe"):
        find_images(folder / "pipe.png")
