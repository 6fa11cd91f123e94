"""A run goes on as it was begun: what its folder holds has to agree with its last checkpoint, which carries a digest."""

from __future__ import annotations

from typing import Any

from mtl.config.keys import ALLOWED, VOLATILE, leaves
from mtl.config.plan import Plan
from mtl.core.errors import ConfigError, DataError
from mtl.core.files import plain
from mtl.runs.checkpoint import config_of
from mtl.runs.folder import LAST, RunFolder

MAY_CHANGE = (*VOLATILE, *ALLOWED)


def require_same_config(plan: Plan, about: dict[str, Any], run: RunFolder) -> None:
    """Refuse to go on with another configuration than the one trained with so far.

    Args:
        plan: Of the resumed run, from its `config.json`.
        about: The entry `mtl` of its last checkpoint.
        run: Its folder.

    Raises:
        ConfigError: A key that may not change has another value.
    """
    now, trained = (_fixed(config) for config in (plan.to_dict(), config_of(about, run.last).model_dump()))
    changed = sorted(key for key in now.keys() | trained.keys() if now.get(key, ...) != trained.get(key, ...))
    if changed:
        shown = [
            f"`{key}` is {_shown(now, key)}, in {LAST} {_shown(trained, key)}" for key in changed[:3]
        ] + ([f"{len(changed) - 3} more differ"] if len(changed) > 3 else [])  # fmt: skip
        raise ConfigError(
            f"`{run.config}` is not the configuration that the run was trained with: {'; '.join(shown)}. Restore the file or "
            "these values to go on, or start a new run with others."
        )


def require_same_split(rows: list[dict[str, str]], about: dict[str, Any], run: RunFolder) -> None:
    """Refuse to go on with another split than the one trained with so far.

    Args:
        rows: Of the split that the resumed run would use.
        about: The entry `mtl` of its last checkpoint.
        run: Its folder.

    Raises:
        DataError: A sample is in another split, has another content, or is in one of the two only.
    """
    now, trained = ({row["sample_id"]: (row["split"], row["content_hash"]) for row in of} for of in (rows, about["split"]))
    changed = sorted(name for name in now.keys() | trained.keys() if now.get(name) != trained.get(name))
    if changed:
        first = changed[0]
        here, before = (split.get(first, ("no split", ""))[0] for split in (now, trained))
        how = f"is in {here}, in {LAST} in {before}" if here != before else "is another image than it was"
        raise DataError(
            f"The split of `{run.path}` is not the one that the run was trained with: {len(changed)} of {len(trained)} samples "
            f"differ (first: `{first}` {how}). Restore {run.split.name} and the images, or start a new run."
        )


def _fixed(config: dict[str, Any]) -> dict[str, Any]:
    """Return by path what may not change."""
    return {
        key: value
        for key, value in leaves(plain(config)).items()
        if not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
    }


def _shown(values: dict[str, Any], key: str) -> str:
    return repr(values[key]) if key in values else "missing"
