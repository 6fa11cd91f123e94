"""Help texts, made from the YAML files so that they cannot be out of date."""

from __future__ import annotations

from mtl.cli.main import verbs
from mtl.config.compose import choices, configs_folder, take_plugins
from mtl.core.errors import ConfigError

HELP_FLAGS = frozenset({"-h", "--help"})


def wants_help(words: list[str]) -> bool:
    """Return whether the user asked for help."""
    return bool(HELP_FLAGS.intersection(words))


def verb_help(verb: str, config_name: str, words: list[str] | None = None) -> str:
    """Describe a verb: its usage, the keys of its YAML and, for training, the choices of every group.

    Args:
        verb: One of `verbs()`.
        config_name: Its YAML file.
        words: The command line, for a verb that trains: plug-ins named there add choices.

    Raises:
        ConfigError: A plug-in cannot be found.
    """
    lines = [verbs()[verb], "", config_help(config_name)]
    if words is not None:
        if problems := take_plugins([word for word in words if "=" in word])[1]:
            raise ConfigError(problems)
        lines += ["", "Groups (group=choice):", ""]
        folders = sorted(path.name for path in configs_folder().iterdir() if path.is_dir() and path.name != "hydra")
        lines += [f"  {group}: {', '.join(choices(group))}" for group in folders]
        lines += [
            "",
            "Any key of a group can be set: optimizer.lr=1e-4, heads.detection.score_threshold=0.1, tasks=[detection].",
        ]
        lines += ["`--cfg job` prints the composed configuration, `-m` runs a sweep."]
    return "\n".join(lines)


def config_help(config_name: str) -> str:
    """Return the keys and defaults of one YAML file with its comments."""
    text = (configs_folder() / f"{config_name}.yaml").read_text(encoding="utf-8").splitlines()
    lines = [f"  {line}".rstrip() for line in text if not line.startswith("#")]
    return "\n".join([f"Keys and defaults (configs/{config_name}.yaml):", "", *lines])
