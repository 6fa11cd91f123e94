"""`mtl describe`."""

from __future__ import annotations

import json

from mtl.cli.help import verb_help, wants_help
from mtl.config.load import load_run_config


def run(words: list[str]) -> int:
    """Print the network that a configuration builds; `--json` for machines."""
    if wants_help(words):
        print(verb_help("describe", "train", words))
        return 0
    config = load_run_config([word for word in words if word != "--json"])
    from mtl.experiments.describe import describe, describe_stages, render
    from mtl.runs.build import build_balancer, build_model

    model = build_model(config, load_weights=False)
    description = describe(model, build_balancer(config), model.preprocessing.geometry.size)
    description |= describe_stages(model, config)
    print(json.dumps(description) if "--json" in words else render(description))
    return 0
