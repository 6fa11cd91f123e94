"""Names of results: distinct, no longer than a file system takes, and known again by a later prediction."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from mtl.core.files import write_json
from mtl.core.json_text import parse_json
from mtl.core.names import normal
from mtl.data.formats.images import IMAGE_SUFFIXES
from mtl.data.formats.slides import SLIDE_SUFFIXES
from mtl.data.formats.volumes import SUFFIXES, is_volume

LONGEST = 255  # bytes of a file name
DIGEST = 8  # hexadecimal digits that stand for a name
TABLE, FIRST_COLUMNS = "predictions.csv", ["image", "width", "height"]
MARK = ".mtl-predictions"  # which files of a folder are results
MASK, POINTS, SCORE, OVERVIEW = "tissue.tif", "detected-lymphocytes.json", "til-score.json", "overview.png"
SLIDE_FILES = (MASK, POINTS, SCORE, OVERVIEW)


def stem(path: Path) -> str:
    """Return the name without the suffix of an image, a slide or a volume; other names, as of folders, stay whole."""
    suffixes = sorted((*IMAGE_SUFFIXES, *SUFFIXES, *SLIDE_SUFFIXES), key=len, reverse=True)
    ending = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)] or path.name


def output_names(paths: Iterable[Path], endings: Sequence[str] = (".json",)) -> dict[Path, str]:
    """Give each input a distinct beginning of the names of its results: its own name without suffix, where that is unique.

    Else its folders stand in front (as many as tell the inputs apart), and behind it the suffix, where that alone differs. What
    is too long is cut and ends in a digest of the whole name; so does what nothing else tells apart. Names are compared as
    `mtl.core.names.normal` does, since some file systems do not tell capitals apart.

    Args:
        paths: The inputs.
        endings: What may follow; no result of one input may be called like one of another.
    """
    files = list(dict.fromkeys(paths))
    room = LONGEST - max(len(ending.encode()) for ending in endings)
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        groups[normal(stem(path))].append(path)
    wanted = {path: name for group in groups.values() for path, name in _apart(group).items()}
    names = {path: _shortened(_writable(wanted[path]), room) for path in files}
    owners: dict[str, list[Path]] = defaultdict(list)
    for path, name in names.items():
        for ending in endings:
            owners[normal(name + ending)].append(path)
    for path in {path for several in owners.values() if len(several) > 1 for path in several}:
        names[path] = _shortened(_writable(wanted[path]), room, _digest(str(path)))
    return names


def _apart(group: list[Path]) -> dict[Path, str]:
    """Name inputs of one stem by their folders, and by their suffixes where they lie in one folder."""
    if len(group) == 1:
        return {group[0]: stem(group[0])}
    fronts = _fronts({path.parent for path in group})
    named = {path: fronts[path.parent] + stem(path) for path in group}
    counts = Counter(normal(name) for name in named.values())
    ending = {path: path.name[len(stem(path)) :].lstrip(".") for path in group}
    return {path: name if counts[normal(name)] == 1 else f"{name}_{ending[path]}" for path, name in named.items()}


def _fronts(folders: set[Path]) -> dict[Path, str]:
    """Return what stands in front of names from each folder: as many of its last parts as all folders need to differ."""
    if len(folders) == 1:
        return dict.fromkeys(folders, "")
    parts = {folder: [part for part in folder.parts if part not in (folder.anchor, ".", "..")] for folder in folders}
    for depth in range(1, max(map(len, parts.values()), default=1) + 1):
        fronts = {folder: "".join(f"{part}__" for part in names[-depth:]) for folder, names in parts.items()}
        if len({normal(front) for front in fronts.values()}) == len(folders):
            break
    return fronts


def _writable(name: str) -> str:
    return "".join(letter if letter.isprintable() else "_" for letter in name)


def _shortened(name: str, room: int, digest: str = "") -> str:
    """Return a name of at most `room` bytes; what is cut off, and what asks for it, gets a digest."""
    content = name.encode()
    if len(content) <= room and not digest:
        return name
    ending = f"~{digest or _digest(name)}"
    return content[: max(1, room - len(ending))].decode("utf-8", "ignore") + ending


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:DIGEST]


def mark_results(folder: Path, names: Iterable[str], endings: Iterable[str]) -> None:
    """Note in a folder which of its files are results, before the first of them is written.

    Args:
        folder: Of the results; what it was marked with before stays marked.
        names: From `output_names`.
        endings: What follows these names.
    """
    before = _marked(folder)
    names, endings = sorted({*before[0], *names}), sorted({*before[1], *endings})
    write_json(folder / MARK, {"about": "results of mtl predict, never taken for images", "names": names, "endings": endings})


class EarlierResults:
    """The files that earlier predictions wrote; each folder is looked at once."""

    def __init__(self) -> None:
        self._marks: dict[Path, tuple[set[str], set[str]]] = {}

    def __contains__(self, path: Path) -> bool:
        return self._in_table(path) or self._of_slide(path)

    def _in_table(self, path: Path) -> bool:
        names, endings = self._look(path.parent)
        return any(path.name.endswith(ending) and path.name[: len(path.name) - len(ending)] in names for ending in endings)

    def _of_slide(self, path: Path) -> bool:
        folder = path.parent
        if path.name not in SLIDE_FILES:
            return False
        return (folder / SCORE).is_file() or folder.name in self._look(folder.parent)[0]

    def _look(self, folder: Path) -> tuple[set[str], set[str]]:
        if folder not in self._marks:
            self._marks[folder] = _marked(folder)
        return self._marks[folder]


def _marked(folder: Path) -> tuple[set[str], set[str]]:
    """Return the names and endings of the results in a folder; those of a release that left no mark by its table."""
    try:
        content = parse_json((folder / MARK).read_text(encoding="utf-8"))
        return set(content["names"]), set(content["endings"])
    except (OSError, ValueError, KeyError, TypeError):
        return _of_table(folder)


def _of_table(folder: Path) -> tuple[set[str], set[str]]:
    try:
        with (folder / TABLE).open(newline="", encoding="utf-8") as file:
            if next(csv.reader(file), [])[: len(FIRST_COLUMNS)] != FIRST_COLUMNS:
                return set(), set()
        names = {path.stem for path in folder.glob("*.json")}
        files = [path.name for path in folder.iterdir() if path.suffix.lower() == ".png" or is_volume(path)]
    except (OSError, ValueError, csv.Error):
        return set(), set()
    endings = {file[len(name) :] for name in names for file in files if file.startswith(f"{name}_")}
    return names, endings
