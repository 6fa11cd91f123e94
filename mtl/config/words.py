"""The grammar of words such as `optimizer.lr=1e-4`, one for every verb and every kind of run.

It is Hydra's grammar (lists, mappings, numbers, quotes, references `${...}`), in which most characters of file names are no
text. Here a word is made ready for Hydra: what it would stumble over is quoted, and what is a name stays a name (`name=007`).
Nothing else in the program reads or writes values of words.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from mtl.config.path_keys import holds_path
from mtl.core.errors import ConfigError

EXAMPLE = "Expected key=value, for example backbone=resnet50 or optimizer.lr=1e-4; --help lists what there is."
DEPTH = 30  # of brackets in brackets; deeper ones are no setting of anything

_WORD = re.compile(r"(?P<prefix>~|\+{0,2})(?P<key>[^=]+)(?:=(?P<value>.*))?", re.DOTALL)
_KEY = re.compile(r"[A-Za-z0-9_$./@:-]+")
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_FUNCTION = re.compile(
    r"(?P<name>int|str|bool|float|choice|range|interval|tag|sort|shuffle|glob)\s*\((?P<inner>.*)\)", re.DOTALL
)
_CHOICE = re.compile(r"choice\s*\((?P<inner>.*)\)", re.DOTALL)
_SWEEP = re.compile(r"(?:choice|range|interval|tag|sort|shuffle|glob)\s*\(.*\)", re.DOTALL)
_ARGUMENT = re.compile(r"\s*[A-Za-z_]\w*\s*=")
_READABLE = re.compile(r"(?:[A-Za-z0-9_/\-+.$%*@?|: \t]|\\[\\()\[\]{}:=, \t]|\\(?=[A-Za-z0-9_/])|\$\{[^{}'\"]*\})*")
_BARE = re.compile(r"(?!(?:true|false|null|inf|nan)$)[A-Za-z_/][A-Za-z0-9_./-]*", re.IGNORECASE)
_CLOSES = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Word:
    """One word of a command line.

    Attributes:
        text: As it was typed.
        prefix: `+` adds a key, `++` adds or changes it, `~` removes it.
        key: Dotted key, or a group with or without `@<package>`.
        value: As typed; None where the word has no `=`.
    """

    text: str
    prefix: str
    key: str
    value: str | None

    @property
    def group(self) -> str:
        """What the key would be as a group of files."""
        return self.key.partition("@")[0]

    def choices(self) -> list[str]:
        """Return the values of a group, without quotes; empty where it is nothing, a list or a mapping."""
        value = (self.value or "").strip()
        if value in ("", "null") or value[0] in "[{" or _FUNCTION.fullmatch(value):
            return []
        return [_unquoted(part.strip()) for part in _split(value, ",")]

    def ready(self, sweep: bool = False) -> str:
        """Return the word as Hydra reads it.

        Args:
            sweep: Whether commas separate values, each of which is tried.

        Raises:
            ConfigError: Several values where one is meant, or brackets too deep.
        """
        if self.value is None:
            return f"{self.prefix}{self.key}"
        return f"{self.prefix}{self.key}={self._value(sweep)}"

    def _value(self, sweep: bool) -> str:
        value = self.value or ""
        name = holds_path(self.key)
        if sweep and (chosen := _CHOICE.fullmatch(value.strip())):
            value = chosen["inner"]  # what Hydra makes of the function is no longer quoted
        if name and not (sweep and _SWEEP.fullmatch(value.strip())):
            return ",".join(_name(part) for part in _split(value, ",", brackets=False)) if sweep else _name(value)
        parts = _split(value, ",")
        if len(parts) > 1 and not sweep:
            raise ConfigError(
                f"`{self.text}` holds several values. Write a list as {self.key}=[...], text with a comma in quotes as "
                f"{self.key}='...' (quoted once more for the shell); with -m each value is a run of its own."
            )
        return ",".join(_element(part, name) for part in parts)


def read_word(text: str) -> Word:
    """Take a word apart.

    Raises:
        ConfigError: It has no key, or no value where it needs one.
    """
    match = _WORD.fullmatch(text)
    if match is None or (match["value"] is None and match["prefix"] != "~"):
        raise ConfigError(f"Cannot read `{shown(text)}`. {EXAMPLE}")
    if not _KEY.fullmatch(match["key"]):
        raise ConfigError(
            f"Cannot read `{shown(text)}`: `{shown(match['key'])}` is no key. Expected letters, digits and _ with dots "
            "between, and nothing around the `=`."
        )
    return Word(text, match["prefix"], match["key"], match["value"])


def value_of(text: str) -> Any:
    """Return the plain value of a word, with references resolved.

    Raises:
        ConfigError: It cannot be read.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    word = read_word(text)
    try:
        value = OverridesParser.create().parse_overrides([word.ready()])[0].value()
        return OmegaConf.to_container(OmegaConf.create({"value": value}), resolve=True)["value"]  # type: ignore[index, call-overload]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"Cannot read the value of `{shown(text)}`. Expected text, a number, a list or a mapping.") from error


