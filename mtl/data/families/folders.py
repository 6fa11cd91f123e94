"""Where a data set lies, which files are in its folders, and how what is wrong with them is told."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtl.core.causes import SHOWN, listed_errors
from mtl.core.errors import DataError
from mtl.core.files import list_files
from mtl.core.names import normal
from mtl.core.types import Record
from mtl.data.formats.tables import some

LEFT_BY_SYSTEMS = frozenset({".ds_store", "thumbs.db", "desktop.ini"})  # of file managers, in lower case: nobody's work


@dataclass(frozen=True)
class Found:
    """Files of a folder.

    Attributes:
        files: Those with one of the wanted suffixes, sorted.
        others: Files with other suffixes, sorted.
        unread: What cannot be read at all, sorted: see `mtl.core.files.Listing`.
    """

    files: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)

    def note(self, where: Path, suffixes: Iterable[str]) -> list[str]:
        """Return a note that names what was left out, if anything was."""
        left = [path.name for path in (*self.others, *self.unread)]
        expected = ", ".join(sorted(suffixes))
        return [f"{where}: {some(left)} left out; expected files that end in {expected}."] if left else []


def find_files(folder: Path, suffixes: Iterable[str], below: bool = True) -> Found:
    """Sort the files of a folder by whether they have one of some suffixes (in lower case); links are followed.

    Args:
        folder: It need not exist.
        suffixes: With their dots.
        below: Look into folders too.
    """
    if not folder.is_dir():
        return Found()
    wanted, listing = frozenset(suffixes), list_files(folder, below)
    fits = {path: path.suffix.casefold() in wanted for path in listing.files}
    others = [path for path, fit in fits.items() if not fit and path.name.casefold() not in LEFT_BY_SYSTEMS]
    return Found([path for path, fit in fits.items() if fit], others, listing.unread)


def folders_in(parent: Path) -> list[Path]:
    """List the folders in a folder, sorted, links to folders included; none where nobody may list them.

    Hidden ones are left out, and what archives of a Mac unpack beside the files.
    """
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX")))
    except OSError:
        return []


def named_folders(parent: Path, problems: list[str] | None = None) -> dict[str, Path]:
    """Return the folders in a folder by their names in normal form.

    Args:
        parent: The folder.
        problems: Receives that there are two of one name, of which the first counts.
    """
    found: dict[str, Path] = {}
    for path in folders_in(parent):
        first = found.setdefault(normal(path.name), path)
        if first != path and problems is not None:
            problems.append(f"{path}: has the same name as {first.name}. Rename or remove one of these folders.")
    return found


def by_name(files: Iterable[Path], problems: list[str]) -> dict[str, Path]:
    """Return files by their names, without suffix and in normal form.

    Args:
        files: Two of one name are a problem; the first counts.
        problems: Receives it.
    """
    found: dict[str, Path] = {}
    for path in files:
        first = found.setdefault(normal(path.stem), path)
        if first != path:
            other = first.name if first.parent == path.parent else first
            problems.append(f"{path}: has the same name as {other}. Rename or remove one of them.")
    return found


def unreadable(paths: Iterable[Path]) -> list[str]:
    """Return a sentence per entry of a folder that cannot be read."""
    reason = "is a link that leads nowhere, a pipe or device, or a folder that nobody may open"
    return [f"{path}: cannot be read: it {reason}. Restore or remove it." for path in paths]


def unreadable_in(folder: Path) -> list[str]:
    """Return a sentence per entry right in a folder that cannot be read."""
    return unreadable(list_files(folder, below=False).unread)


def find_root(root: str | None, family: str, is_root: str, candidates: tuple[str, ...] = ("",)) -> Path:
    """Find the folder of a data set: the configured one, or the first candidate below `MTL_DATA_DIR/<family>`.

    Args:
        root: `data.root` from the configuration.
        family: Folder name below `MTL_DATA_DIR`.
        is_root: Plain words for what the folder must hold, for the error message.
        candidates: Sub-folders tried in order.

    Raises:
        DataError: No such folder; the message says how to set one or how to generate data.
    """
    hint = (
        f"Set data.root=<folder> (it holds {is_root}), set MTL_DATA_DIR, or generate test data with `mtl data synth {family}`."
    )
    if root:
        if not Path(root).is_dir():
            raise DataError(f"Data folder `{root}` {'is a file' if Path(root).exists() else 'does not exist'}. {hint}")
        return Path(root)
    base = os.environ.get("MTL_DATA_DIR")
    if not base:
        raise DataError(
            f"No data folder for `{family}`: data.root is not set and MTL_DATA_DIR is not in the environment. {hint}"
        )
    for candidate in candidates:
        folder = Path(base) / family / candidate
        if folder.is_dir():
            return folder
    raise DataError(f"No `{family}` data below MTL_DATA_DIR (`{base}`). {hint}")


def find_sets_root(
    root: str | None, family: str, sets: dict[str, str], chosen: list[str] | None, find_sets: Callable[[Path], Any],
    candidates: tuple[str, ...] = ("",),
) -> Path:  # fmt: skip
    """Find the folder of a data set that comes in several parts.

    Args:
        root: `data.root` from the configuration.
        family: Folder name below `MTL_DATA_DIR`.
        sets: Folder of each part by its name in `data.sets`.
        chosen: `data.sets`; None takes the parts that are there.
        find_sets: Names of the parts that a folder holds.
        candidates: As in `find_root`.

    Raises:
        DataError: A chosen part is missing, or all are.
    """
    wanted = list(chosen or sets)
    found = find_root(root, family, " and/or ".join(f"`{sets[name]}/`" for name in wanted), candidates)
    present = find_sets(found)
    missing = [name for name in wanted if name not in present]
    if missing and (chosen or not present):
        hint = suggest_root(found, lambda path: any(name in find_sets(path) for name in wanted))
        raise DataError(f"`{found}` holds no {' and no '.join(f'`{sets[name]}/`' for name in missing)}. {hint}")
    return found


def suggest_root(root: Path, fits: Callable[[Path], bool], levels: int = 3) -> str:
    """Return what to do where `data.root` is not the folder of the data set: a sub-folder of it, or a folder above, may be.

    Args:
        root: What was given.
        fits: Returns whether a folder looks like the data set.
        levels: How many folders above are looked at.
    """
    below = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    around = [*below, *root.resolve().parents[:levels]]
    near = next((path for path in around if fits(path)), None)
    return f"Did you mean data.root={near}?" if near else "Set data.root to the folder that holds them."


def check_usable(family: str, folder: Path, problems: list[str], records: list[Record], expected: str) -> None:
    """Refuse a data set whose files are wrong, or in which there is nothing.

    Args:
        family: Name of the data family.
        folder: Where it looked.
        problems: One sentence each, with its file.
        records: What was found.
        expected: What is missing where nothing was found, and how it should look: a sentence or two.

    Raises:
        DataError: There are problems, or no records.
    """
    if problems:
        hint = f"Correct or restore these files; `mtl data check {family}` lists all."
        raise listed_errors(f"below `{folder}`", problems, hint)
    if not records:
        raise DataError(f"Nothing to use below `{folder}`. {expected}")


def notes_on_copies(found: Mapping[str, list[list[Record]]]) -> list[str]:
    """Return a note on each sort of groups of samples, with the first few as examples; none where nothing was found.

    Args:
        found: By what is true of each group, the groups.
    """
    notes = []
    for what, groups in found.items():
        examples = "; ".join(" = ".join(record.sample_id for record in records[:SHOWN]) for records in groups[:SHOWN])
        notes += [f"{what}: {len(groups)} ({examples}{'; ...' if len(groups) > SHOWN else ''})."] if groups else []
    return notes
