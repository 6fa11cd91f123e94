"""The published heads and networks have exactly the published numbers of parameters."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from mtl.config.plan import Plan
from mtl.core.registry import HEADS, NECKS
from mtl.core.task import Kind, TaskSpec
from mtl.experiments.describe import count_parameters
from mtl.model import MultiTaskModel
from mtl.runs.build import build_balancer, build_model

RESNET50 = (256, 512, 1024, 2048), (4, 8, 16, 32)
RESNET50_FIVE = (64, 256, 512, 1024, 2048), (2, 4, 8, 16, 32)
RESNET50_DILATED = (64, 256, 512, 1024, 2048), (2, 4, 8, 16, 16)
B0_TOP = (16, 24, 40, 112, 1280), (2, 4, 8, 16, 32)
FPN = (64, 64, 64), (8, 16, 32)
ASPP = (256, 256), (4, 16)
FUSED = (256,), (8,)
BLOBS = {"name": "blobs", "loss": {"name": "dice_bce"}, "background": True}
GRADE_LOSS = {"name": "cross_entropy_focal"}
GRADES = {"name": "classifier_published", "loss": GRADE_LOSS}
LESIONS = {"name": "deeplabv3plus", "loss": {"name": "dice_focal"}, "low_channels": 64, "convolutions": 1, "separable": False}
LESION = {**LESIONS, "separable": True}


@pytest.mark.parametrize(
    ("config", "kind", "classes", "maps", "parameters"),
    [
        ({"name": "faster_rcnn_published"}, "detection", 1, FPN, 1_011_491),
        ({"name": "faster_rcnn_published"}, "detection", 2, FPN, 1_012_776),
        ({"name": "faster_rcnn_published"}, "detection", 3, FPN, 1_014_061),
        ({"name": "roi_classifier", "norm": "batch", "loss": {"name": "cross_entropy"}}, "roi_classification", 2, FPN, 836_994),
        ({"name": "roi_classifier", "norm": "batch", "loss": {"name": "cross_entropy"}}, "roi_classification", 3, FPN, 837_123),
        ({"name": "unet_published", "loss": {"name": "dice_bce"}}, "segmentation", 1, RESNET50, 647_217),
        ({"name": "unet_published", "loss": {"name": "dice_bce"}}, "segmentation", 1, RESNET50_FIVE, 647_217),
        ({"name": "heatmap_published", "loss": {"name": "tversky_boundary"}}, "heatmap", 1, RESNET50, 66_018),
        ({"name": "heatmap_published", "loss": {"name": "tversky_boundary"}}, "heatmap", 1, RESNET50_FIVE, 66_018),
        ({"name": "classifier", "loss": GRADE_LOSS, "hidden": [512]}, "classification", 5, RESNET50_FIVE, 1_051_653),
        (LESIONS, "segmentation", 5, ASPP, 755_909),
        (LESION, "segmentation", 1, ASPP, 102_721),
        ({"name": "upsampling", "loss": {"name": "dice_bce"}}, "segmentation", 1, B0_TOP, 10_604_289),
        ({"name": "classifier", "loss": GRADE_LOSS, "hidden": [512, 256]}, "classification", 10, B0_TOP, 789_770),
        ({"name": "pixelwise", "loss": {"name": "dice_bce"}}, "segmentation", 3, FUSED, 771),
        (BLOBS, "points", 1, FUSED, 514),
        (GRADES, "classification", 5, RESNET50_DILATED, 2_382_341),
        (GRADES, "classification", 3, RESNET50_DILATED, 2_381_827),
        # Beside its experts a mixture has a linear gate: 2048 * 3 + 3 and 256 * 3 + 3.
        ({"name": "mixture", "expert": GRADES}, "classification", 5, RESNET50_DILATED, 3 * 2_382_341 + 6_147),
        ({"name": "mixture", "expert": LESION}, "segmentation", 1, ASPP, 3 * 102_721 + 771),
    ],
)
def test_exact_size(config: dict[str, Any], kind: Kind, classes: int, maps: Any, parameters: int) -> None:
    head = HEADS.build(config, TaskSpec("task", kind, tuple("abcdefghij"[:classes])), *maps)
    assert sum(parameter.numel() for parameter in head.parameters()) == parameters


@pytest.mark.parametrize(("separable", "parameters"), [(False, 15_536_640), (True, 3_015_168)])
def test_exact_size_of_the_pooling(separable: bool, parameters: int) -> None:
    neck = NECKS.build({"name": "aspp", "separable": separable}, *RESNET50_DILATED)
    assert sum(parameter.numel() for parameter in neck.parameters()) == parameters


# Of tissue and lymphocytes together, of tissue alone.
@pytest.mark.parametrize(("classes", "parameters"), [([3, 2], 739_477), ([3], 734_355)])
def test_exact_size_of_the_published_decoder(classes: list[int], parameters: int) -> None:
    neck = NECKS.build({"name": "logit_decoder", "classes": classes}, (512, 256), (8, 16))
    assert sum(parameter.numel() for parameter in neck.parameters()) == parameters


@pytest.mark.parametrize(
    ("experiment", "total", "trainable"),
    [
        ("malaria_det3_roi", 26_666_226, 18_122_930),
        ("malaria_stl_det3", 25_345_773, 16_802_477),
        ("idrid_moe", 42_372_668, 42_372_668),
        ("idrid_seg_os8", 39_800_581, 39_800_581),
        ("idrid_grading", 25_610_312, 25_610_312),
        ("skin_b0", 15_401_607, 15_401_607),
        ("tiger_mtl", 39_785_434, 31_242_138),
    ],
)
def test_the_published_networks(experiment, total, trainable):
    plan = Plan.from_words([f"experiment=published/{experiment}"])
    counts = count_parameters(build_model(plan, load_weights=False), build_balancer(plan.config.balancer, plan.config.tasks))
    assert (counts["total"], counts["trainable"]) == (total, trainable)


@pytest.mark.parametrize(
    ("filters", "depth", "parts"),
    [(32, 3, (1_172_640, 775_073, 66_306, 2_014_019)), (64, 4, (18_846_016, 12_537_665, 262_914, 31_646_595))],
)
def test_the_published_brain_networks(filters: int, depth: int, parts: tuple[int, ...]) -> None:
    specs = [TaskSpec("whole_tumor", "segmentation", ("whole_tumor",)), TaskSpec("presence", "classification", ("no", "yes"))]
    model = MultiTaskModel.from_config({
        "tasks": ["whole_tumor", "presence"], "specs": [spec.to_dict() for spec in specs], "necks": {},
        "backbone": {"name": "unet", "base_filters": filters, "depth": depth, "in_chans": 1},
        "heads": {
            "whole_tumor": {"name": "unet_classic", "loss": {"name": "dice_bce"}},
            "presence": {"name": "classifier", "hidden": [256], "dropout": 0.5, "loss": {"name": "cross_entropy"}},
        },
        "preprocessing": {"geometry": {"mode": "stretch", "size": [256, 256]}},
    })  # fmt: skip
    found = (model.encoder, model.heads["whole_tumor"], model.heads["presence"], model)
    assert tuple(sum(p.numel() for p in part.parameters()) for part in found) == parts


def test_the_published_network_for_tissue_and_lymphocytes_trains_what_was_trained():
    model = build_model(Plan.from_words(["experiment=published/tiger_mtl"]), load_weights=False).train()
    body = model.encoder.body
    trained = {name.partition(".")[0] for name, parameter in body.named_parameters() if parameter.requires_grad}
    assert trained == {"layer4"}
    # Norm statistics of what is frozen stay, too.
    moving = {
        name.partition(".")[0] for name, part in body.named_modules() if isinstance(part, nn.BatchNorm2d) and part.training
    }
    assert moving == {"layer4"}
    assert model.chains == {"tissue": ["aspp", "decoder"], "cells": ["aspp", "decoder"]}
    rates = [
        part.dilation[0] for part in model.necks["aspp"].modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)
    ]
    assert rates == [6, 12, 18] and all(part.bias is not None for part in model.necks.modules() if isinstance(part, nn.Conv2d))
    assert (model.encoder.strides[-1], list(model.preprocessing.mean), list(model.preprocessing.std)) == (
        16,
        [0.0] * 3,
        [1.0] * 3,
    )


def test_the_parts_of_the_published_skin_network():
    plan = Plan.from_words(["experiment=published/skin_b0"])
    model = build_model(plan, load_weights=False)
    sizes = [sum(parameter.numel() for parameter in part.parameters()) for part in (model.encoder, *model.heads.values())]
    assert list(model.heads) == ["skin_hair", "lesion"] and sizes == [4_007_548, 789_770, 10_604_289]
