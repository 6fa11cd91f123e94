"""A run is planned once: typed, immutable, without torch, and the same from words, from config.json and from a checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError

ROOT = Path(__file__).parents[3]


def test_planning_imports_no_torch() -> None:
    code = "import sys; from mtl.config.plan import Plan; plan = Plan.from_words(['task=brain_joint']); plan.to_dict(); "
    code += "print(plan.total_epochs, [name for name in ('torch', 'pytorch_lightning', 'timm') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "25 []"


def test_a_stored_plan_is_the_plan(tmp_path: Path) -> None:
    plan = Plan.from_words(["task=brain_joint", "stages.joint.optimizer.parts.backbone.lr=3e-5", "seed=4"])
    stored = json.loads(json.dumps(plan.to_dict()))
    for again in (Plan.from_stored(stored, "config.json"), Plan.from_config(stored), Plan.of_trained(plan.config)):
        assert json.loads(json.dumps(again.to_dict())) == stored
        assert again.specs == plan.specs and [stage.describe() for stage in again.stages] == [
            stage.describe() for stage in plan.stages
        ]


def test_stages_change_typed_sections_and_nothing_else() -> None:
    words = ["stages.joint.optimizer.parts.backbone.lr=3e-5", "+stages.joint.loader.batch_size=3", "trainer.max_epochs=7"]
    plan = Plan.from_words(["task=brain_joint", *words])
    joint = plan.stages[-1]
    assert joint.config.optimizer.parts["backbone"].lr == 3e-5 and joint.config.data.loader.batch_size == 3
    assert plan.config.data.loader.batch_size != 3 and joint.config.data.part == plan.config.data.part
    assert [stage.config.trainer.max_epochs for stage in plan.stages] == [5, 7, 7] and plan.total_epochs == 19
    same = plan.to_dict()
    for key in ("optimizer", "scheduler", "balancer", "monitor", "data", "trainer"):
        del same[key]
    assert {key: value for key, value in joint.config.model_dump().items() if key in same} == same


def test_nobody_changes_a_plan() -> None:
    plan = Plan.from_words(["task=malaria_mttl"])
    with pytest.raises(ValidationError, match="frozen"):
        plan.config.seed = 3
    with pytest.raises(ValidationError, match="frozen"):
        plan.config.data.loader.batch_size = 3


def test_evaluation_may_look_at_other_data_in_other_batches() -> None:
    plan = Plan.from_words(["task=malaria_mttl", "data.root=here"])
    other = Plan.of_trained(plan.config, "there", 7)
    assert (other.config.data.part["root"], other.config.data.loader.eval_batch_size) == ("there", 7)
    assert other.family.root == "there" and plan.family.root == "here"  # type: ignore[attr-defined]
    assert other.config.data.model_copy(update={"root": "here", "loader": plan.config.data.loader}) == plan.config.data


def test_the_configuration_of_another_release_is_refused_in_one_sentence() -> None:
    stored = Plan.from_words(["task=malaria_mttl"]).to_dict()
    with pytest.raises(ConfigError, match=r"`x/config\.json` is not one of this release.*`later`.*train again") as caught:
        Plan.from_stored({**stored, "later": 1}, "x/config.json")
    assert len(caught.value.problems) == 1
    del stored["evaluation"]["hit_radius"], stored["data"]
    with pytest.raises(ConfigError, match="`data` is required"):
        Plan.from_stored(stored, "config.json")


def test_remembering_follows_the_cache() -> None:
    plans = [Plan.from_words(["task=idrid_mtl", *words]) for words in ([], ["data.cache={enabled: true, folder: here}"])]
    assert [plan.family.memo_folder for plan in plans] == [None, Path("here")]
