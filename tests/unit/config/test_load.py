from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError

ROOT = Path(__file__).parents[3]


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Plan.from_words(list(overrides))
    return caught.value.problems


def test_the_documented_command_composes():
    config = Plan.from_words(
        ["task=malaria_mttl", "backbone=convnext_tiny", "heads.detection.score_threshold=0.1", "tasks=[detection,heatmap]"]
    ).to_dict()
    assert config["backbone"]["architecture"] == "convnext_tiny"
    assert config["heads"]["detection"]["score_threshold"] == 0.1
    assert config["tasks"] == ["detection", "heatmap"]


def test_heads_losses_and_data_can_be_swapped_from_the_command_line():
    config = Plan.from_words(
        [
            "task=malaria_mttl",
            "head@heads.detection=fcos",
            "loss@heads.heatmap.loss=mse",
            "balancer=uncertainty",
            "trainer=ddp_cpu",
        ]
    ).to_dict()
    assert config["heads"]["detection"]["name"] == "fcos"
    assert config["heads"]["heatmap"]["loss"] == {"name": "mse"}
    assert config["trainer"]["strategy"] == "ddp_fork"


def test_the_loss_of_a_head_does_not_hang_on_the_head_that_was_there():
    mixed = Plan.from_words(["task=tiger_mtl", "head@heads.tissue=mixture", "head@heads.tissue.expert=pixelwise"]).to_dict()
    assert mixed["heads"]["tissue"]["expert"]["loss"]["name"] == "dice_cross_entropy"
    assert Plan.from_words(["task=tiger_mtl"]).to_dict()["heads"]["tissue"]["loss"]["name"] == "dice_cross_entropy"
    published = Plan.from_words(["experiment=published/tiger_mtl"]).to_dict()
    assert published["heads"]["tissue"]["loss"]["name"] == "dice_bce_published"


def test_all_errors_come_at_once_with_the_nearest_name():
    found = problems(
        "task=malaria_mttl",
        "backbone=resnet51",
        "heads.detection.score_treshold=0.1",
        "optimizer.lrr=1",
        "data.geometry.mode=streched",
        "data.clases=3",
        "trainer.max_epoch=3",
    )
    text = "\n".join(found)
    assert len(found) == 6
    for name in ("resnet50", "score_threshold", "lr", "classes", "max_epochs"):
        assert f"Did you mean `{name}`" in text
    assert "data.geometry.mode" in text


def test_a_broken_section_does_not_hide_the_others():
    config = Plan.from_words(["task=malaria_mttl"]).to_dict()
    broken = {**config, "necks": 3, "backbone": None, "data": {**config["data"], "clases": 2}}
    del broken["balancer"]
    with pytest.raises(ConfigError) as caught:
        Plan.from_config(broken)
    assert len(caught.value.problems) == 4
    for word in ("necks", "backbone", "clases", "balancer"):
        assert any(f"`{word}" in line for line in caught.value.problems), word


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            [
                "tasks=[detection,parasitemia_percent]",
                "balancer=uncertainty",
                "loss@heads.parasitemia_percent.loss=gaussian",
            ],
            "`heads.parasitemia_percent.loss` is gaussian, which can be negative",
        ),
        (["tasks=[detektion]"], "Did you mean `detection`"),
        (["tasks=[detection,detection]"], "twice"),
        (["data.classes=1"], "has no labels for `roi`"),
        (
            [
                "task=tiger_mtl",
                "head@heads.cells=mixture",
                "head@heads.cells.expert=box_centres",
                "head@heads.cells.expert.detector=faster_rcnn",
            ],
            "`heads.cells.expert.detector` is `faster_rcnn`, whose outputs cannot be averaged",
        ),
        (["heads.detection.features=fpm"], "Did you mean `fpn`"),
        (["head@heads.detection=unet"], "a segmentation head"),
        (["monitor=val/detection/map5"], "Did you mean `val/detection/map50`"),
        (["balancer.weights={detektion:2}"], "balancer.weights"),
        (["balancer=mgda", "balancer.weights={roi:2}"], "weights"),
        (["balancer=mgda", "runtime.compile=true"], "`runtime.compile=true` cannot be combined with balancer=mgda"),
        (["optimizer.parts={bakbone:{lr:1e-4}}"], "Did you mean `backbone`"),
        (["evaluation.score_weights={roy:1}"], "Did you mean `roi`"),
        (["evaluation.score_weights={roi:-1}"], "evaluation.score_weights.roi"),
        (["evaluation.score_weights={roi:nan}"], "evaluation.score_weights.roi"),
        (["evaluation.score_weights={roi:inf}"], "evaluation.score_weights.roi"),
        (
            ["tasks=[detection,roi]", "evaluation.score_weights={roi:0,detection:0}"],
            "gives detection, roi, all that `tasks` lists, a weight of 0, so that val/score would be undefined",
        ),
        (["data=malaria_cells"], "has no labels for `detection`"),
        (["necks.fpn.features=fnp"], "Did you mean `fpn`"),
        (["necks.fpn.features=fpn"], "in a circle (fpn -> fpn)"),
        (["+neck@necks.second=fpn", "necks.second.features=fpn", "necks.fpn.shared=false"], "Set necks.second.shared=false"),
        (["optimizer.lr=fast"], "optimizer.lr"),
        (["heads.detection.nms=high"], "heads.detection.nms"),
        (["justaword"], "Expected key=value"),
    ],
)
def test_what_does_not_fit_is_said(overrides, text):
    assert text in "\n".join(problems("task=malaria_mttl", *overrides))


