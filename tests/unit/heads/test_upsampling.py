from __future__ import annotations

import pytest
import torch

from mtl.core.errors import ConfigError
from mtl.core.registry import HEADS
from mtl.core.task import TaskSpec

SPEC = TaskSpec("lesion", "segmentation", ("lesion",), label="mask:lesion")
MAPS = (16, 24, 32), (8, 16, 32)


def build(**settings):
    torch.manual_seed(0)
    return HEADS.build({"name": "upsampling", "loss": {"name": "dice_bce"}, **settings}, SPEC, *MAPS).eval()


def maps(height: int, width: int) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(2, c, height // s, width // s) for c, s in zip(*MAPS, strict=True))


def test_logits_at_half_the_size_and_predictions_at_the_full_one() -> None:
    head = build(decoder_channels=[16, 8, 8, 4], last_channels=4)
    output = head(maps(224, 224), (224, 224))
    assert output["logits"].shape == (2, 1, 112, 112)
    assert head.decode(output)[0]["probabilities"].shape == (1, 224, 224)
    assert build(decoder_channels=[8])(maps(64, 96), (64, 96))["logits"].shape == (2, 1, 4, 6)


def test_only_the_last_map_is_looked_at() -> None:
    head, features = build(decoder_channels=[8, 4]), maps(64, 96)
    changed = (features[0] + 1, features[1] + 1, features[2])
    assert torch.equal(head(features, (64, 96))["logits"], head(changed, (64, 96))["logits"])


@pytest.mark.parametrize("widths", [[], [8, 8, 8, 8, 8, 8]])
def test_maps_finer_than_the_image_are_refused(widths: list[int]) -> None:
    with pytest.raises(ConfigError, match="expected 1 to 5 times, since its stride is 32"):
        build(decoder_channels=widths)
