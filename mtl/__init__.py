"""Multi-task learning on medical images: one network, several jobs, numbers a reviewer can trust."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mtl.core.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from mtl.inference.predictor import Predictor


__all__ = ["__version__", "load"]


def load(checkpoint: str | Path, device: str = "auto") -> Predictor:
    """Load a checkpoint as something that predicts from an image array; no YAML is needed.

    Args:
        checkpoint: A `best.ckpt` or `last.ckpt` of a run, or a run directory.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...

    Returns:
        A predictor: `mtl.load("runs/malaria_mttl/demo").predict(image)` with `image` [H, W, 3] uint8 RGB.

    Raises:
        CheckpointError: The file is missing, unreadable or not a checkpoint of mtl.
    """
    from mtl.inference.loading import load_predictor

    return load_predictor(checkpoint, device=device)
