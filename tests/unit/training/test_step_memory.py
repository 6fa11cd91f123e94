"""The peak memory of a step: exact bytes of small networks, growth to any size, and what is done where it does not fit."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from mtl.config.plan import Plan
from mtl.config.schema import OptimizerConfig
from mtl.core.errors import ConfigError
from mtl.core.free_memory import free_memory
from mtl.runs.build import build_balancer, build_evaluator, build_model
from mtl.training import fitting
from mtl.training.fitting import GIB, Room, fitted, room_of, smaller_batches
from mtl.training.live_memory import LiveMemory
from mtl.training.made_up import made_up_batch
from mtl.training.module import MultiTaskModule
from mtl.training.step_memory import Growth, StepMemory, largest, optimizer_state, step_memories, training_timeline

SMALL = ["task=malaria_mttl", "backbone=test_resnet", "trainer=cpu", "tasks=[detection,roi,segmentation,heatmap]"]


def plan_of(*words: str) -> Plan:
    return Plan.from_words([*SMALL, *words])


def test_live_bytes_of_linear_layers_are_exact():
    network = nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 5))
    images = torch.randn(8, 10)
    with LiveMemory([*network.parameters(), images]) as live:
        output = network(images)
        assert live.alive == 4 * 8 * (20 + 5)  # what ReLU keeps, and the output; the first product is gone
        view = output[2:].t()
        assert live.alive == 4 * 8 * 25  # a view takes nothing
        output.sum().backward()
        del view
        assert live.alive == 4 * (8 * 5 + 10 * 20 + 20 + 20 * 5 + 5)  # gradients, and the output, which is still held
        del output
    assert live.alive == 4 * (10 * 20 + 20 + 20 * 5 + 5)
    assert max(live.timeline.peaks[:2]) == 4 * 8 * 40  # both sides of the ReLU


def test_growth_gives_every_segment_its_own_line_and_returns_the_largest():
    measured = [(rows, pixels, [1000 + rows * pixels, 7 * rows]) for rows, pixels in ((2, 100), (4, 100), (2, 200))]
    growth = Growth.through(measured)
    assert growth.at(3, 1000) == 4000 and growth.at(200, 1) == 1400
    assert Growth.through([(2, 50, [30]), (3, 50, [40])]).at(10, 50) == 110


@pytest.mark.parametrize(
    ("settings", "copies"),
    [({"name": "adamw"}, 2), ({"name": "sgd"}, 0), ({"name": "sgd", "options": {"momentum": 0.9}}, 1),
     ({"name": "adam", "options": {"amsgrad": True}}, 3)],
)  # fmt: skip
def test_state_of_an_optimizer(settings: dict[str, Any], copies: int):
    assert optimizer_state(OptimizerConfig(**settings), [nn.Parameter(torch.zeros(3, 5))]) == copies * 60


def module_of(plan: Plan) -> MultiTaskModule:
    model = build_model(plan, load_weights=False)
    module = MultiTaskModule(
        model, build_balancer(plan.config.balancer, plan.config.tasks), build_evaluator(plan, model.specs), plan
    )
    module.trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    return module


@pytest.mark.parametrize("words", [[], ["balancer=mgda"], ["backbone.gradient_checkpointing=true"]], ids=str)
def test_small_steps_tell_a_larger_one(words: list[str]):
    plan = plan_of("tasks=[segmentation,heatmap]", *words)
    module = module_of(plan)
    state = torch.get_rng_state()
    ((_, memory),) = step_memories(plan, "cpu", 1)
    assert torch.equal(state, torch.get_rng_state())
    batch = made_up_batch(module.model.specs, plan.config.tasks, 3, 3, (192, 160))
    timeline = training_timeline(module, batch)
    assert memory.forward.at(3, 192 * 160) == max(timeline.peaks[: timeline.backward])
    assert memory.backward.at(3, 192 * 160) == max(timeline.peaks[timeline.backward :])


def test_settings_that_need_less_need_less():
    sizes = {}
    for name, words in {"plain": [], "half": ["trainer.precision=bf16-mixed"], "frozen": ["backbone.freeze=all"]}.items():
        plan = plan_of("tasks=[segmentation]", *words)
        sizes[name] = largest(step_memories(plan, "cpu", 1), plan)
    assert sizes["half"]["activations"] < 0.8 * sizes["plain"]["activations"]
    assert sizes["frozen"]["weights"] == sizes["plain"]["weights"]
    assert sizes["frozen"]["gradients"] < sizes["plain"]["gradients"]
    assert sizes["plain"]["optimizer state"] == 2 * sizes["plain"]["gradients"]


def known_need(monkeypatch: pytest.MonkeyPatch, per_row: int = GIB) -> None:
    """Let every network need so many bytes per image, and nothing else."""
    nothing, zero = Growth(*torch.zeros(3, 1).double()), torch.zeros(1).double()
    rows = Growth(zero, zero + per_row, zero)
    memory = StepMemory(0, 0, 0, 0, 0, rows, nothing, nothing, nothing, nothing, 0.0)
    monkeypatch.setattr(fitting, "step_memories", lambda *_: [(0, memory)])
    monkeypatch.setattr(fitting, "labels_together", lambda plan: set())


def test_what_fits_is_left_alone_and_what_is_small_is_not_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    known_need(monkeypatch)
    plan = plan_of("data.loader.batch_size=8", "runtime.fit=auto")
    assert fitted(plan, tmp_path, Room("cpu", 1, 8 * GIB)) is plan
    monkeypatch.setattr(fitting, "step_memories", lambda *_: pytest.fail("measured"))
    small = plan_of("data.loader.batch_size=2", "data.geometry.size=[64,64]")
    assert fitted(small, tmp_path, Room("cpu", 1, 2 * GIB)) is small
    off = plan_of("data.loader.batch_size=64", "runtime.fit=null")
    assert fitted(off, tmp_path, Room("cpu", 1, 1)) is off


def test_too_large_a_batch_is_warned_of_with_the_one_that_fits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    known_need(monkeypatch)
    monkeypatch.setattr(logging.getLogger("mtl"), "propagate", True)
    plan = plan_of("data.loader.batch_size=8")
    with caplog.at_level(logging.WARNING, "mtl"):
        assert fitted(plan, tmp_path, Room("cpu", 1, 6 * GIB)) is plan
    line = caplog.messages[-1]
    assert "needs about 8.0 GiB (activations 8.0), but 6.0 GiB are free on this machine" in line
    assert "data.loader.batch_size=4 and trainer.accumulate_grad_batches=2, 8 images per step as before" in line
    with pytest.raises(ConfigError, match=r"would end the process.*batch_size=2 and .*batches=4.*runtime\.fit=null"):
        fitted(plan, tmp_path, Room("cpu", 1, 3 * GIB))


def test_auto_makes_smaller_batches_of_as_many_images(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    known_need(monkeypatch)
    words = [
        "data.loader.batch_size=12",
        "trainer.accumulate_grad_batches=2",
        "trainer.limit_train_batches=5",
        "runtime.fit=auto",
    ]
    plan = fitted(plan_of(*words), tmp_path, Room("cpu", 1, 5 * GIB))
    config = plan.config
    assert (config.data.loader.batch_size, config.trainer.accumulate_grad_batches) == (4, 6)
    assert config.trainer.limit_train_batches == 15
    assert plan.stages[0].config.data.loader.batch_size == 4
    assert plan.to_dict()["runtime"]["asked"] == {"batch_size": 12, "accumulate_grad_batches": 2}
    # Going on, the run keeps what was decided, whatever is free by then.
    again = Plan.from_config(plan.to_dict() | {"resume": str(tmp_path)})
    assert fitted(again, tmp_path, Room("cpu", 1, 3 * GIB)) is again
    with pytest.raises(ConfigError, match="Not even batches of one image fit"):
        fitted(plan_of(*words), tmp_path, Room("cpu", 1, GIB // 2))


def test_batches_are_divided_evenly_in_every_stage():
    plan = Plan.from_words(["task=brain_joint", "data.loader.batch_size=12"])
    found = [
        (plan.config.data.loader.batch_size, plan.config.trainer.accumulate_grad_batches) for plan in smaller_batches(plan)
    ]
    stages = {stage.config.data.loader.batch_size for stage in plan.stages}
    assert all(size * times == 12 for size, times in found) and (1, 12) in found if stages == {12} else found
    assert smaller_batches(plan_of("data.loader.batch_size=7"))[0].config.data.loader.batch_size == 1


def test_other_ranks_do_as_the_first_one_did(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    known_need(monkeypatch)
    plan = plan_of("data.loader.batch_size=8", "runtime.fit=auto")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="started from outside"):
        fitted(plan, tmp_path, Room("cpu", 2, 3 * GIB))
    monkeypatch.delenv("WORLD_SIZE")
    decided = fitted(plan, tmp_path, Room("cpu", 2, 3 * GIB))
    (tmp_path / "config.json").write_text(json.dumps(decided.to_dict()))
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert fitted(plan, tmp_path, Room("cpu", 2, 99 * GIB)).config.data.loader.batch_size == 2


def test_free_memory_is_the_least_of_machine_and_groups(tmp_path: Path):
    assert free_memory(tmp_path) is None
    for name, text in {
        "proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB\n",
        "proc/self/cgroup": "0::/user/job\n",
        "sys/fs/cgroup/user/job/memory.max": "max\n",
        "sys/fs/cgroup/user/job/memory.current": "4096\n",
        "sys/fs/cgroup/user/memory.max": "5000000\n",
        "sys/fs/cgroup/user/memory.current": "3000000\n",
        "sys/fs/cgroup/user/memory.stat": "anon 1\ninactive_file 500000\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == 2_500_000
    (tmp_path / "sys/fs/cgroup/user/memory.max").write_text("max\n")
    assert free_memory(tmp_path) == 8000 * 1024
    old = tmp_path / "sys/fs/cgroup/memory"
    old.mkdir()
    (tmp_path / "proc/self/cgroup").write_text("4:memory:/docker/abc\n")
    (old / "memory.limit_in_bytes").write_text("1000000")
    (old / "memory.usage_in_bytes").write_text("400000")
    assert free_memory(tmp_path) == 600_000


def test_ranks_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fitting, "free_memory", lambda: 12 * GIB)
    assert room_of(plan_of("trainer.devices=3").config.trainer) == Room("cpu", 3, 4 * GIB)
    assert room_of(plan_of().config.trainer).free == 12 * GIB
