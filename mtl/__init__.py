"""Multi-task learning on medical images: one network, several jobs, numbers a reviewer can trust."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mtl.core.version import __version__

if TYPE_CHECKING:
    from pathlib import Path

    from mtl.inference.predictor import Predictor


__all__ = ["__version__", "load"]


def load(
    checkpoint: str | Path,
    device: str = "auto",
    plugins: Iterable[str] = (),
    precision: str | int = "auto",
    channels_last: str | bool = "auto",
) -> Predictor:
    """Load a checkpoint as something that predicts images and volumes; no YAML is needed.

    Args:
        checkpoint: A `best.ckpt` or `last.ckpt` of a run, or a run directory.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        plugins: Modules or paths of files with parts that the checkpoint needs, as in `plugins=` of the command line; installed
            plug-ins are known. A checkpoint only names what it needs and is never asked what to import.
        precision: `auto` is that of the training, where the device is made for it, else float32; `32` is float32, `bf16-mixed`
            and `16-mixed` (on a GPU) are mixed. Predictions say it (`precision`).
        channels_last: Memory format; `auto` is that of the training, or what suits the precision.

    Returns:
        A predictor: `mtl.load("runs/malaria_mttl/demo").predict("smear.jpg")`, which also takes PIL images, arrays [H, W, 3] of
        uint8, NIfTI files, case folders and lists of these, and `thresholds=`, `tasks=`, `when=`.

    Raises:
        CheckpointError: The file is missing, unreadable, not a checkpoint of mtl, or needs a plug-in that is not known.
        ConfigError: A plug-in cannot be found.
    """
    from mtl.core.plugins import use
    from mtl.inference.loading import load_predictor

    use(plugins)
    return load_predictor(checkpoint, device, precision, channels_last)
