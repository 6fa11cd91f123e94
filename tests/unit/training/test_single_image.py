from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError
from mtl.runs.build import build_model
from mtl.training.single_image import check_single_images

WORDS = ["task=malaria_mttl", "tasks=[segmentation]", "backbone=test_resnet"]
POOLED = ["+neck@necks.aspp=aspp", "head@heads.segmentation=deeplabv3plus"]


@pytest.mark.parametrize(
    ("words", "size", "batch_size", "partly", "refused"),
    [
        ([], 32, 1, False, r"of one image of 32 x 32 pixels.*Set data.loader.batch_size=2"),
        ([], 32, 2, False, ""),
        ([], 64, 1, False, ""),
        (POOLED, 64, 1, True, ""),
        ([], 32, 2, True, ""),  # it is the encoder whose map is that small, and it sees every image
    ],
)
def test_a_norm_needs_more_than_one_value(words: list[str], size: int, batch_size: int, partly: bool, refused: str) -> None:
    model = build_model(Plan.from_words([*WORDS, *words, f"data.geometry.size=[{size},{size}]"]), load_weights=False)
    if refused:
        with pytest.raises(ConfigError, match=refused):
            check_single_images(model, batch_size, partly)
    else:
        check_single_images(model, batch_size, partly)


def test_a_head_may_see_one_image_of_a_larger_batch() -> None:
    model = build_model(Plan.from_words([*WORDS, "data.geometry.size=[64,64]"]), load_weights=False)
    model.heads["segmentation"].register_forward_pre_hook(_pooled)
    check_single_images(model, batch_size=2, partly=False)
    with pytest.raises(ConfigError, match=r"with one labelled image of 64 x 64 pixels.*\. Give the network larger images"):
        check_single_images(model, batch_size=2, partly=True)


def _pooled(head: nn.Module, given: tuple[Any, ...]) -> None:
    """Take batch statistics of the mean of a map, as a head with plain norms might."""
    maps = given[0][-1]
    nn.BatchNorm1d(maps.shape[1])(maps.mean(dim=(2, 3)))
