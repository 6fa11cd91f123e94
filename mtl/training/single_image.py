"""Batches in which a part sees one image, of which a BatchNorm on a map of one pixel cannot take statistics."""

from __future__ import annotations

import torch

from mtl.core.errors import ConfigError
from mtl.model import MultiTaskModel

REFUSAL = "more than 1 value per channel"  # of torch, by which its error is known


def check_single_images(model: MultiTaskModel, batch_size: int, partly: bool) -> None:
    """Try one image where training will have such batches; the statistics of the model's norms change by it.

    Args:
        model: The network.
        batch_size: The smallest batch that occurs.
        partly: Labels are missing, so that a head may see one image of a larger batch.

    Raises:
        ConfigError: A norm would see one value per channel.
    """
    if batch_size > 1 and not partly:
        return
    height, width = model.preprocessing.geometry.size
    images = torch.zeros(min(batch_size, 2), len(model.preprocessing.mean), height, width)
    model.train()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            model(images, rows=dict.fromkeys(model.heads, (0,)))
    except ValueError as error:
        if REFUSAL not in str(error):
            raise
        which = "with one labelled image" if batch_size > 1 else "of one image"
        remedy = "Give" if batch_size > 1 else "Set data.loader.batch_size=2 or more, or give"
        raise ConfigError(
            f"A batch {which} of {height} x {width} pixels leaves one value per channel to a BatchNorm, on a map of 1 x 1 "
            f"pixel. {remedy} the network larger images with data.geometry.size."
        ) from None