def test_missing_and_unknown_task_list_the_known_ones():
    assert "malaria_mttl" in problems()[0]
    assert "Did you mean `malaria_mttl`" in problems("task=malaria_mtl")[0]


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["train.py", "--help"], 0),
        (["train.py", "task=nonsense"], 2),
        (["train.py", "task=malaria_mttl", "optimizer.lrr=1"], 2),
        (["train.py", "task=malaria_mttl", "data.root=does_not_exist"], 3),
        (["evaluate.py"], 2),
        (["predict.py", "checkpoint=x", "sorce=y"], 2),
        (["-m", "mtl", "trian"], 2),
        (["-m", "mtl", "data", "check", "malaria", "data.root=does_not_exist"], 3),
    ],
)
def test_first_answers_come_before_torch(words, status):
    """The answer must not need torch: with torch made unimportable it is still given, and without a traceback."""
    blocker = "import sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; import runpy; "
    start = (
        "runpy.run_module('mtl', run_name='__main__')"
        if words[0] == "-m"
        else "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    arguments = ["mtl", *words[2:]] if words[0] == "-m" else words
    done = subprocess.run(
        [sys.executable, "-c", blocker + start, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr


def test_cfg_job_prints_the_composed_configuration():
    done = subprocess.run(
        [sys.executable, "train.py", "task=malaria_mttl", "optimizer.lr=0.5", "--cfg", "job"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "lr: 0.5" in done.stdout
    assert "name: faster_rcnn" in done.stdout


def test_a_typo_answers_within_a_second():
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "train.py", "task=malaria_mttl", "optimizer.lrr=1"], cwd=ROOT, capture_output=True, check=False
    )
    assert time.perf_counter() - started < 3.0  # 0.5 s on an idle machine; a loaded one must not make the test flicker


def test_optional_tasks_of_a_suite():
    assert Plan.from_words(["task=malaria_mttl"]).config.tasks == ["detection", "roi", "segmentation", "heatmap"]
    config = Plan.from_words(
        ["task=malaria_mttl", "tasks=[detection,severity,parasitemia_percent]", "monitor=val/severity/auroc"]
    ).config
    assert config.heads["parasitemia_percent"]["loss"] == {"name": "huber", "delta": 1.0}
    swapped = Plan.from_words(
        [
            "task=malaria_mttl",
            "tasks=[parasitemia_percent]",
            "loss@heads.parasitemia_percent.loss=gaussian",
            "evaluation.primary.parasitemia_percent=r2",
        ]
    ).config
    assert swapped.heads["parasitemia_percent"]["loss"] == {"name": "gaussian"}
    assert (
        Plan.from_words(["task=idrid_mtl", "tasks=[grade,findings]"]).config.heads["findings"]["name"]
        == "multilabel_classifier"
    )
    (problem,) = problems("task=malaria_mttl", "tasks=[severity]", "data.classes=1")
    assert "no labels for `severity` with these settings" in problem
    (problem,) = problems("task=malaria_mttl", "tasks=[parasitemia_percent]", "evaluation.primary.parasitemia_percent=mae")
    assert "pearson" in problem and "r2" in problem


def test_labels_of_whole_images_refuse_windows():
    found = problems("task=malaria_mttl", "tasks=[detection,severity,parasitemia_percent]", "data.geometry.mode=tiles")
    assert len(found) == 2 and all("data.geometry.mode=stretch or letterbox" in problem for problem in found)
    Plan.from_words(["task=malaria_mttl", "tasks=[detection]", "data.geometry.mode=tiles"])


def test_a_study_metric_has_no_name_of_a_task():
    (problem,) = problems(
        "task=malaria_mttl", "+study_metrics.severity.name=parasitemia", "+study_metrics.severity.task=detection"
    )
    assert "`study_metrics.severity` has the name of a task" in problem


def test_a_study_metric_has_no_name_of_what_images_have_anyway():
    (problem,) = problems("task=malaria_mttl", "+study_metrics.counts.name=parasitemia", "+study_metrics.counts.task=detection")
    assert "`study_metrics.counts` has the name of what predictions say of every image" in problem


def test_tasks_that_decide_classes_are_checked():
    key = "study_metrics.parasitemia.classes_from"
    assert Plan.from_words(["task=malaria_mttl", f"{key}=roi"]).config.study_metrics["parasitemia"]["classes_from"] == "roi"
    (problem,) = problems("task=malaria_mttl", f"{key}=roy")
    assert f"Unknown task `roy` in `{key}`" in problem and "Did you mean `roi`?" in problem
    (problem,) = problems("task=malaria_mttl", f"{key}=segmentation")
    assert f"Unknown task that classifies boxes `segmentation` in `{key}`. Expected one of: roi." in problem
    (problem,) = problems("task=malaria_mttl", "tasks=[detection]", f"{key}=severity")
    assert f"Unknown task that classifies boxes `severity` in `{key}`. Expected one of: roi." in problem
    (problem,) = problems("task=malaria_mttl", "+study_metrics.pair={name: task_mean, tasks: detection}")
    assert "study_metrics.pair.tasks" in problem and "list" in problem
    Plan.from_words(["task=malaria_mttl", "tasks=[detection]", f"{key}=roi"])  # switched off: the metric is left out
