"""Notes on the data reach log, results and report of every run, once; and a run is scored on what was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny_runs import resume_run, tiny_run

from mtl.cli import data as data_tools
from mtl.config.plan import Plan
from mtl.core.errors import DataError
from mtl.core.files import file_hash
from mtl.experiments.score import evaluate


def content(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def declare_more(annotation: Path) -> str:
    """Let a file of cells declare a row more than it has; return the note that this is worth."""
    head, *rows = annotation.read_text().splitlines()
    declared, rest = head.split(",", 1)
    annotation.write_text("\n".join([f"{int(declared) + 1},{rest}", *rows]))
    place = annotation.relative_to(annotation.parents[3])
    return f"{place}:1: {int(declared) + 1} rows declared, {declared} found."


@pytest.fixture(scope="module")
def noted(smears: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A run, its data, and the note that these are worth."""
    folder = tmp_path_factory.mktemp("noted")
    data = shutil.copytree(smears, folder / "smears")
    note = declare_more(sorted(data.rglob("GT/*.txt"))[0])
    tiny_run(data, folder / "run", "tasks=[segmentation]", "trainer.max_epochs=1")
    resume_run(folder / "run", "trainer.max_epochs=2", score=True)
    return folder / "run", data, note


def test_a_note_is_in_log_results_and_report_once(noted: tuple[Path, Path, str], caplog: pytest.LogCaptureFixture) -> None:
    """The run was resumed, and its end scored it."""
    run, _, note = noted
    assert (run / "log.txt").read_text().count(f"WARNING note: {note}") == 1
    assert content(run / "metrics.json")["notes"].count(note) == 1
    assert (run / "report.html").read_text().count(note) == 1
    with caplog.at_level("INFO", logger="mtl"):
        again = evaluate(str(run), output=str(run / "again"), device="cpu", report=False)
    assert again["notes"] == content(run / "metrics.json")["notes"]
    assert caplog.messages.count(f"note: {note}") == 1


def test_the_check_prints_it_and_refuses_what_is_lost(
    noted: tuple[Path, Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, data, note = noted
    assert data_tools.run(["check", "malaria", f"data.root={data}"]) == 0
    assert capsys.readouterr().out.count(f"note: {data}/{note}") == 1
    damaged = shutil.copytree(data, tmp_path / "damaged")
    table = sorted(damaged.rglob("GT/*.txt"))[-1]
    lost = table.read_text().count("Uninfected")
    table.write_text(table.read_text().replace("Uninfected", "Gametocyte"))
    assert data_tools.run(["check", "malaria", f"data.root={damaged}"]) == 3
    assert f"error: {lost} of " in capsys.readouterr().out
    words = ["task=malaria_mttl", f"data.root={damaged}"]
    sentence = rf"^{lost} of \d+ annotated cells cannot be used: unknown labels Gametocyte \({lost}\)\..*data\.largest_loss"
    with pytest.raises(DataError, match=sentence):
        _ = Plan.from_words(words).records
    tolerant = Plan.from_words([*words, "data.largest_loss=0.9"])
    assert tolerant.records and sum(text.startswith(f"{lost} of ") for text in tolerant.notes) == 1


def test_the_stored_split_is_scored_although_an_image_was_added(noted: tuple[Path, Path, str], tmp_path: Path) -> None:
    run, data, _ = noted
    before = content(run / "metrics.json")
    more = shutil.copytree(data, tmp_path / "more")
    first = sorted(more.rglob("Img/*.jpg"))[0]
    Image.open(first).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(first.with_name("IMG_new.jpg"))
    shutil.copyfile(first.parent.parent / "GT" / f"{first.stem}.txt", first.parent.parent / "GT" / "IMG_new.txt")

    def scored(split: str | None, root: Path) -> dict[str, Any]:
        place = str(tmp_path / "out")
        return evaluate(str(run), split, place, {"root": str(root)}, device="cpu", bootstrap=0, report=False)

    for split in ("test", None):
        metrics = scored(split, more)
        assert metrics["split"] == "test" and metrics["n_samples"] == before["n_samples"] == 2
        assert metrics["tasks"]["segmentation"]["dice_pooled"] == before["tasks"]["segmentation"]["dice_pooled"]
        assert metrics["budget"] == 8  # of the one epoch that the best checkpoint was asked for
        added = f"Of the data folder 1 image ({first.parent.parent.name}/IMG_new) is not scored"
        assert metrics["notes"][1] == f"{added}, since the training run did not have it."
    assert scored("all", more)["n_samples"] == 13

    rows = [line.split(",") for line in (run / "split.csv").read_text().splitlines()[1:]]
    tested = next(row for row in rows if row[3] == "test")
    file = next(path for path in more.rglob("Img/*.jpg") if file_hash(path) == tested[4])
    Image.open(file).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(file)
    with pytest.raises(DataError, match=r"test split of the run cannot be scored: of its 2 images 1 changed .*split=all"):
        scored("test", more)
    assert scored("val", more)["n_samples"] == 2
    everything = scored(None, more)
    assert everything["split"] == "all" and "10 of them were used in training or selection" in " ".join(everything["notes"])


def test_an_explicit_split_of_other_images_is_refused(noted: tuple[Path, Path, str], tmp_path: Path) -> None:
    from mtl.data.families.malaria.generator import generate_malaria

    generate_malaria(tmp_path / "other", patients=3, fields=1, seed=99, width=320)
    with pytest.raises(DataError, match="holds none of the images that the run was trained with, so that it has no test split"):
        evaluate(str(noted[0]), "test", str(tmp_path / "out"), {"root": str(tmp_path / "other")}, device="cpu", report=False)
    assert not (tmp_path / "out").exists()
