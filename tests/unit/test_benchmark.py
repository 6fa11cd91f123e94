"""The benchmark script on the smallest network: what it measures, writes and refuses."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("benchmark")
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.fixture
def words(smears: Path) -> list[str]:
    suite = ["task=malaria_mttl", "tasks=[segmentation,heatmap]", "backbone=test_resnet"]
    return [*suite, "data.geometry.size=[64,64]", f"data.root={smears}", "trainer=cpu"]


def test_measures_and_rewrites_its_section_only(benchmark: ModuleType, words: list[str], tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\nby hand\n")
    sections = ["--sections", "step", "parts", "loading", "--repetitions", "2"]
    result = benchmark.main([*words, *sections, "--output", str(page)])
    benchmark.write_section(page, benchmark.markdown(result))
    values = {(row["section"], row["what"]): row["value"] for row in result["rows"]}
    assert 0.2 < values["training step", "ratio"] < 5
    assert values["training step", "ratio"] == pytest.approx(
        values["training step", "Trainer and module"] / values["training step", "bare PyTorch loop"], rel=0.5
    )
    shares = {what: value for (section, what), value in values.items() if section == "parts of a step"}
    assert sum(shares.values()) == pytest.approx(100)
    assert shares["head segmentation (unet)"] > 0 and shares["head heatmap (heatmap)"] > 0
    assert values["data loading", "from the cache"] > 0
    text = page.read_text()
    assert text.startswith("# Title\n\nby hand\n")
    assert text.count("| training step |") == 1 and "by hand" in text
    assert "torch" in result["environment"]["versions"] and result["command"].startswith("python scripts/benchmark.py task=")


def test_defaults_give_way_to_the_command_line(benchmark: ModuleType) -> None:
    _, overrides = benchmark.parse(["data.loader.batch_size=8", "--threads", "2"])
    assert overrides == ["task=malaria_mttl", "data.geometry.size=[256,256]", "data.loader.batch_size=8"]
    _, overrides = benchmark.parse(["experiment=demo"])
    assert overrides == ["experiment=demo"]


def test_the_bare_loop_trains_the_same_parameters(benchmark: ModuleType, words: list[str]) -> None:
    import benchmark_steps as steps
    import torch

    from mtl.config.plan import Plan

    plan = Plan.from_words([*words, "data.loader.batch_size=2"])
    module = steps.build_module(plan)
    before = {name: value.clone() for name, value in module.model.named_parameters()}
    batch = steps.first_batch(plan, module.model)
    step = steps.bare_step(plan.config, module)
    for _ in range(2):  # the last norm of a residual block starts at 0 and hides what is before it from the first step
        step(batch)
    still = [name for name, value in module.model.named_parameters() if torch.equal(value, before[name])]
    assert not still
