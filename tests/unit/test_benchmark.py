"""The benchmark script on the smallest network: what it measures, writes and refuses."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import pytorch_lightning as pl

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
    benchmark.write_section(page, benchmark.markdown(result), "scripts/benchmark.py task=malaria_mttl")
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


def test_several_suites_are_subjects_and_the_other_words_are_for_all(benchmark: ModuleType) -> None:
    options, overrides = benchmark.parse(["task=skin_mtl", "trainer=cpu", "experiment=demo"])
    assert options.subjects == ["task=skin_mtl", "experiment=demo"] and overrides == ["trainer=cpu"]
    options, overrides = benchmark.parse(["task=skin_mtl"])
    assert not options.subjects and "task=skin_mtl" in overrides


def test_a_row_of_the_table_has_every_figure(benchmark: ModuleType, words: list[str], tmp_path: Path) -> None:
    import benchmark_plans as plans
    import benchmark_suites as suites

    plan = plans.plan_of([*words, "data.loader.batch_size=2", "trainer.precision=bf16-mixed"])
    rows = suites.overview_rows(plan, tmp_path, repetitions=2, seconds=0)
    value, note = {row.what: row.value for row in rows}, {row.what: row.note for row in rows}
    assert value[suites.MEMORY] > 0.1 and value[suites.LOADER] > 0 and value[suites.VALIDATION] > 0
    assert note[suites.SHIPPED] == "bf16-mixed; 2 of 2 tasks labelled" and "n = 2" in note[suites.RATIO]
    entry = suites.Measured("task=malaria_mttl", "64 x 64, 2", {row.what: row.to_dict() for row in rows})
    *_, line = suites.overview([entry])
    assert line.startswith(
        f"| task=malaria_mttl | 64 x 64, 2 | {value[suites.FP32]:.3f} | {value[suites.SHIPPED]:.3f} | bf16-mixed"
    )


def test_a_subject_that_fails_is_a_row_with_its_reason_and_the_others_go_on(
    benchmark: ModuleType, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import benchmark_suites as suites

    def answer(words: list[str], options: Any) -> list[dict[str, Any]]:
        if "task=malaria_mttl" in words:
            raise RuntimeError("killed by signal 9")
        names = [suites.SHIPPED, suites.FP32, suites.RATIO, suites.PROCESSOR, suites.MEMORY, suites.VALIDATION, suites.LOADER]
        return [{"what": name, "value": 2.0, "note": name} for name in names]

    monkeypatch.setattr(suites, "measure_one", answer)
    subjects = ["task=no_such_suite", "task=malaria_mttl", "experiment=published/malaria_stl_det3"]
    result = benchmark.main([*subjects, *(word for word in words if not word.startswith(("task", "backbone")))])
    unknown, killed, measured = result["suites"]
    assert "no_such_suite" in unknown["reason"] and not unknown["rows"]
    assert killed["reason"] == "killed by signal 9" and killed["size"] == "64 x 64, 1"
    assert measured["rows"]["loader"]["value"] == 2.0 and not measured["reason"]
    table = result["table"][2:]
    assert [line.count("not measured: ") for line in table] == [1, 1, 0]
    assert {line.count("|") for line in table} == {len(result["table"][0].split("|")) - 1}
    assert "| suite | px, batch |" in benchmark.markdown(result)


# -- the bare loop -----------------------------------------------------------------------------------------------------------

RECIPES = {
    "clipping, balancer and rates of parts": [
        "balancer=uncertainty", "optimizer=sgd", "optimizer.lr=0.1", "trainer.gradient_clip_val=0.05",
        "+optimizer.parts.backbone.lr=0.01",
    ],
    "accumulation and bf16": ["trainer.precision=bf16-mixed", "trainer.accumulate_grad_batches=2", "optimizer=adam"],
    "values cut, channels last": [
        "+trainer.gradient_clip_algorithm=value", "trainer.gradient_clip_val=0.001", "runtime.channels_last=true",
        "optimizer=sgd", "balancer=mgda",
    ],
}  # fmt: skip


@pytest.mark.parametrize("extra", RECIPES.values(), ids=RECIPES)
def test_the_bare_loop_trains_what_the_trainer_trains(
    benchmark: ModuleType, words: list[str], extra: list[str], tmp_path: Path
) -> None:
    import benchmark_bare as bare
    import benchmark_plans as plans
    import benchmark_steps as steps
    import torch

    plan = plans.plan_of([*words, "data.loader.batch_size=2", "scheduler=constant", *extra])
    module, twin, untrained = (plans.build_module(plan) for _ in range(3))
    batch = plans.first_batch(plan, module.model)
    recipes = []

    def make(trainer: pl.Trainer) -> steps.Relay:
        recipes.append(bare.Recipe.of(trainer))
        return steps.Relay(batch, recipes[0].device, steps.Limit(0), block=recipes[0].accumulate)

    steps.run_trainer(plan, module, tmp_path, make)
    step = bare.bare_step(twin, recipes[0])
    for _ in range(steps.WARM_UP):
        step(batch)
    ours, theirs, before = (dict(one.named_parameters()) for one in (module, twin, untrained))
    assert any(name.startswith("balancer.") for name in ours) == ("balancer=uncertainty" in extra)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], msg=lambda text, name=name: f"{name}: {text}")
        assert not torch.equal(value, before[name]), name


# -- other programs ------------------------------------------------------------------------------------------------------------


def test_a_peer_is_timed_in_turns_and_its_last_number_counts(benchmark: ModuleType, words: list[str], tmp_path: Path) -> None:
    log = tmp_path / "calls"
    script = f"open({str(log)!r}, 'a').write('x'); print('step 1 of 9:'); print('8 images, 4.0e1 s per step')"
    peer = ["--beside", f"{sys.executable} -c {shlex.quote(script)}", "--beside-images", "8", "--sections", "step"]
    result = benchmark.main([*words, "data.loader.batch_size=2", *peer, "--repetitions", "2"])
    rows = {row["what"]: row for row in result["rows"] if row["section"] == "beside a peer"}
    assert log.read_text() == "xx"
    assert rows["the peer"]["value"] == pytest.approx(1000 * 40 / 8)
    assert rows["ours / peer"]["value"] == pytest.approx(rows["Trainer and module"]["value"] / 5000, rel=0.5)


@pytest.mark.parametrize(
    "command, message",
    [
        ("no-such-program --now", "cannot be started"),
        (f"{sys.executable} -c 'raise SystemExit(3)'", "ended with exit status 3"),
        (f"{sys.executable} -c 'print(\"v2 took long\")'", "it printed no number"),
    ],
)
def test_a_peer_that_says_nothing_is_refused(benchmark: ModuleType, command: str, message: str) -> None:
    from benchmark_peer import Peer, PeerError

    with pytest.raises(PeerError, match=message):
        Peer(command).seconds()


# -- every suite and experiment ------------------------------------------------------------------------------------------------

TINY = ["data.geometry.size=[64,64]", "data.loader.batch_size=2", "data.geometry.overlap=32", "trainer.accelerator=cpu"]


def test_every_suite_and_experiment_is_listed_and_every_family_has_a_size(benchmark: ModuleType) -> None:
    import benchmark_suites as suites

    from mtl.core.registry import DATA_FAMILIES

    subjects = suites.every_subject()
    assert {"task=brain_joint", "experiment=demo", "experiment=published/idrid_moe"} <= set(subjects)
    assert not [subject for subject in subjects if "/_" in subject or "=_" in subject]
    assert set(suites.SIZES) == set(DATA_FAMILIES.names())


@pytest.mark.parametrize("subject", ["task=brain_joint", "experiment=published/idrid_grading"])
def test_stages_and_fp16_get_through_a_step(benchmark: ModuleType, subject: str, request: Any, tmp_path: Path) -> None:
    one_step(subject, request.getfixturevalue("brains" if "brain" in subject else "retinas"), tmp_path)


@pytest.mark.slow
def test_a_suite_is_measured_in_a_process_of_its_own(benchmark: ModuleType, words: list[str]) -> None:
    import benchmark_suites as suites

    options, _ = benchmark.parse([*words, "--repetitions", "2", "--seconds", "0"])
    rows = suites.measure_one(words, options)
    assert {row["what"] for row in rows} >= {suites.SHIPPED, suites.RATIO, suites.MEMORY}
    with pytest.raises(RuntimeError, match=r"error: .*no_such_suite"):
        suites.measure_one(["task=no_such_suite"], options)


@pytest.mark.slow
def test_every_suite_and_experiment_gets_through_a_step(benchmark: ModuleType, tmp_path: Path) -> None:
    import benchmark_plans as plans
    import benchmark_suites as suites

    from mtl.config.plan import Plan

    for number, subject in enumerate(suites.every_subject()):
        family = Plan.from_words([subject]).config.data.name
        root = plans.generate_images(family, tmp_path / family, images=20)
        one_step(subject, root, tmp_path / str(number))


def one_step(subject: str, root: Path, folder: Path) -> None:
    """Make a step of the Trainer and one of the bare loop, by the same recipe."""
    import benchmark_plans as plans
    import benchmark_steps as steps

    small = [] if "brain" in subject else ["backbone=test_resnet"] if "published" not in subject else []
    words = [subject, *TINY, *small, f"data.root={root}", f"data.cache.folder={folder / 'cache'}"]
    plan = plans.plan_of(words)
    relay = steps.beside_bare_loop(plan, folder, steps.Limit(1))
    assert len(relay.wall["ours"]) == len(relay.wall["bare"]) == 1
    assert set(relay.batch.present) >= set(plans.stage_of(plan).tasks)
    assert relay.precision in ("32-true", "bf16-mixed")  # fp16 is not for a CPU: the Trainer takes bf16 instead
