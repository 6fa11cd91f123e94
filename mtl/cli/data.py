"""`mtl data synth|check|stats|show|prepare <family>`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mtl.cli.help import config_help, wants_help
from mtl.config.compose import choices, compose, take_plugins
from mtl.config.data_schema import DataConfig
from mtl.config.load import build_family, check_data, load_config
from mtl.config.parts import validate
from mtl.config.plan import lost_some, too_many_lost
from mtl.config.verbs import DataToolConfig, SynthConfig
from mtl.core.causes import by_cause
from mtl.core.disk import keeping
from mtl.core.errors import ConfigError, unknown
from mtl.core.registry import DATA_FAMILIES

SUMMARY = "look after data: mtl data synth|check|stats|show|prepare <family> [key=value ...]"
TOOLS = {
    "synth": "generate a small data set in the native layout: output=<folder> patients=8 fields=5",
    "check": "read everything and report what is wrong",
    "stats": "write a table and figures: output=<folder>",
    "show": "write samples with their annotations drawn in: output=<folder> count=6",
    "prepare": "build the memory-mapped cache that training reads",
}


def run(words: list[str]) -> int:
    """Run a data tool on a data family."""
    names = [word for word in words if "=" not in word and not word.startswith("-")]
    overrides = [word for word in words if "=" in word]
    if problems := take_plugins(overrides)[1]:
        raise ConfigError(problems)
    if wants_help(words) or not names:
        tools = [f"  {name:<8} {text}" for name, text in TOOLS.items()]
        families = f"families: {', '.join(DATA_FAMILIES.names())}"
        print("\n".join(["usage: mtl data <tool> <family> [key=value ...]", "", *tools, "", families]))
        if names and names[0] in TOOLS:
            print("\n" + config_help("data_synth" if names[0] == "synth" else "data_tool"))
        return 0
    tool = names[0]
    if tool not in TOOLS:
        raise ConfigError(unknown("data tool", tool, TOOLS))
    if len(names) != 2 or names[1] not in choices("data"):
        raise ConfigError(unknown("data family", names[1] if len(names) > 1 else "", DATA_FAMILIES.names(), f"mtl data {tool}"))
    if tool == "synth":
        return _synth(names[1], load_config("data_synth", overrides, SynthConfig))
    composed, problems = compose("data_tool", [f"data={names[1]}", *overrides])
    if not composed:
        raise ConfigError(problems)
    values, found = validate(DataToolConfig, composed, "")
    data, in_data = check_data(values.get("data"))
    if problems := [*problems, *found, *in_data]:
        raise ConfigError(problems)
    config = DataToolConfig.model_validate({**values, "data": data})
    carry_out = {"check": _check, "stats": _stats, "show": _show, "prepare": _prepare}[tool]
    with keeping(lambda: "Files that were written before are whole."):
        return carry_out(config, DataConfig.model_validate(data))


def _synth(family: str, settings: dict[str, Any]) -> int:
    output = Path(settings.pop("output"))
    del settings["plugins"]  # known by now
    family_class: Any = DATA_FAMILIES.get(family)
    family_class.generate(output, **settings)
    print(output)
    return 0


def _check(config: DataToolConfig, data: DataConfig) -> int:
    family = build_family(data)
    report = family.check()
    lost = lost_some(family.lost_labels()) if report.counts else []  # without any the folder could not even be indexed
    serious = too_many_lost(lost, data.largest_loss)
    errors = by_cause([*report.errors, *serious])
    kept = [str(entry) for entry in lost if entry.share <= data.largest_loss]
    notes = by_cause([*report.notes, *kept], numbers=False)
    for name, count in report.counts.items():
        print(f"{name}: {count}")
    for note in notes:
        print(f"note: {note}")
    for error in errors:
        print(f"error: {error}")
    found = len(report.errors) + len(serious)
    causes = f" with {len(errors)} cause{'s' if len(errors) > 1 else ''}" if len(errors) < found else ""
    print(f"{found} errors{causes}, {len(notes)} notes")
    return 3 if errors else 0


def _stats(config: DataToolConfig, data: DataConfig) -> int:
    from mtl.report.data_pages import write_stats

    family = build_family(data)
    for path in write_stats(family, family.records(), Path(config.output)):
        print(path)
    return 0


def _show(config: DataToolConfig, data: DataConfig) -> int:
    from mtl.imaging.preprocessing import Preprocessing
    from mtl.report.data_pages import show_samples

    family = build_family(data)
    preprocessing = Preprocessing.from_config(data.geometry.model_dump(), data.preprocessing.model_dump())
    for path in show_samples(family, family.records(), Path(config.output), config.count, config.seed, preprocessing):
        print(path)
    return 0


def _prepare(config: DataToolConfig, data: DataConfig) -> int:
    from mtl.data.pipeline.cache import prepare
    from mtl.imaging.preprocessing import Preprocessing

    # What the index finds out about the files (which are copies) goes beside the cache, also where training is not to use it.
    family = build_family(data.model_copy(update={"cache": data.cache.model_copy(update={"enabled": True})}))
    family.locate()
    preprocessing = Preprocessing.from_config(data.geometry.model_dump(), data.preprocessing.model_dump())
    cache = prepare(family, family.records(), preprocessing, data.cache.folder)
    print(cache.folder)
    return 0
