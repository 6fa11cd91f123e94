from __future__ import annotations

import pytest

from mtl.config.plan import Plan
from mtl.core.errors import ConfigError
from mtl.runs.build import build_model
from mtl.training.single_image import check_single_images

WORDS = ["task=malaria_mttl", "tasks=[segmentation]", "backbone=test_resnet"]
POOLED = ["+neck@necks.aspp=aspp", "head@heads.segmentation=deeplabv3plus"]


@pytest.mark.parametrize(
    ("words", "size", "batch_size", "refused"),
    [([], 32, 1, True), ([], 32, 2, False), ([], 64, 1, False), (POOLED, 64, 1, False)],
)
def test_a_norm_needs_more_than_one_value(words: list[str], size: int, batch_size: int, refused: bool) -> None:
    model = build_model(Plan.from_words([*WORDS, *words, f"data.geometry.size=[{size},{size}]"]), load_weights=False)
    if refused:
        with pytest.raises(ConfigError, match=rf"batch of one image of {size} x {size} pixels.*data.loader.batch_size=2"):
            check_single_images(model, batch_size)
    else:
        check_single_images(model, batch_size)
