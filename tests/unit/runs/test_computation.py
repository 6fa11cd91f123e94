"""What `auto` means on a machine, and what a trained network computes in afterwards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError
from mtl.runs import precision as owner
from mtl.runs.precision import Computation, device_kind, made_for_bfloat16, settled, usable
from mtl.runs.stored import converted_config
from mtl.training.callbacks.same_computation import SameComputation

MADE_FOR_BFLOAT16 = made_for_bfloat16  # tests see a machine that is not (`float32_machine`)
CPU = torch.device("cpu")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets by kind of device what it computes bfloat16 with."""

    def has(**able: str) -> None:
        monkeypatch.setattr(owner, "made_for_bfloat16", lambda kind: able.get(kind, ""))

    return has


def plan_of(*words: str) -> Plan:
    return Plan.from_words(["task=brain_joint", "trainer=cpu", *words])


@pytest.mark.parametrize(
    ("words", "instruction", "precision", "channels_last", "said"),
    [
        ((), "avx512_bf16", "bf16-mixed", True, "bf16-mixed, channels_last=true (auto: this cpu has avx512_bf16)"),
        ((), "", "32-true", False, "32-true, channels_last=false (auto: this cpu is not made for bfloat16)"),
        (("trainer.precision=32",), "avx512_bf16", 32, False, "32-true, channels_last=false (auto"),
        (("runtime.channels_last=false",), "amx_bf16", "bf16-mixed", False, "bf16-mixed, channels_last=false (auto"),
        (("trainer.precision=bf16-mixed",), "", "bf16-mixed", False, "bf16-mixed, channels_last=false (auto"),
        (
            ("trainer.precision=bf16-mixed", "runtime.channels_last=true"), "", "bf16-mixed", True,
            "(as configured; this cpu is not made for bfloat16, so that it is slow)",
        ),
        (("trainer.precision='32-true'", "runtime.channels_last=false"), "amx_bf16", "32-true", False, "(as configured)"),
    ],
)  # fmt: skip
def test_settled_once(
    words: tuple[str, ...], instruction: str, precision: Any, channels_last: bool, said: str, machine: Any
) -> None:
    machine(cpu=instruction, cuda="tensor cores")
    before = plan_of(*words)
    plan, sentence = settled(before)
    assert said in sentence
    # A run's own spelling stays, so that a resumed run is what its checkpoint says.
    for config in (plan.config, *(stage.config for stage in plan.stages)):
        assert (config.trainer.precision, config.runtime.channels_last) == (precision, channels_last)
    assert len(plan.stages) == 3 and plan.left_out == before.left_out and plan.family is before.family
    again, _ = settled(plan)  # on any other machine
    machine()
    assert again.to_dict() == plan.to_dict() == settled(plan)[0].to_dict()


