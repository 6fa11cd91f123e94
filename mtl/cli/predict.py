"""`mtl predict` and `predict.py`."""

from __future__ import annotations

from mtl.cli.help import verb_help, wants_help
from mtl.config.load import load_config
from mtl.config.verbs import PredictConfig
from mtl.inference.images import find_images
from mtl.runs.folder import require_checkpoint

SUMMARY = "use a checkpoint on images: mtl predict checkpoint=<file> source=<image|folder|glob> output=<folder>"


def run(words: list[str]) -> int:
    """Predict; the status is 1 when a file could not be read."""
    if wants_help(words):
        print(verb_help("predict", "predict"))
        return 0
    config = load_config("predict", words, PredictConfig)
    find_images(config["source"])
    require_checkpoint(config["checkpoint"])
    from mtl.inference.predict import predict

    return 1 if predict(**config) else 0
