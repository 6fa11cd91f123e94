"""What every registered head promises, whatever it predicts."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import mtl
from mtl.config.load import kind_of
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head
from mtl.kinds.base import rules_named
from mtl.kinds.objects import ObjectKind

CONFIGS = Path(mtl.__file__).parents[1] / "configs"
SIZE = 96, 128  # not square, so that a swap of height and width shows
MAPS = {
    "encoder": ((8, 16, 32, 64), (4, 8, 16, 32)),
    "fpn": ((32, 32, 32), (8, 16, 32)),
    "aspp": ((8, 32), (4, 16)),
    "decoder": ((32,), (4,)),
}
POINTS_RESOLUTION = 2.0  # network pixels per micron
CLASSES = ("Infected", "Healthy", "WBC")
HEAD_NAMES = sorted(path.stem for path in (CONFIGS / "head").glob("*.yaml"))
AUXILIARY = ("l1", "load_balance", "entropy", "importance", "load")


def head_config(name: str) -> dict[str, Any]:
    """Compose a head the way a suite does; `mixture:unet` is a mixture of such heads with every auxiliary term."""
    wrapper, _, expert = name.rpartition(":")
    words = [f"+head@heads.task={wrapper or name}"]
    if wrapper:
        words += [f"head@heads.task.expert={expert}", *(f"heads.task.{term}_weight=0.1" for term in AUXILIARY)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose(overrides=words)
    plain = OmegaConf.to_container(config.heads.task, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def build(name: str, multilabel: bool = True) -> tuple[Head, str]:
    torch.manual_seed(0)
    config = head_config(name)
    source = config.pop("features")
    kind = kind_of(config)
    if kind == "classification" or not multilabel:
        multilabel = False
    spec = TaskSpec("task", kind, CLASSES, multilabel=multilabel, resolution=POINTS_RESOLUTION if kind == "points" else 1.0)
    head = HEADS.build(config, spec, *MAPS[source])
    assert head.kind == kind
    return head, source


def features_for(source: str, rows: int = 3, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(rows, channels, SIZE[0] // stride, SIZE[1] // stride, generator=generator).requires_grad_()
        for channels, stride in zip(*MAPS[source], strict=True)
    )


def objects(boxes: list[list[float]], labels: list[int]) -> dict[str, torch.Tensor]:
    box = torch.tensor(boxes).reshape(-1, 4)
    return {
        "boxes": box,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "points": (box[:, :2] + box[:, 2:]) / 2,
        "ids": torch.arange(len(labels)),
    }


def target_for(head: Head) -> Any:
    """Labels for three rows, the last one annotated as empty."""
    if isinstance(rules_named(head.spec.kind), ObjectKind):
        return [
            objects([[10, 12, 38, 40], [60, 30, 90, 58]], [0, 1]),
            objects([[5, 60, 35, 88], [100, 10, 127, 40], [50, 50, 75, 80]], [1, 2, 0]),
            objects([], []),
        ]
    generator = torch.Generator().manual_seed(1)
    if head.spec.kind == "classification":
        return torch.tensor([0, 2, 1])
    if head.spec.kind in ("regression", "multilabel_classification"):
        known = torch.tensor([[0.0, 1.0, torch.nan], [1.0, 0.0, 1.0], [0.0, torch.nan, 0.0]])
        return torch.tensor([3.5, -2.0, 0.8]) if head.spec.kind == "regression" else known
    if head.spec.multilabel:
        mask = (torch.rand(3, len(CLASSES), *SIZE, generator=generator) > 0.7).float()
        mask[2] = 0
        return mask
    mask = torch.randint(0, len(CLASSES), (3, *SIZE), generator=generator)
    mask[0, :10] = 255
    return mask


EXPERTS = (
    "classifier",
    "multilabel_classifier",
    "regressor",
    "unet",
    "deeplabv3plus",
    "fcos",
    "heatmap",
    "centres",
    "box_centres",
)
MIXTURES = [f"mixture:{name}" for name in EXPERTS]
# The loss that `pixelwise` comes with wants one class per pixel.
CASES = [pytest.param(name, name != "pixelwise", id=name) for name in [*HEAD_NAMES, *MIXTURES]] + [
    pytest.param(name, False, id=f"{name}-multiclass") for name in ("unet", "unet_published", "deeplabv3plus")
]
everyone = pytest.mark.parametrize(("name", "multilabel"), CASES)


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def test_every_head_has_a_yaml_with_every_key_and_its_default() -> None:
    assert set(HEADS.names()) == set(HEAD_NAMES)
    for name, entry in HEADS.entries().items():
        config = head_config(name)
        assert config.pop("name") == name
        assert config.pop("features") in MAPS
        assert set(config) == set(entry.parameters), name
        for key, value in config.items():
            if not entry.parameters[key].required:
                assert value == entry.parameters[key].default, f"{name}.{key}"


@everyone
def test_loss_is_finite_and_reaches_every_parameter(name: str, multilabel: bool) -> None:
    head, source = build(name, multilabel)
    features = features_for(source)
    terms = head.loss(head(features, SIZE), target_for(head))
    assert all(term.ndim == 0 and term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    total(terms).backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, f"{key} gets no gradient"
    assert any(feature.grad is not None and feature.grad.abs().sum() > 0 for feature in features)


@everyone
def test_one_row_trains(name: str, multilabel: bool) -> None:
    """Of a mixed batch a head may see one row; no norm may ask for more."""
    head, source = build(name, multilabel)
    target = target_for(head)[:1]
    terms = head.loss(head(tuple(level[:1] for level in features_for(source)), SIZE), target)
    total(terms).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@everyone
def test_annotated_as_empty_is_not_absent(name: str, multilabel: bool) -> None:
    head, source = build(name, multilabel)
    features = features_for(source)
    terms = head.loss(head(tuple(level[2:] for level in features), SIZE), target_for(head)[2:])
    value = total(terms)
    assert value.isfinite()
    if head.spec.kind == "roi_classification":  # no box, nothing to classify
        assert value == 0
    else:
        assert value > 0
    value.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@everyone
def test_validation_loss_changes_nothing_and_repeats(name: str, multilabel: bool) -> None:
    head, source = build(name, multilabel)
    head.eval()
    before, random_state = copy.deepcopy(head.state_dict()), torch.get_rng_state()
    with torch.no_grad():
        values = []
        for _ in range(2):
            output = head(features_for(source), SIZE)
            values.append(total(head.loss(output, target_for(head))))
            head.decode(output, boxes=[row["boxes"] for row in target_for(head)] if head.needs_boxes else None)
    assert values[0] == values[1]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not head.training
    for key, value in head.state_dict().items():
        assert torch.equal(value, before[key]), key


@everyone
def test_loss_is_float32_under_autocast(name: str, multilabel: bool) -> None:
    head, source = build(name, multilabel)
    with torch.autocast("cpu", torch.bfloat16):
        output = head(features_for(source), SIZE)
        terms = head.loss(output, target_for(head))
        predictions = head.decode(output, boxes=[row["boxes"] for row in target_for(head)] if head.needs_boxes else None)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    for prediction in predictions:
        assert all(value.dtype in (torch.float32, torch.int64) for value in prediction.values())


@everyone
def test_decoded_form(name: str, multilabel: bool) -> None:
    head, source = build(name, multilabel)
    head.eval()
    output = head(features_for(source), SIZE)
    context = {"boxes": [row["boxes"] for row in target_for(head)]} if head.needs_boxes else {}
    predictions = head.decode(output, **context)
    assert len(predictions) == 3
    for row, prediction in enumerate(predictions):
        assert not any(value.requires_grad for value in prediction.values())
        if head.spec.kind == "roi_classification":
            assert prediction["probabilities"].shape[0] == len(context["boxes"][row])
        CHECKS[head.spec.kind](prediction, head)


def check_detection(prediction: dict[str, torch.Tensor], head: Head) -> None:
    assert set(prediction) == {"boxes", "scores", "labels"}
    boxes, scores, labels = prediction["boxes"], prediction["scores"], prediction["labels"]
    assert boxes.shape == (len(scores), 4) and boxes.dtype == scores.dtype == torch.float32
    assert labels.shape == scores.shape and labels.dtype == torch.int64
    if len(labels):
        assert labels.min() >= 0 and labels.max() < len(CLASSES)
        assert boxes.min() >= 0 and boxes[:, 0::2].max() <= SIZE[1] and boxes[:, 1::2].max() <= SIZE[0]
        assert scores.min() >= 0.05 and (scores.diff() <= 0).all()


def check_heatmap(prediction: dict[str, torch.Tensor], head: Head) -> None:
    assert set(prediction) == {"heatmap", "points", "scores", "labels", "stride", "sigma"}
    stride = int(prediction["stride"])
    assert prediction["stride"].ndim == prediction["sigma"].ndim == 0
    assert prediction["heatmap"].shape == (len(CLASSES), SIZE[0] // stride, SIZE[1] // stride)
    assert prediction["heatmap"].min() >= 0 and prediction["heatmap"].max() <= 1
    count = len(prediction["scores"])
    assert prediction["points"].shape == (count, 2) and prediction["labels"].shape == (count,)


def check_points(prediction: dict[str, torch.Tensor], head: Head) -> None:
    assert set(prediction) == {"points", "scores", "labels", "radius"}
    points, scores, labels, radius = (prediction[key] for key in ("points", "scores", "labels", "radius"))
    assert points.shape == (len(scores), 2) and points.dtype == scores.dtype == radius.dtype == torch.float32
    assert labels.shape == scores.shape and labels.dtype == torch.int64 and radius.ndim == 0 and radius > 0
    if len(labels):
        assert labels.min() >= 0 and labels.max() < len(CLASSES) and (scores.diff() <= 0).all()
        assert points.min() >= 0 and points[:, 0].max() <= SIZE[1] and points[:, 1].max() <= SIZE[0]
        assert torch.cdist(points, points).fill_diagonal_(torch.inf).min() >= radius - 1e-3


def check_roi(prediction: dict[str, torch.Tensor], head: Head) -> None:
    assert set(prediction) == {"probabilities"}
    assert prediction["probabilities"].shape[1] == len(CLASSES)
    torch.testing.assert_close(prediction["probabilities"].sum(1), torch.ones(len(prediction["probabilities"])))


def check_segmentation(prediction: dict[str, torch.Tensor], head: Head) -> None:
    assert set(prediction) == {"probabilities"}
    probabilities = prediction["probabilities"]
    assert probabilities.shape == (len(CLASSES), *SIZE) and probabilities.dtype == torch.float32
    sums_to_one = torch.allclose(probabilities.sum(0), torch.ones(SIZE), atol=1e-5)
    assert sums_to_one != head.spec.multilabel


def check_classification(prediction: dict[str, torch.Tensor], head: Head) -> None:
    assert set(prediction) == {"probabilities"}
    assert prediction["probabilities"].shape == (len(CLASSES),)
    torch.testing.assert_close(prediction["probabilities"].sum(), torch.tensor(1.0))


def check_multilabel(prediction: dict[str, torch.Tensor], head: Head) -> None:
    assert set(prediction) == {"probabilities"}
    probabilities = prediction["probabilities"]
    assert probabilities.shape == (len(CLASSES),) and probabilities.dtype == torch.float32
    assert probabilities.min() >= 0 and probabilities.max() <= 1


def check_regression(prediction: dict[str, torch.Tensor], head: Head) -> None:
    assert set(prediction) == {"value"}
    assert prediction["value"].shape == () and prediction["value"].dtype == torch.float32


CHECKS = {
    "multilabel_classification": check_multilabel,
    "regression": check_regression,
    "detection": check_detection,
    "heatmap": check_heatmap,
    "points": check_points,
    "roi_classification": check_roi,
    "segmentation": check_segmentation,
    "classification": check_classification,
}
