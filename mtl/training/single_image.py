"""Batches of one image, of which a BatchNorm on a map of one pixel cannot take statistics."""

from __future__ import annotations

import torch

from mtl.core.errors import ConfigError
from mtl.model import MultiTaskModel

REFUSAL = "more than 1 value per channel"  # of torch, by which its error is known


def check_single_images(model: MultiTaskModel, batch_size: int) -> None:
    """Try a batch of one image where training will have such batches; the statistics of the model's norms change by it.

    Raises:
        ConfigError: A norm would see one value per channel.
    """
    if batch_size > 1:
        return
    height, width = model.preprocessing.geometry.size
    images = torch.zeros(1, len(model.preprocessing.mean), height, width)
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(images)
    except ValueError as error:
        if REFUSAL not in str(error):
            raise
        raise ConfigError(
            f"A batch of one image of {height} x {width} pixels leaves one value per channel to a BatchNorm, on a map of 1 x 1 "
            "pixel. Set data.loader.batch_size=2 or more, or give the network larger images with data.geometry.size."
        ) from None
