"""`mtl evaluate` and `evaluate.py`."""

from __future__ import annotations

from pathlib import Path

from mtl.cli.help import verb_help, wants_help
from mtl.config.load import load_config
from mtl.config.verbs import EvaluateConfig
from mtl.core.errors import DataError
from mtl.runs.folder import require_checkpoint

SUMMARY = "score a checkpoint: mtl evaluate checkpoint=<file> [data.root=<folder>] [split=test|val|all]"


def run(words: list[str]) -> int:
    """Score a checkpoint."""
    if wants_help(words):
        print(verb_help("evaluate", "evaluate"))
        return 0
    config = load_config("evaluate", words, EvaluateConfig)
    require_checkpoint(config["checkpoint"])
    if config["data"]["root"] and not Path(config["data"]["root"]).is_dir():
        raise DataError(f"Data folder `{config['data']['root']}` does not exist. Set data.root to the folder of the images.")
    from mtl.experiments.score import evaluate

    evaluate(**config)
    return 0
