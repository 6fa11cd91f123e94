"""`mtl evaluate` and `evaluate.py`."""

from __future__ import annotations

from mtl.cli.help import verb_help, wants_help
from mtl.config.load import load_config
from mtl.config.schema import EvaluateConfig


def run(words: list[str]) -> int:
    """Score a checkpoint."""
    if wants_help(words):
        print(verb_help("evaluate", "evaluate"))
        return 0
    config = load_config("evaluate", words, EvaluateConfig)
    from mtl.evaluation.evaluate import evaluate

    evaluate(**config)
    return 0
