"""Values of environment variables (`${oc.env:NAME}`) that a run uses and does not keep.

What builds or reads something (parts, paths, numbers) is stored as it was, so that a run can be rebuilt anywhere. The section
`logger` serves nothing but this session, and what people put there may be nobody else's business: the words stay as they were
written, in `config.json` and checkpoints too, and are looked up when a logger is built.
"""

from __future__ import annotations

import os
import re
from typing import Any

from mtl.core.errors import ConfigError

NOT_KEPT = ("logger",)
VARIABLE = re.compile(r"\$\{oc\.env:\s*([^{},\s]+)\s*(?:,\s*([^{}]*?)\s*)?\}")
NO_SECRETS = ("true", "false", "null", "none", "")


def as_written(resolved: Any, written: Any, where: str) -> Any:
    """Return a resolved section in which texts that take something from the environment are those that were written.

    Raises:
        ConfigError: A text mixes that with other references.
    """
    if isinstance(resolved, dict) and isinstance(written, dict):
        return {key: as_written(value, written.get(key), f"{where}.{key}") for key, value in resolved.items()}
    if isinstance(resolved, list) and isinstance(written, list) and len(resolved) == len(written):
        return [as_written(value, other, where) for value, other in zip(resolved, written, strict=True)]
    if not isinstance(written, str) or "oc.env" not in written or str(resolved).lower() in NO_SECRETS:
        return resolved
    if "${" in VARIABLE.sub("", written):
        raise ConfigError(
            f"`{where}` is `{written}`, which mixes an environment variable with other references. Expected ${{oc.env:NAME}} "
            "or ${oc.env:NAME,default} alone or within plain text, since the value is looked up anew whenever a run goes on."
        )
    return written


def looked_up(value: Any) -> Any:
    """Return plain values with the environment variables in their texts replaced by what they hold now.

    Raises:
        ConfigError: One is not set and has no default.
    """
    if isinstance(value, dict):
        return {key: looked_up(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [looked_up(entry) for entry in value]
    return VARIABLE.sub(_held, value) if isinstance(value, str) else value


def _held(found: re.Match[str]) -> str:
    held = os.environ.get(found[1], found[2])
    if held is None:
        raise ConfigError(f"The environment variable `{found[1]}` is not set, but `{found[0]}` asks for it. Set it and repeat.")
    return held
