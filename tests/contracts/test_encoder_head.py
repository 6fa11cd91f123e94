"""Every head on every kind of encoder, built the way a run builds them: it works, or it says why not."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch

from mtl.config.compose import choices
from mtl.config.plan import Plan
from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.kinds.base import rules_named
from mtl.kinds.objects import ObjectKind
from mtl.layers import take_rows
from mtl.model import MultiTaskModel
from mtl.runs.build import model_config

ENCODERS = {
    "test_resnet": {},
    "test_convnext": {},  # maps start at stride 4
    "test_efficientnet": {},
    "mobilenetv3_small_050": {},
    "resnet10t": {},
    "regnetx_002": {},
    "resnet10t, no /32": {"output_stride": 16},
    "unet": {"base_filters": 4, "depth": 5},  # maps start at stride 1
    "unet, no /32": {"base_filters": 4, "depth": 4},
}
SIZE = (64, 96)
TASKS = {
    "detection": "detection", "roi_classification": "roi", "segmentation": "segmentation", "heatmap": "heatmap",
    "classification": "cell", "points": "cells", "multilabel_classification": "findings", "regression": "parasitemia_percent",
}  # fmt: skip
SUITES = {"cell": "malaria_cells", "cells": "tiger_mtl", "findings": "idrid_mtl"}
MIXTURES = ["mixture:unet", "mixture:deeplabv3plus", "mixture:fcos", "mixture:heatmap"]
HEAD_NAMES = [*choices("head"), *MIXTURES]  # `mixture` alone has classifiers inside
# Heads that look at fine maps only: alone, they leave the deepest layers of an encoder without a gradient.
SHALLOW = {"heatmap_published"}
NEEDS_32 = {"unet_published"}


@cache
def _config(head: str) -> dict[str, Any]:
    wrapper, _, inner = head.rpartition(":")
    kind = HEADS.entry(inner).constants["kind"]
    task = TASKS["classification" if kind == "any" else kind]
    suite = SUITES.get(task, "malaria_mttl")
    words = [f"task={suite}", f"tasks=[{task}]", f"head@heads.{task}={wrapper or head}", "backbone=test_resnet"]
    words += [f"head@heads.{task}.expert={inner}"] if wrapper else []
    words += [f"loss@heads.{task}.loss=dice_bce"] if head == "pixelwise" else []  # masks that may overlap
    if suite == "tiger_mtl":
        words += ["data.geometry.overlap=0", "necks.fpn.levels=[3,4,5]"]
    elif suite == "idrid_mtl":
        words += ["+neck@necks.decoder=decoder"]
    else:
        words += ["+neck@necks.aspp=aspp", "+neck@necks.decoder=decoder"]
    words += ["necks.aspp.width=32", "necks.decoder.width=32", f"data.geometry.size={list(SIZE)}"]
    return model_config(Plan.from_words(words))


def backbone(encoder: str) -> dict[str, Any]:
    name = encoder.partition(",")[0]
    part = {"name": "unet"} if name == "unet" else {"name": "timm", "architecture": name}
    return {**part, "in_chans": 3, **ENCODERS.get(encoder, {})}


def build(head: str, encoder: str) -> MultiTaskModel:
    config = copy.deepcopy(_config(head))
    config["backbone"] = backbone(encoder)
    torch.manual_seed(0)
    return MultiTaskModel.from_config(config)


def objects(boxes: list[list[float]], labels: list[int]) -> dict[str, torch.Tensor]:
    box = torch.tensor(boxes).reshape(-1, 4)
    return {
        "boxes": box,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "points": (box[:, :2] + box[:, 2:]) / 2,
        "ids": torch.arange(len(labels)),
    }


def target_for(model: MultiTaskModel, task: str) -> Any:
    """Labels of three rows; the second is absent and holds what nobody may read."""
    spec = model.specs[task]
    if isinstance(rules_named(spec.kind), ObjectKind):
        last = len(spec.classes) - 1
        return [objects([[6, 8, 34, 36], [50, 20, 80, 50], [2, 2, 94, 62]], [0, last, 0]), None, objects([], [])]
    if spec.kind == "classification":
        return torch.tensor([0, -7, 1])
    if spec.kind == "regression":
        return torch.tensor([3.0, torch.nan, 0.5])
    if spec.kind == "multilabel_classification":
        return torch.tensor([[1.0, 0.0, torch.nan, 1.0], [torch.nan] * 4, [0.0, 0.0, 1.0, 0.0]])
    mask = torch.zeros(3, len(spec.classes), *SIZE)
    mask[0, :, 8:30, 8:40] = 1
    mask[1] = torch.nan
    return mask


def check_form(model: MultiTaskModel, task: str, prediction: dict[str, torch.Tensor], boxes: torch.Tensor) -> None:
    spec, classes = model.specs[task], len(model.specs[task].classes)
    shapes = {key: tuple(value.shape) for key, value in prediction.items()}
    count = shapes.get("scores", (0,))[0]
    expected = {
        "detection": {"boxes": (count, 4), "scores": (count,), "labels": (count,)},
        "heatmap": {"points": (count, 2), "scores": (count,), "labels": (count,), "stride": (), "sigma": ()},
        "points": {"points": (count, 2), "scores": (count,), "labels": (count,), "radius": ()},
        "roi_classification": {"probabilities": (len(boxes), classes)},
        "segmentation": {"probabilities": (classes, *SIZE)},
        "classification": {"probabilities": (classes,)},
        "multilabel_classification": {"probabilities": (classes,)},
        "regression": {"value": ()},
    }[spec.kind]
    if spec.kind == "heatmap":
        stride = int(prediction["stride"])
        expected |= {"heatmap": (classes, SIZE[0] // stride, SIZE[1] // stride)}
    assert shapes == expected
    assert all(bool(torch.isfinite(value.float()).all()) for value in prediction.values())


def train_and_decode(model: MultiTaskModel, images: torch.Tensor) -> torch.Tensor:
    """One step with partly absent labels, then predictions; returns the loss."""
    (task,) = model.heads
    head: Any = model.heads[task]
    rows = {task: (0, 2)}
    terms = head.loss(model(images, rows=rows)[task], take_rows(target_for(model, task), rows[task]))
    loss = torch.stack(list(terms.values())).sum()
    assert loss.dtype == torch.float32 and bool(loss.isfinite())
    loss.backward()
    model.eval()
    boxes = [torch.tensor([[6.0, 8, 34, 36]]), torch.zeros(0, 4), torch.tensor([[6.0, 8, 34, 36], [0, 0, 96, 64]])]
    with torch.no_grad():
        predictions = model.decode(model(images), {task: boxes} if head.needs_boxes else None)[task]
    assert len(predictions) == 3
    for prediction, row_boxes in zip(predictions, boxes, strict=True):
        check_form(model, task, prediction, row_boxes)
    return loss.detach()


def check_gradients(model: MultiTaskModel, head: str) -> None:
    """The step reached every trainable parameter."""
    missing = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(parameter.grad.isfinite().all()))
    ]
    if head in SHALLOW:
        assert missing and all(name.startswith("encoder.body.") for name in missing)
    else:
        assert missing == []


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("head", HEAD_NAMES)
def test_head_on_encoder(head: str, encoder: str) -> None:
    config = _config(head)
    (task,) = config["tasks"]
    if "no /32" in encoder and (config["heads"][task]["features"] == "fpn" or head in NEEDS_32):
        with pytest.raises(ConfigError, match="level"):
            build(head, encoder)
        return
    model = build(head, encoder)
    train_and_decode(model, torch.randn(3, 3, *SIZE))
    check_gradients(model, head)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_decoder_without_a_neck(encoder: str) -> None:
    """DeepLabv3+ takes a fine map and the last one from whatever there is."""
    config = copy.deepcopy(_config("deeplabv3plus"))
    config["heads"]["segmentation"] |= {"features": "encoder", "width": 16}
    config["backbone"] = backbone(encoder)
    torch.manual_seed(0)
    model = MultiTaskModel.from_config(config)
    train_and_decode(model, torch.randn(3, 3, *SIZE))
    check_gradients(model, "deeplabv3plus")


@pytest.mark.parametrize("head", ["unet", "fcos", "heatmap_published", "mixture:deeplabv3plus"])
def test_head_on_swin(head: str) -> None:
    """A network whose own maps are NHWC, at a size its windows do not divide."""
    train_and_decode(build(head, "swin_tiny_patch4_window7_224"), torch.randn(3, 3, *SIZE))


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_bfloat16_and_channels_last(head: str) -> None:
    torch.manual_seed(1)
    images = torch.randn(3, 3, *SIZE)
    plain = train_and_decode(build(head, "test_resnet"), images)
    model = build(head, "test_resnet").to(memory_format=torch.channels_last)
    torch.manual_seed(2)
    with torch.autocast("cpu", torch.bfloat16):
        half = train_and_decode(model, images.contiguous(memory_format=torch.channels_last))
    check_gradients(model, head)
    # Sampled anchors and dropout differ; the loss is still the same quantity.
    torch.testing.assert_close(half, plain, rtol=0.25, atol=0.05)


@pytest.mark.parametrize("head", HEAD_NAMES)
def test_decoding_in_float32(head: str) -> None:
    """What heads say of a bfloat16 pass is float32 from the first step of decoding on, wherever autocast is on."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, *SIZE)
    model = build(head, "test_resnet").eval()
    (task,) = model.heads
    boxes = {task: [torch.tensor([[6.3, 8.1, 34.7, 36.2]])] * 2} if model.heads[task].needs_boxes else None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(images)
        inside = model.decode(outputs, boxes)[task]
    assert {value.dtype for row in inside for value in row.values()} <= {torch.float32, torch.int64}
    if model.heads[task].needs_boxes or "proposals" in outputs[task]:
        return  # their second stage runs while decoding
    with torch.no_grad():
        outside = model.decode(outputs, boxes)[task]
    for row, other in zip(inside, outside, strict=True):
        for key, value in row.items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("head", ["fcos", "faster_rcnn", "heatmap", "heatmap_published", "centres", "blobs", "box_centres"])
def test_places_between_pixels_survive_bfloat16(head: str) -> None:
    """Coordinates of a bfloat16 pass are no multiples of a pixel: 8 bits would leave none between beyond 128."""
    torch.manual_seed(1)
    model: Any = build(head, "test_resnet").eval()
    (task,) = model.heads
    model.heads[task].score_threshold = 0.0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rows = model.decode(model(torch.randn(2, 3, 320, 352)))[task]
    places = torch.cat([row.get("boxes", row.get("points")).flatten() for row in rows])
    far = places[(places > 128) & (places < 319)]
    assert len(far) > 10 and float(((far % 1) > 0).float().mean()) > 0.5


def test_heads_that_share_layers_between_maps_ask_for_a_neck() -> None:
    refused = set()
    for head in choices("head"):
        config = copy.deepcopy(_config(head))
        (task,) = config["tasks"]
        if config["heads"][task]["features"] == "fpn":
            config["heads"][task]["features"] = "encoder"
            with pytest.raises(ConfigError, match="features=fpn"):
                MultiTaskModel.from_config(config)
            refused.add(head)
    assert refused == {"box_centres", "faster_rcnn", "faster_rcnn_published", "fcos", "roi_classifier"}
