"""A run plans once: its family is built and indexed once, its images are hashed and compared once per data set."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mtl.cli import data as data_tools
from mtl.config.plan import Plan
from mtl.data.families.brain.family import Brain
from mtl.data.families.idrid.family import Idrid
from mtl.data.formats import duplicates
from mtl.data.pipeline import splits
from mtl.experiments.score import evaluate
from mtl.experiments.train import train
from mtl.runs.resume import resumed_plan

SETTLED = (  # the plan of the run is this one
    "trainer.precision=32-true", "runtime.channels_last=false", "data.loader.num_workers=0", "data.loader.prefetch=2",
)  # fmt: skip
IDRID = (
    "task=idrid_mtl", "tasks=[grade,lesions_ma]", "backbone=test_resnet", "backbone.output_stride=null", "trainer=cpu",
    "data.geometry.size=[64,96]", "data.preprocessing.crop=null", "necks.aspp.width=16", "data.loader.batch_size=2",
    "data.loader.samples_per_epoch=4", "evaluation.bootstrap=0", "evaluation.cases=0", "trainer.max_epochs=1",
    *SETTLED,
)  # fmt: skip
CURRICULUM = (
    "task=brain_joint", "backbone.base_filters=4", "backbone.depth=2", "trainer=cpu", "data.geometry.size=[64,64]",
    "data.min_tumor_pixels=8", "data.split.ratios=[0.5,0.25,0.25]", "data.loader.batch_size=4", "evaluation.bootstrap=0",
    "evaluation.cases=0", "trainer.max_epochs=1", *SETTLED,
)  # fmt: skip


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often families are built and indexed, and files are decoded for the search or read to be hashed."""
    count: Counter[str] = Counter()

    def counted(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            count[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    for family in (Idrid, Brain):
        counted(family, "__init__")
        counted(family, "records")
    counted(duplicates, "fingerprint")
    counted(splits, "file_hash")
    yield count


@pytest.mark.parametrize("suite", ["idrid", "curriculum"])
def test_a_run_builds_and_indexes_its_family_once(
    suite: str, retinas: Path, brains: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    """Stages, their trials, training, and the evaluation of the run and of each stage share the plan. Nothing is written."""
    words, root = (IDRID, retinas) if suite == "idrid" else (CURRICULUM, brains)
    own_cache = f"data.cache.folder={tmp_path / 'cache'}"  # nobody has hashed these files before
    plan = Plan.from_words([*words, f"data.root={root}", own_cache, f"paths.run_dir={tmp_path / 'run'}"])
    metrics, _ = train(plan)
    assert metrics["tasks"] and len(metrics.get("stages", {})) == (3 if suite == "curriculum" else 0)
    files = len({record.path for record in plan.records})
    assert calls["__init__"] == 1 and calls["records"] == 1
    assert calls["file_hash"] == files
    assert 0 < calls["fingerprint"] <= files
    stored = json.loads((tmp_path / "run" / "config.json").read_text())
    assert stored == json.loads(json.dumps(plan.to_dict()))
    assert torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["mtl"]["config"] == plan.to_dict()


def test_later_runs_neither_search_nor_hash_again(retinas: Path, tmp_path: Path, calls: Counter[str]) -> None:
    cache = tmp_path / "cache"
    words = [*IDRID, f"data.root={retinas}", "data.cache.enabled=true", f"data.cache.folder={cache}"]
    first, _ = train(Plan.from_words([*words, f"paths.run_dir={tmp_path / 'first'}"]))
    assert calls["fingerprint"] > 0 < calls["file_hash"]
    before = calls.copy()
    second, _ = train(Plan.from_words([*words, f"paths.run_dir={tmp_path / 'second'}"]))
    again = evaluate(str(tmp_path / "first"), output=str(tmp_path / "again"), report=False)
    assert calls["fingerprint"] == before["fingerprint"] and calls["file_hash"] == before["file_hash"]
    assert calls["records"] == before["records"] + 2  # one for each command
    assert first["tasks"] == second["tasks"] == again["tasks"]
    split = [(tmp_path / name / "split.csv").read_text() for name in ("first", "second")]
    assert split[0] == split[1]
    assert len(list(cache.glob("files_*.json"))) == 1


def test_a_changed_file_is_searched_again(retinas: Path, tmp_path: Path, calls: Counter[str]) -> None:
    words = ["task=idrid_mtl", f"data.root={retinas}", f"data.cache={{enabled: true, folder: {tmp_path}}}"]
    records = Plan.from_words(words).records
    searched = calls["fingerprint"]
    assert Plan.from_words(words).records == records and calls["fingerprint"] == searched
    path = Path(records[0].path)
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    try:
        assert Plan.from_words(words).records == records and calls["fingerprint"] == 2 * searched
    finally:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    memo = next(tmp_path.glob("files_*.json"))
    memo.write_text(memo.read_text().replace('"answer": [', '"answer": ["', 1))
    assert Plan.from_words(words).records == records, "a damaged memo is searched anew"
    assert calls["fingerprint"] == 3 * searched


def test_preparing_the_cache_searches_for_the_training_that_follows(
    retinas: Path, tmp_path: Path, calls: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    place = [
        f"data.root={retinas}",
        f"data.cache.folder={tmp_path}",
        "data.geometry.size=[64,96]",
        "data.preprocessing.crop=null",
    ]
    assert data_tools.run(["prepare", "idrid", *place]) == 0
    assert Path(capsys.readouterr().out.strip()).is_dir()
    searched = calls["fingerprint"]
    assert Plan.from_words(["task=idrid_mtl", *place, "data.cache.enabled=true"]).records and searched > 0
    assert calls["fingerprint"] == searched


def test_a_resumed_run_is_scored_with_what_it_was_resumed_with(retinas: Path, tmp_path: Path) -> None:
    """Its best checkpoint may be older and name a data folder that is gone."""
    moved = tmp_path / "moved"
    moved.symlink_to(retinas)
    run_dir = tmp_path / "run"
    train(Plan.from_words([*IDRID, f"data.root={moved}", f"paths.run_dir={run_dir}"]))
    moved.unlink()
    plan = resumed_plan(str(run_dir), [f"data.root={retinas}", "trainer.max_epochs=2"])
    metrics, _ = train(plan)
    assert metrics["tasks"] and metrics["training"]["epochs"] == 2 and not metrics["training"]["stopped_early"]
