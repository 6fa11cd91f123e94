"""`mtl describe`."""

from __future__ import annotations

import json

from mtl.cli.help import verb_help, wants_help
from mtl.config.plan import Plan

SUMMARY = "print the network a configuration builds and the memory it needs: mtl describe task=malaria_mttl [--json]"


def run(words: list[str]) -> int:
    """Print the network that a configuration builds; `--json` for machines."""
    if wants_help(words):
        print(verb_help("describe", "train", words))
        return 0
    plan = Plan.from_words([word for word in words if word != "--json"])
    from mtl.experiments.describe import describe, describe_memory, describe_stages, render
    from mtl.runs.build import build_balancer, build_model
    from mtl.runs.precision import settled

    plan, _ = settled(plan)
    model = build_model(plan, load_weights=False)
    description = describe(model, build_balancer(plan.config.balancer, plan.config.tasks), model.preprocessing.geometry.size)
    description |= describe_stages(model, plan) | describe_memory(plan)
    print(json.dumps(description) if "--json" in words else render(description))
    return 0
