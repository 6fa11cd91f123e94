"""The slide benchmark on the smallest network, in one process."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    module = importlib.import_module("benchmark_slide")

    def call(words: list[str]) -> dict[str, Any]:
        return module.generate(*words[1:]) if words[0] == "--generate" else module.predict(float(words[1]), words[2:])

    monkeypatch.setattr(module, "call", call)
    return module


def test_draws_predicts_and_writes_its_own_section(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- benchmark: begin (written by scripts/benchmark.py) -->\nold\n<!-- benchmark: end -->\n")
    network = ["backbone=test_resnet", "data.geometry.size=[96,96]", "data.geometry.overlap=32"]
    words = ["--size", "160", "200", *network, "--density", "20000", "--keep", str(tmp_path), "--json"]
    result = benchmark.main([*words, "--output", str(page), "--predict", "batch_size=2", "overlays=false"])
    assert json.loads(capsys.readouterr().out) == result
    values = {row["what"]: row["value"] for row in result["rows"]}
    assert values["windows with tissue"] > 0 and values["speed"] > 0 and values["cells written"] > 10
    assert 0.1 < values["peak memory"] < 16
    summary = json.loads((tmp_path / "results" / "160x200" / "til-score.json").read_text(encoding="utf-8"))
    assert summary["settings"]["tissue_masks"] == str(tmp_path / "tissue-masks")
    assert sum(area > 0 for area in summary["areas_um2"].values()) >= 2
    text = page.read_text(encoding="utf-8")
    assert "\nold\n" in text and "(written by scripts/benchmark_slide.py)" in text and text.count("peak memory") == 1
