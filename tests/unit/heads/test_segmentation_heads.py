"""Segmentation heads compute at their own stride; DeepLabv3+ joins a fine and the last map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS, NECKS
from mtl.core.task import TaskSpec
from mtl.heads.segmentation.base import SegmentationHead

SIZE = (48, 80)
SPEC = TaskSpec("lesions", "segmentation", ("a", "b"))


class Probe(SegmentationHead):
    """Counts the rows that are resized."""

    def __init__(self, spec: TaskSpec = SPEC, loss: str = "dice_bce") -> None:
        super().__init__(spec, (4,), (8,), {"name": loss})
        self.logits = nn.Conv2d(4, len(spec.classes), 1)

    def maps(self, features: tuple[Tensor, ...], image_size: tuple[int, int]) -> Tensor:
        return self.logits(features[0])


def features(strides: tuple[int, ...], channels: tuple[int, ...], rows: int = 3) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(rows, c, -(-SIZE[0] // s), -(-SIZE[1] // s), generator=generator)
        for c, s in zip(channels, strides, strict=True)
    )


def truth(rows: int = 3) -> Tensor:
    return (torch.rand(rows, 2, *SIZE, generator=torch.Generator().manual_seed(1)) > 0.7).float()


def test_logits_stay_at_the_stride_of_the_head() -> None:
    head = Probe()
    output = head(features((8,), (4,)), SIZE)
    assert output["logits"].shape == (3, 2, 6, 10) and output["size"] == SIZE
    full = F.interpolate(output["logits"], size=SIZE, mode="bilinear", align_corners=False)
    found = torch.stack([row["probabilities"] for row in head.decode(output)])
    torch.testing.assert_close(found, full.sigmoid())
    loss = head.loss(output, truth())["mask"]
    torch.testing.assert_close(loss, head.criterion(full, truth()))


def test_one_class_per_pixel_sums_to_one_after_resizing() -> None:
    head = Probe(TaskSpec("tissue", "segmentation", ("a", "b"), multilabel=False), "cross_entropy")
    found = head.decode(head(features((8,), (4,)), SIZE))[0]["probabilities"]
    torch.testing.assert_close(found.sum(0), torch.ones(SIZE))


def deeplab(channels: tuple[int, ...], strides: tuple[int, ...], **keys: Any) -> Any:
    config = {"name": "deeplabv3plus", "loss": {"name": "dice_bce"}, "width": 8, "low_channels": 4, **keys}
    return HEADS.build(config, SPEC, channels, strides)


@pytest.mark.parametrize("strides", [(4, 16), (2, 4, 8, 16, 32), (4, 8, 16, 32), (2, 4, 8, 8, 8)])
def test_deeplab_takes_the_fine_and_the_last_map(strides: tuple[int, ...]) -> None:
    channels = tuple(range(3, 3 + len(strides)))
    maps = tuple(level.requires_grad_() for level in features(strides, channels))
    output = deeplab(channels, strides)(maps, SIZE)
    assert output["logits"].shape == (3, 2, SIZE[0] // 4, SIZE[1] // 4)
    output["logits"].square().sum().backward()
    used = [stride for level, stride in zip(maps, strides, strict=True) if level.grad is not None]
    assert used == [4, strides[-1]] and maps[-1].grad is not None


def test_deeplab_takes_the_first_of_several_fine_maps() -> None:
    maps = tuple(level.requires_grad_() for level in features((4, 4, 8), (3, 5, 6)))
    deeplab((3, 5, 6), (4, 4, 8))(maps, SIZE)["logits"].sum().backward()
    assert [level.grad is not None for level in maps] == [True, False, True]


def test_deeplab_on_the_pooling_neck() -> None:
    neck = NECKS.build({"name": "aspp", "width": 8}, (3, 5, 6, 7), (4, 8, 16, 32))
    head = deeplab(neck.channels, neck.strides)
    assert head(neck(features((4, 8, 16, 32), (3, 5, 6, 7))), SIZE)["logits"].shape[-2:] == (12, 20)


@pytest.mark.parametrize("low_level", [1, 4, 5, -1])
def test_deeplab_names_the_levels_there_are(low_level: int) -> None:
    with pytest.raises(ConfigError, match=rf"lesions\.low_level={low_level}.*2 \(/4\), 3 \(/8\)"):
        deeplab((3, 4, 5), (4, 8, 16), low_level=low_level)


def test_deeplab_without_a_fine_map_or_convolution_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"\(none\).*aspp"):
        deeplab((8,), (16,))
    with pytest.raises(ConfigError, match="convolutions=0"):
        deeplab((3, 4), (4, 8), convolutions=0)


def classic(channels: tuple[int, ...], strides: tuple[int, ...], **keys: Any) -> Any:
    return HEADS.build({"name": "unet_classic", "loss": {"name": "dice_bce"}, **keys}, SPEC, channels, strides)


@pytest.mark.parametrize("upsampling", ["bilinear", "transposed"])
@pytest.mark.parametrize("strides", [(1, 2, 4, 8), (2, 4, 8, 16, 32), (4, 16), (4, 8, 16, 16)])
def test_classic_decoder_joins_every_map_and_ends_at_the_finest(strides: tuple[int, ...], upsampling: str) -> None:
    channels = tuple(range(3, 3 + len(strides)))
    head = classic(channels, strides, upsampling=upsampling)
    maps = tuple(level.requires_grad_() for level in features(strides, channels))
    output = head(maps, SIZE)
    assert output["logits"].shape == (3, 2, SIZE[0] // strides[0], SIZE[1] // strides[0])
    output["logits"].square().sum().backward()
    assert all(level.grad is not None and level.grad.abs().sum() > 0 for level in maps)
    assert head.decode(output)[0]["probabilities"].shape == (2, *SIZE)


def test_classic_decoder_puts_the_finer_map_first_and_aligns_corners() -> None:
    step = classic((3, 5), (1, 2)).steps[0]
    seen: list[Tensor] = []
    step.fuse.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    coarse, fine = torch.zeros(1, 5, 2, 2), torch.ones(1, 3, 4, 4)
    coarse[..., 1] = 3.0
    step(coarse, fine)
    assert (seen[0][:, :3] == 1).all()
    torch.testing.assert_close(seen[0][0, 3, 0], torch.tensor([0.0, 1.0, 2.0, 3.0]))


def test_classic_decoder_needs_two_maps() -> None:
    with pytest.raises(ConfigError, match=r"heads\.lesions\.features.*stride 16"):
        classic((8,), (16,))
