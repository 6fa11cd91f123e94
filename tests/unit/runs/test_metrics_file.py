"""Files of results: exact round trip, no NaN in JSON, clear refusals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtl.core.errors import DataError
from mtl.core.task import TaskSpec
from mtl.core.types import ImageResult, Window
from mtl.metrics.evaluator import Evaluator
from mtl.runs.results import load_records, main_metrics, metrics_content, read_metrics, save_cases, save_records, write_metrics

SPECS = {
    "detection": TaskSpec("detection", "detection", ("a", "b"), members=(("a",), ("b", "c"))),
    "value": TaskSpec("value", "regression", ()),
}


def evaluator() -> Evaluator:
    generator = np.random.default_rng(0)
    window = Window(0, 1, (1, 1), (0, 0), (0, 0), (64, 64), (64, 64), (64, 64), (64, 64))
    filled = Evaluator(SPECS, group_by="field")
    for index in range(4):
        boxes = np.sort(generator.uniform(0, 60, (30, 2, 2)), axis=1).reshape(30, 4).astype(np.float32)
        labels, scores = generator.integers(0, 2, 30), generator.random(30).astype(np.float32)
        truth = {"detection": {"boxes": boxes[:20], "labels": labels[:20]}, "value": {"value": np.array(generator.normal())}}
        guess = {
            "detection": {"boxes": boxes, "labels": labels, "scores": scores},
            "value": {"value": np.array(np.nan if index == 3 else generator.normal())},
        }
        filled.update(*(ImageResult(f"i{index}", f"p{index}", "s", window, tasks) for tasks in (guess, truth)))
    return filled


def test_records_come_back_exactly(tmp_path: Path) -> None:
    before, path = evaluator(), tmp_path / "predictions" / "records.json"
    save_records(path, before)
    loaded = load_records(path)
    assert loaded["specs"] == SPECS and loaded["group_by"] == "field"
    after = Evaluator(loaded["specs"], group_by=loaded["group_by"])
    after.extend(loaded)
    for task, records in before.records()["tasks"].items():
        for first, second in zip(records, after.records()["tasks"][task], strict=True):
            assert first.keys() == second.keys()
            for key, value in first.items():
                if isinstance(value, np.ndarray | np.generic):
                    assert np.asarray(value).dtype == np.asarray(second[key]).dtype
                np.testing.assert_array_equal(value, second[key])
    thresholds = before.thresholds()
    assert str(after.compute(thresholds)) == str(before.compute(thresholds))
    assert len(path.read_text()) < 8000
    assert [entry.name for entry in path.parent.iterdir()] == ["records.json"]


def test_metrics_file(tmp_path: Path) -> None:
    filled = evaluator()
    summary = filled.summary(filled.thresholds(), bootstrap=10)
    path = tmp_path / "metrics.json"
    written = metrics_content(summary, suite="malaria_mttl", split="test", checkpoint="best.ckpt", seed=1, notes=["first"])
    write_metrics(path, written)
    assert list(written)[:5] == ["suite", "split", "checkpoint", "seed", "score"]
    assert read_metrics(path) == written
    assert written["notes"] == ["first", *summary["notes"]] and summary["notes"]
    json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert written["tasks"]["value"]["mae"] is None


@pytest.mark.parametrize(
    ("text", "words"), [(None, "Cannot read"), ("{", "not valid JSON"), ("[]", "list"), ("{}", "no `tasks`")]
)
def test_unusable_files_are_named(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "metrics.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=words):
        read_metrics(path)


def test_a_changed_number_is_noticed(tmp_path: Path, case_study: Any) -> None:
    study = case_study(hd95=False)
    save_records(tmp_path / "records.json", study)
    write_metrics(tmp_path / "metrics.json", {"tasks": {"a": {"dice": 0.75}}})
    assert read_metrics(tmp_path / "metrics.json")["tasks"] == {"a": {"dice": 0.75}}
    for name, read in (("records.json", load_records), ("metrics.json", read_metrics)):
        text = (tmp_path / name).read_text()
        place = next(index for index in range(len(text) - 1, 0, -1) if text[index] in "57")
        (tmp_path / name).write_text(text[:place] + "6" + text[place + 1 :])
        with pytest.raises(DataError, match=f"{name}` is not what was written"):
            read(tmp_path / name)


def test_other_record_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.json"
    path.write_text('{"format": 99}')
    with pytest.raises(DataError, match="format 99"):
        load_records(path)


def test_volumes_come_back_and_have_a_table(tmp_path: Path, case_study: Any) -> None:
    before, path = case_study(), tmp_path / "records.json"
    save_records(path, before)
    loaded = load_records(path)
    after = Evaluator(loaded["specs"])
    after.extend(loaded)
    thresholds = before.default_thresholds()
    summary = before.summary(thresholds, 20)
    assert after.summary(thresholds, 20) == summary and summary["tasks"]["presence"]["per_subgroup"]["sex"]
    save_cases(tmp_path / "cases.csv", summary["cases"])
    rows = list(csv.DictReader((tmp_path / "cases.csv").open()))
    assert len(rows) == 6 * 2 and {row["class"] for row in rows} == {"core", "edema"}
    assert float(rows[0]["dice"]) == summary["cases"]["tumor"]["case00"]["core"]["dice"]
    save_cases(tmp_path / "none.csv", {})
    assert not (tmp_path / "none.csv").exists()


def test_volumes_of_one_patient_stay_apart_in_files(tmp_path: Path, case_study: Any) -> None:
    before, path = case_study(hd95=False), tmp_path / "records.json"
    for number, record in enumerate(before.metrics["tumor"].records):
        record["case"] = f"{record['group']}-{number % 2:03d}"
    save_records(path, before)
    after = before.empty()
    after.extend(load_records(path))
    summary = after.summary(before.default_thresholds(), 0)
    assert summary == before.summary(before.default_thresholds(), 0)
    assert len(summary["cases"]["tumor"]) == 12 and "case00-001" in summary["cases"]["tumor"]
    save_cases(tmp_path / "cases.csv", summary["cases"])
    assert len(list(csv.DictReader((tmp_path / "cases.csv").open()))) == 12 * 2


def test_records_from_before_subgroups_are_still_read(tmp_path: Path, case_study: Any) -> None:
    study, path = case_study(hd95=False), tmp_path / "records.json"
    save_records(path, study)
    content = json.loads(path.read_text())
    for record in content["tasks"].pop("tumor") + content["tasks"]["presence"]:
        record.pop("attributes", None)
    del content["specs"]["tumor"], content["specs"]["presence"]["volumetric"]
    del content["digest"]  # which is younger than these records
    path.write_text(json.dumps(content))
    loaded = load_records(path)
    old = Evaluator(loaded["specs"])
    old.extend(loaded)
    ours = study.compute(study.default_thresholds())["presence"]
    assert old.compute(old.default_thresholds())["presence"] == ours
    assert old.summary(old.default_thresholds(), 0)["tasks"]["presence"]["per_subgroup"] == {}


def test_main_metrics_keep_what_readers_look_for() -> None:
    names = ["auroc", "f1_macro", "accuracy", "balanced_accuracy", "sensitivity", "loss", "hd95_per_case"]
    assert main_metrics(names) == [*names[:5], "hd95_per_case"]