def test_settling_does_not_index_again(machine: Any) -> None:
    plan = plan_of()
    plan.__dict__["records"] = records = [object()]
    assert settled(plan)[0].records is records


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, "amx_bf16"), ({"avx512_bf16": True}, "avx512_bf16"),
        ({"avx512_f": True, "avx512_bf16": False}, ""), ({"architecture": "aarch64", "bf16": True}, ""),
    ],
)  # fmt: skip
def test_processors(known: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert MADE_FOR_BFLOAT16("cpu") == expected and MADE_FOR_BFLOAT16("mps") == ""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert MADE_FOR_BFLOAT16("cpu") == ""


def test_every_gpu_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    able, current = [True, True], []

    class Device:
        def __init__(self, index: int) -> None:
            self.index = index

        def __enter__(self) -> None:
            current.append(self.index)

        def __exit__(self, *_: Any) -> None:
            current.pop()

    def supported(including_emulation: bool) -> bool:
        assert not including_emulation
        return able[current[-1]]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert MADE_FOR_BFLOAT16("cuda") == "tensor cores" and device_kind("auto") == device_kind("gpu") == "cuda"
    able[1] = False
    assert MADE_FOR_BFLOAT16("cuda") == ""
    assert device_kind("cpu") == "cpu"


def test_a_network_is_used_as_it_was_validated(machine: Any) -> None:
    half = plan_of("trainer.precision=bf16-mixed", "runtime.channels_last=true").config
    full = plan_of("trainer.precision=32", "runtime.channels_last=false").config
    scaled = plan_of("trainer.precision=16-mixed", "runtime.channels_last=false").config
    machine(cpu="avx512_bf16")
    assert usable(half, CPU) == Computation("bf16-mixed", True)
    assert usable(full, CPU) == Computation("32-true", False)
    assert usable(scaled, CPU) == Computation("32-true", False)
    assert usable(half, CPU, 32) == usable(half, CPU, "32-true") == Computation("32-true", False)
    assert usable(full, CPU, "bf16-mixed") == Computation("bf16-mixed", True)
    assert usable(half, CPU, channels_last=False) == Computation("bf16-mixed", False)
    assert usable(plan_of().config, CPU) == Computation("bf16-mixed", True)  # stored without training
    assert usable(scaled, torch.device("cuda")) == Computation("16-mixed", False)
    machine()
    assert usable(half, CPU) == usable(plan_of().config, CPU) == Computation("32-true", False)
    assert usable(half, CPU, "bf16-mixed") == Computation("bf16-mixed", True)  # whoever asks for it gets it


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "16-mixed"}, "`precision=16-mixed` needs a GPU, not cpu. Use precision=auto, bf16-mixed or 32."),
        ({"precision": "fp32"}, "`precision` is 'fp32'; expected auto, 32, bf16-mixed or 16-mixed."),
        ({"channels_last": "yes"}, "`channels_last` is 'yes'; expected auto, true or false."),
    ],
)
def test_refusals(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        usable(plan_of().config, CPU, **settings)
    assert str(error.value) == message


def test_runs_that_do_not_tell_computed_in_float32() -> None:
    stored = plan_of().to_dict()
    del stored["trainer"]["precision"], stored["runtime"]
    found = converted_config(stored)
    assert found["trainer"]["precision"] == "32-true" and found["runtime"]["channels_last"] is False
    kept = converted_config(plan_of("trainer.precision=bf16-mixed", "runtime.channels_last=true").to_dict())
    assert kept["trainer"]["precision"] == "bf16-mixed" and kept["runtime"]["channels_last"] is True


def test_ranks_that_settle_differently_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, others = Computation("bf16-mixed", True), [Computation("bf16-mixed", True)]
    monkeypatch.setattr("mtl.training.callbacks.same_computation.gather_objects", lambda value, module: others)
    callback = SameComputation(mine)
    callback.on_fit_start(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]
    others.append(Computation())
    with pytest.raises(ConfigError, match=r"differently: bf16-mixed, channels_last=true and 32-true, channels_last=false"):
        callback.on_fit_start(SimpleNamespace(), SimpleNamespace())  # type: ignore[arg-type]


def test_runs_of_a_comparison_compute_alike(tmp_path: Path, machine: Any) -> None:
    from mtl.core.files import write_json
    from mtl.experiments.arms import Run, _settled

    machine(cpu="avx512_bf16")
    words = {arm: ("task=brain_joint", "trainer=cpu", *own) for arm, own in (("a", ()), ("b", ("trainer.precision=32",)))}
    runs = {arm: Run(arm, None, 0, tmp_path / arm, own) for arm, own in words.items()}
    plans = {run: Plan.from_words(list(run.overrides)) for run in runs.values()}

    def chosen() -> dict[str, tuple[Any, Any]]:
        found = _settled(plans)
        return {run.arm: (plan.config.trainer.precision, plan.config.runtime.channels_last) for run, plan in found.items()}

    assert chosen() == {"a": ("bf16-mixed", True), "b": (32, True)}
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "config.json", plan_of("trainer.precision=32-true", "runtime.channels_last=false").to_dict())
    assert chosen() == {"a": ("32-true", False), "b": (32, False)}  # as the run that is there
