"""`mtl data synth|check|stats|show|prepare` as the command line runs them."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import pytest

from mtl.cli.main import guarded


def data(*words: str) -> int:
    return guarded("data", list(words))


@pytest.mark.parametrize("family", ["malaria", "malaria_cells"])
def test_drawn_data_pass_the_check(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, small = tmp_path / "drawn", ["width=320"] if family == "malaria" else []
    assert data("synth", family, f"output={out}", "patients=3", "fields=2", "seed=4", *small) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert data("check", family, f"data.root={out}") == 0
    report = capsys.readouterr().out
    assert "images: 6" in report and "patients: 3" in report and report.rstrip().endswith("0 errors, 0 notes")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in out.rglob("*"))
    assert data("synth", family, f"output={out}", "patients=1", "fields=1") == 3
    assert "overwrite=true" in capsys.readouterr().err
    assert sorted((path.name, path.stat().st_mtime_ns) for path in out.rglob("*")) == before
    assert data("synth", family, f"output={out}", "patients=1", "fields=1", "overwrite=true", *small) == 0
    assert data("check", family, f"data.root={out}") == 0 and "images: 1\n" in capsys.readouterr().out


def test_drawn_retinas_pass_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn"
    assert data("synth", "idrid", f"output={out}", "patients=5", "fields=2", "width=160") == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert data("check", "idrid", f"data.root={out}") == 0
    report = capsys.readouterr().out
    assert "photographs: 10" in report and "0 errors" in report and "there more than once" in report
    assert data("synth", "idrid", f"output={tmp_path / 'other'}", "kind=points") == 2
    assert data("check", "idrid", f"data.root={out / 'A. Segmentation'}") == 3
    assert f"Did you mean data.root={out}?" in capsys.readouterr().out


def test_drawn_skin_passes_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "drawn"
    assert data("synth", "skin", f"output={out}", "patients=4", "fields=2", "width=64", "kind=ids") == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert data("check", "skin", f"data.root={out}") == 0
    report = capsys.readouterr().out
    assert "images: 8" in report and "groups: 4" in report and "0 errors" in report and "lesion: known for" in report
    assert data("check", "skin", f"data.root={tmp_path}") == 3
    assert f"Did you mean data.root={out}?" in capsys.readouterr().out
    (out / "classes.json").write_text('{"0": "acne"}')
    assert data("check", "skin", f"data.root={out}") == 3 and "Set data.attributes.diagnosis=[acne]" in capsys.readouterr().out


def test_seed_and_kind_reach_the_drawing(tmp_path: Path) -> None:
    for name, more in (("a", ()), ("b", ()), ("c", ("seed=1",)), ("d", ("kind=polygons",))):
        words = [f"output={tmp_path / name}", "patients=2", "fields=1", "width=160", *more]
        assert data("synth", "malaria", *words) == 0
    images = {name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.jpg"))] for name in "abcd"}
    assert images["a"] == images["b"] != images["c"] and images["a"] == images["d"]
    assert [path.name for path in (tmp_path / "d").glob("[!.]*")] == ["Polygon Set"]


def test_tools_write_what_they_print(
    smears: Path, cells: Path, retinas: Path, lesions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for family, root in (("malaria", smears), ("malaria_cells", cells), ("idrid", retinas), ("skin", lesions)):
        for tool in ("stats", "show"):
            out = tmp_path / family / tool
            assert data(tool, family, f"data.root={root}", f"output={out}", "count=2") == 0
            printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
            assert printed and set(printed) == {path for path in out.rglob("*") if path.is_file()}
            pictures = [path for path in printed if path.suffix == ".png"]
            assert pictures and all(cv2.imread(str(path)).std() > 5 for path in pictures)
    with (tmp_path / "malaria" / "stats" / "patients.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["patient"] for row in rows} >= {path.name for path in smears.glob("*/*")}


def test_prepared_images_are_those_that_training_reads(
    smears: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_runs import tiny_run

    words = ["malaria", f"data.root={smears}", "data.geometry.size=[64,64]", f"data.cache.folder={tmp_path}/cache"]
    assert data("prepare", *words) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    stamp = (folder / "images.bin").stat().st_mtime_ns
    cache = ("data.cache.enabled=true", f"data.cache.folder={tmp_path}/cache")
    tiny_run(smears, tmp_path / "run", "tasks=[segmentation]", "debug=fast", *cache)
    assert (folder / "images.bin").stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [folder.name]


def test_overview_lists_tools_and_families(capsys: pytest.CaptureFixture[str]) -> None:
    assert data() == 0 and data("--help") == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("synth", "check", "stats", "show", "prepare", "malaria", "malaria_cells"))
    for verb in ("train", "evaluate", "predict", "compare", "describe"):
        assert guarded(verb, ["--help"]) == 0
        assert "Keys and defaults" in capsys.readouterr().out
