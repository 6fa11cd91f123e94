"""What `auto` means for the processes that load data."""

from __future__ import annotations

from typing import Any

import pytest

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError
from mtl.training import loading as owner
from mtl.training.loading import MIB, Machine, machine_of, settled_loading

BATCH = 50 * MIB


def plan_of(*words: str) -> Plan:
    return Plan.from_words(["task=malaria_mttl", "trainer=cpu", *words])


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        (Machine("cpu", 1), (0, 2)),
        (Machine("cpu", 2), (0, 2)),
        (Machine("cpu", 8), (2, 2)),
        (Machine("cpu", 256), (8, 2)),
        (Machine("cuda", 1), (0, 2)),
        (Machine("cuda", 4), (3, 2)),
        (Machine("cuda", 64), (8, 2)),
        (Machine("cuda", 64, memory=4096 * MIB), (4, 2)),
        (Machine("cuda", 64, memory=100 * MIB), (0, 2)),
        (Machine("cuda", 64, shared=2000 * MIB), (8, 2)),
        (Machine("cuda", 64, shared=900 * MIB), (8, 1)),
        (Machine("cuda", 64, shared=300 * MIB), (3, 1)),
        (Machine("cuda", 64, shared=64 * MIB), (0, 1)),  # a container as it comes
    ],
)
def test_processes_suit_the_machine(machine: Machine, expected: tuple[int, int]) -> None:
    count, ahead, why = machine.processes(BATCH)
    assert (count, ahead) == expected
    limit = "/dev/shm" if ahead == 1 else "of memory" if machine.memory else f"{machine.cores} core"
    assert limit in why


def test_settled_once() -> None:
    before = plan_of()
    assert before.config.data.loader.num_workers == before.config.data.loader.prefetch == "auto"
    plan, sentence = settled_loading(before, Machine("cuda", 6))
    assert (plan.config.data.loader.num_workers, plan.config.data.loader.prefetch) == (5, 2)
    assert sentence == "5 processes, each 2 batches ahead (auto: 6 cores for a rank on a GPU)"
    assert settled_loading(before, Machine("cpu", 2))[1] == "in the process that trains (auto: 2 cores for a rank on a CPU)"
    # A run that goes on keeps what it has, on whatever machine, unless it is asked anew.
    again, sentence = settled_loading(plan, Machine("cpu", 1))
    assert again.to_dict() == plan.to_dict() and sentence == "5 processes, each 2 batches ahead (as configured)"


def test_what_is_set_stands() -> None:
    small = Machine("cuda", 2, memory=1, shared=1)
    plan, _ = settled_loading(plan_of("data.loader.num_workers=3"), small)
    assert (plan.config.data.loader.num_workers, plan.config.data.loader.prefetch) == (3, 1)
    plan, _ = settled_loading(plan_of("data.loader.prefetch=7"), Machine("cuda", 3))
    assert (plan.config.data.loader.num_workers, plan.config.data.loader.prefetch) == (2, 7)
    with pytest.raises(ConfigError, match=r"data\.loader\.num_workers"):
        plan_of("data.loader.num_workers=many")


def test_stages_and_index_go_along() -> None:
    words = ("task=brain_joint", "trainer=cpu", "+stages.joint.loader.num_workers=auto", "+stages.joint.loader.batch_size=3")
    before = Plan.from_words(list(words))
    before.__dict__["records"] = records = [object()]
    plan, _ = settled_loading(before, Machine("cuda", 4))
    assert plan.records is records
    assert {stage.config.data.loader.num_workers for stage in plan.stages} == {3}
    assert [stage.config.data.loader.batch_size for stage in plan.stages].count(3) == 1


@pytest.mark.parametrize(
    ("variables", "devices", "cores"),
    [
        ({}, 1, 12), ({}, 4, 3), ({}, 100, 1),
        ({"SLURM_NTASKS": "4", "SLURM_CPUS_PER_TASK": "5"}, 4, 5),  # a task is a rank, with cores of its own
        ({"SLURM_NTASKS": "1", "SLURM_CPUS_PER_TASK": "12"}, 4, 3),  # ranks of one task share them
    ],
)  # fmt: skip
def test_ranks_share_a_machine(variables: dict[str, str], devices: int, cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_NTASKS", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    disk: Any = type("Disk", (), {"free": 800 * MIB})
    monkeypatch.setattr(owner, "usable_cores", lambda: 12)
    monkeypatch.setattr(owner, "free_memory", lambda: 4000 * MIB)
    monkeypatch.setattr(owner.shutil, "disk_usage", lambda folder: disk)
    found = machine_of(plan_of(f"trainer.devices={devices}"))
    assert found == Machine("cpu", cores, 4000 * MIB // devices, 800 * MIB // devices)
