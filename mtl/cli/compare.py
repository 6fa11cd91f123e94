"""`mtl compare`."""

from __future__ import annotations

from mtl.cli.help import verb_help, wants_help
from mtl.config.load import load_config
from mtl.config.verbs import CompareConfig

SUMMARY = "train and table several arms: mtl compare suite=malaria_mttl seeds=3 arms=[mtl,stl]"


def run(words: list[str]) -> int:
    """Train what is missing of a comparison and write its tables."""
    if wants_help(words):
        print(verb_help("compare", "compare"))
        return 0
    end = words.index("--") if "--" in words else len(words)
    own, shared = words[:end], words[end + 1 :]  # what follows `--` goes to every run, in the grammar of train.py
    config = load_config("compare", own, CompareConfig)
    config["overrides"] = [*config["overrides"], *shared]
    from mtl.experiments.arms import compare

    compare(**config)
    return 0