def written(key: str, value: Any) -> str:
    """Return the word that gives a key a plain value; `value_of` reads it back."""
    return f"{key}={written_value(value)}"


def written_value(value: Any) -> str:
    """Return a plain value as words have it."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written_value(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(written_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) else _in_quotes(value)
    return repr(value)


def shown(text: str, limit: int = 120) -> str:
    """Return a word for a message: on one line and not too long."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[:limit]} ..."


def _name(value: str) -> str:
    """Return the name of a file ready for Hydra: all of it is text, unless it is quoted, null or nothing."""
    stripped = value.strip()
    return stripped if stripped in ("", "null") or _QUOTED.fullmatch(stripped) else _in_quotes(value)


def _element(text: str, name: bool = False, depth: int = 0) -> str:
    """Return one value ready for Hydra: text that it cannot read is quoted, at every depth of lists and mappings."""
    text = text.strip(" \t")
    if depth > DEPTH:
        raise ConfigError(f"A value has more than {DEPTH} brackets inside each other. Expected a setting.")
    if _QUOTED.fullmatch(text):
        return text
    if text[:1] in ("[", "{") and _closes_at_end(text):
        inner = _split(text[1:-1], ",") if text[1:-1].strip() else []
        parts = [_element(part, name, depth + 1) if text[0] == "[" else _pair(part, depth + 1) for part in inner]
        return text[0] + ",".join(parts) + text[-1]
    if (function := _FUNCTION.fullmatch(text)) and _closes_at_end(text[len(function["name"]) :].lstrip()):
        return f"{function['name']}({','.join(_argument(part, name, depth + 1) for part in _split(function['inner'], ','))})"
    if name:
        return _name(text)
    return text if _READABLE.fullmatch(text) else _in_quotes(text)


def _pair(text: str, depth: int) -> str:
    key, colon, value = text.partition(":")
    return f"{key.strip()}:{_element(value, depth=depth)}" if colon else _in_quotes(text)


def _argument(text: str, name: bool, depth: int) -> str:
    given = _ARGUMENT.match(text)
    start = given.end() if given else 0
    return f"{text[:start].strip()}{_element(text[start:], name, depth)}"


def _split(text: str, separator: str, brackets: bool = True) -> list[str]:
    """Split a value at a separator that stands outside of quotes and brackets; brackets that never close are text."""
    parts, start, position = [], 0, 0
    fresh = True  # a quote opens only where a value begins: elsewhere it is an apostrophe
    while position < len(text):
        sign = text[position]
        quoted = _QUOTED.match(text, position) if fresh and sign in "'\"" else None
        if quoted and re.match(rf"\s*(?:[{separator}\])}}]|$)", text[quoted.end() :]):
            position = quoted.end()
            fresh = False
            continue
        if sign == "\\":
            position, fresh = position + 2, False
            continue
        if sign == separator:
            parts.append(text[start:position])
            start, fresh = position + 1, True
        elif brackets and sign in _CLOSES and (end := _closing(text, position)) is not None:
            position = end
            fresh = False
        elif not sign.isspace():
            fresh = sign in ":="
        position += 1
    return [*parts, text[start:]]


def _closing(text: str, start: int) -> int | None:
    """Return where the bracket at a place closes, or None."""
    stack: list[str] = []
    position, fresh = start, True
    while position < len(text):
        sign = text[position]
        quoted = _QUOTED.match(text, position) if fresh and sign in "'\"" else None
        if quoted and re.match(r"\s*[,\])}]", text[quoted.end() :]):
            position, fresh = quoted.end(), False
            continue
        if sign == "\\":
            position, fresh = position + 2, False
            continue
        if sign in _CLOSES:
            stack.append(_CLOSES[sign])
        elif sign in _CLOSES.values():
            if sign != stack.pop():
                return None
            if not stack:
                return position
        if not sign.isspace():
            fresh = sign in "[{(,:="
        position += 1
    return None


def _closes_at_end(text: str) -> bool:
    return _closing(text, 0) == len(text) - 1


def _unquoted(text: str) -> str:
    return re.sub(r"\\(['\"\\])", r"\1", text[1:-1]) if _QUOTED.fullmatch(text) else text


def _in_quotes(value: str) -> str:
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{escaped}'"
