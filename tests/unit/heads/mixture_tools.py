"""Small mixtures of every kind of expert, and maps and labels for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec
from mtl.heads.base import Head
from mtl.heads.mixture import MixtureHead

SIZE = (48, 64)
CHANNELS, STRIDES = (6, 6), (4, 8)
CLASSES = ("a", "b", "c")
EXPERTS: dict[str, tuple[dict[str, Any], str]] = {
    "classifier": ({"name": "classifier", "loss": {"name": "cross_entropy"}, "dropout": 0.0, "hidden": [5]}, "classification"),
    # With BatchNorm, whose statistics depend on which rows run.
    "deeplabv3plus": (
        {"name": "deeplabv3plus", "loss": {"name": "dice_bce"}, "width": 4, "low_channels": 3, "dropout": 0.0}, "segmentation"
    ),
    "unet": ({"name": "unet", "loss": {"name": "dice_bce"}, "decoder_channels": [4, 4]}, "segmentation"),
    "fcos": ({"name": "fcos", "convolutions": 1}, "detection"),
    "heatmap": ({"name": "heatmap", "loss": {"name": "heatmap_focal"}, "width": 4, "norm": "batch"}, "heatmap"),
}  # fmt: skip
EVERYONE = list(EXPERTS)
AUXILIARY = ("l1", "load_balance", "entropy", "importance", "load")


def build(expert: str = "classifier", classes: tuple[str, ...] = CLASSES, **keys: Any) -> MixtureHead:
    torch.manual_seed(0)
    config, kind = EXPERTS[expert]
    spec: Any = TaskSpec("task", kind, classes)  # type: ignore[arg-type]
    head: MixtureHead = HEADS.build({"name": "mixture", "expert": config, "experts": 4, **keys}, spec, CHANNELS, STRIDES)
    with torch.no_grad():
        head.gate.weight.mul_(4)  # so that images differ in what they select
    return head


def features(rows: int = 5, grad: bool = False) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    maps = (
        torch.randn(rows, c, SIZE[0] // s, SIZE[1] // s, generator=generator) for c, s in zip(CHANNELS, STRIDES, strict=True)
    )
    return tuple(
        (level + 2 * torch.randn(rows, level.shape[1], 1, 1, generator=generator)).requires_grad_(grad) for level in maps
    )


def target_for(head: Head, rows: int = 5) -> Any:
    if head.kind == "classification":
        return torch.arange(rows) % 3
    if head.kind == "segmentation":
        return (torch.rand(rows, 3, *SIZE, generator=torch.Generator().manual_seed(2)) > 0.7).float()
    box = torch.tensor([[4.0, 6, 30, 34], [34, 10, 60, 44]])
    labels = torch.tensor([0, 2])
    return [{"boxes": box, "labels": labels, "points": (box[:, :2] + box[:, 2:]) / 2} for _ in range(rows)]
