"""Many sentences about files with one cause become one: what is wrong, how often, and where first."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from mtl.core.errors import DataError

SHOWN = 5  # causes in a message; `mtl data check` lists all
# A sentence begins with what it is about: a path, perhaps with a line, then perhaps an entry of the file.
PLACE = re.compile(r"(?P<file>[^\s`:][^`:]*?[/\\.][^`:]*?)(?::\d+)?: (?:(?:`[^`]*`|[a-z]+ \S+|[a-z]+\[\d+\]): )*")
FILE = r"[^\s`(]+\.[A-Za-z]{2,4}\b"
NUMBER = r"\d+(?:\.\d+)?"


def by_cause(sentences: Iterable[str], numbers: bool = True) -> list[str]:
    """Join sentences that say the same of several files or entries, in the order in which each cause is first met.

    Sentences are of one cause if they differ in the place before the colon, in names of files and in numbers only. One that
    names no place stands alone.

    Args:
        sentences: One each.
        numbers: Sentences with other numbers are of one cause too: right for errors, which are mended one by one; of what is
            only noted, the numbers are the news.
    """
    varying = re.compile(f"{FILE}|{NUMBER}" if numbers else FILE)
    groups: dict[str, list[str]] = {}
    for sentence in dict.fromkeys(sentences):
        _, place, cause = _parts(sentence)
        groups.setdefault(varying.sub("#", cause) if place else sentence, []).append(sentence)
    return [_joined(group) for group in groups.values()]


def listed_errors(where: str, problems: Sequence[str], hint: str) -> DataError:
    """Return what is wrong with the files of a data set: how many errors, the first few causes, and what to do.

    Args:
        where: Behind the number of errors: `below <folder>`.
        problems: One sentence each, with its file; at least one.
        hint: A sentence.
    """
    causes = by_cause(problems)
    shown = "\n".join(causes[:SHOWN])
    rest = f"and {len(causes) - SHOWN} more. " if len(causes) > SHOWN else ""
    return DataError(f"{len(problems)} error{'s' if len(problems) > 1 else ''} {where}:\n{shown}\n{rest}{hint}")


def _joined(sentences: list[str]) -> str:
    if len(sentences) == 1:
        return sentences[0]
    _, place, cause = _parts(sentences[0])
    files = {_parts(sentence)[0] for sentence in sentences}
    count = f"{len(files)} files" if len(files) == len(sentences) else f"{len(sentences)} times"
    return f"{count}, first {place.removesuffix(': ')}: {cause}"


def _parts(sentence: str) -> tuple[str, str, str]:
    """Return the file that a sentence is about, all that stands before its cause, and the cause."""
    match = PLACE.match(sentence)
    return (match["file"], match[0], sentence[match.end() :]) if match else ("", "", sentence)
