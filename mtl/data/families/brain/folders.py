"""Folders of the two brain MRI data sets, as distributed: which files belong to which case. Opens no file.

BraTS: a folder per case, `BraTS20_Training_001/BraTS20_Training_001_{flair,t1,t1ce,t2,seg}.nii.gz` (or `.nii`; in 2023
`BraTS-GLI-00001-000-t2f.nii.gz`). Kaggle ("Brain MRI Images for Brain Tumor Detection"): pictures in `yes/` and `no/`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtl.core.errors import DataError
from mtl.core.files import list_files
from mtl.core.names import normal
from mtl.data.families.folders import find_files, find_root, folders_in, named_folders, unreadable_in
from mtl.data.formats.images import IMAGE_SUFFIXES
from mtl.data.formats.tables import some
from mtl.data.formats.volumes import is_volume

SETS = {"brats": "folders of cases `BraTS*` with NIfTI volumes", "kaggle": "pictures in `yes/` and `no/`"}
ANSWERS = {"no": False, "yes": True}  # folders of pictures
CASE_DEPTH, PICTURE_DEPTH = 3, 2  # folders between the root and a case, and between it and `yes/`
VISIT = re.compile(r"(BraTS-\w+-\d+)-\d{3}", re.IGNORECASE)  # since 2023 the same patient may come again


@dataclass(frozen=True)
class Case:
    """A folder of volumes of one examination.

    Attributes:
        name: Of the folder.
        patient: Of whom it is.
        modalities: File by modality.
        seg: File with the labels, if any.
    """

    name: str
    patient: str
    modalities: dict[str, Path]
    seg: Path | None


@dataclass(frozen=True)
class Picture:
    """A picture whose folder says whether there is a tumour."""

    sample_id: str
    path: Path
    tumor: bool


@dataclass
class Cases:
    """The cases below a folder: `problems` make the data unusable, `notes` are worth knowing."""

    labelled: list[Case] = field(default_factory=list)
    unlabelled: list[Case] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def find_folders(root: str | None, folders: dict[str, str | None], wanted: tuple[str, ...], whole: bool) -> dict[str, Path]:
    """Find the folder of each data set.

    Args:
        root: `data.root`, where every set is looked for; None takes `folders`.
        folders: By set, its folder; None takes `brain` and `brain_<set>` below `MTL_DATA_DIR`.
        wanted: Keys of `SETS`.
        whole: Every set must be there; otherwise one will do.

    Raises:
        DataError: They are not there.
    """
    base, found, places = os.environ.get("MTL_DATA_DIR"), {}, list[Path]()
    is_root = " and/or ".join(SETS[name] for name in wanted)
    for name in wanted:
        given = None if root else folders[name]
        if root:
            near = [find_root(root, "brain", is_root)]
        elif given is not None:
            near = [Path(given)]
        else:
            near = [Path(base) / inner for inner in ("brain", f"brain_{name}")] if base else []
        holds = {"brats": case_folders, "kaggle": picture_folder}[name]
        place = next((folder for folder in near if holds(folder)), None)
        if place is not None:
            found[name] = place
        elif given is not None:
            raise DataError(f"`data.folders.{name}` is `{given}`; expected a folder that holds {SETS[name]}. Correct it.")
        places += near
    if not found and not any(place.is_dir() for place in places):
        find_root(None, "brain", is_root)  # says what is wrong
    missing = [SETS[name] for name in wanted if name not in found]
    if missing and (whole or not found):
        where = " or ".join(f"`{place}`" for place in dict.fromkeys(places))
        raise DataError(
            f"{where or 'MTL_DATA_DIR'} holds no {' and no '.join(missing)}. Set data.root, or data.folders for each set; "
            "`mtl data synth brain` generates test data."
        )
    return found


def case_folders(root: Path) -> list[Path]:
    """List the folders of cases, which begin with `BraTS` and hold volumes, up to two levels below a folder, by name."""
    return sorted(_cases_below(root, CASE_DEPTH), key=lambda folder: (folder.name, str(folder)))


def picture_folder(root: Path) -> Path | None:
    """Find the folder that holds `yes/` or `no/`: this one, or the first up to two levels below."""
    level = [root]
    for _ in range(PICTURE_DEPTH + 1):
        for folder in level:
            if _answers(folder):
                return folder
        level = [inner for folder in level for inner in folders_in(folder)]
    return None


def list_cases(root: Path, endings: Mapping[str, Sequence[str]], of_labels: Sequence[str], modalities: Sequence[str]) -> Cases:
    """Find the cases and sort out those without labels or without any wanted modality.

    Args:
        root: The folder that holds them.
        endings: By modality, how the names of its files end.
        of_labels: How the names of files with labels end.
        modalities: The wanted ones.
    """
    found, seen = Cases(problems=unreadable_in(root)), dict[str, Path]()
    if others := _left_out_below(root):
        found.notes.append(f"{root}: {some([path.name for path in others])} left out; expected volumes in folders BraTS*.")
    for folder in case_folders(root):
        if (other := seen.setdefault(normal(folder.name), folder)) != folder:
            found.problems.append(f"{folder}: there is another case of this name, {other}. Remove one of them.")
            continue
        case, notes = read_case(folder, endings, of_labels)
        found.problems += unreadable_in(folder)
        found.notes += notes
        lacking = [name for name in modalities if name not in case.modalities]
        if case.seg is None:
            found.unlabelled.append(case)
        elif len(lacking) == len(modalities):
            found.problems.append(f"{folder}: has no {' and no '.join(lacking)}. Add it, or choose other data.modalities.")
        else:
            found.labelled.append(case)
            if lacking:
                found.notes.append(f"{folder}: has no {' and no '.join(lacking)}; the channel is blank.")
    if found.unlabelled:
        names = ", ".join(case.name for case in found.unlabelled[:3])
        found.notes.append(f"{len(found.unlabelled)} cases without labels are left out ({names}); `mtl predict` takes them.")
    return found


def read_case(folder: Path, endings: Mapping[str, Sequence[str]], of_labels: Sequence[str]) -> tuple[Case, list[str]]:
    """Return the files of a case, recognised by their names, and what is worth knowing about them.

    Args:
        folder: Of the case.
        endings: By modality, how the names of its files end.
        of_labels: How the names of files with labels end.
    """
    modalities: dict[str, Path] = {}
    notes, seg, others = [], None, []
    for path in (entry for entry in list_files(folder, below=False).files if is_volume(entry)):
        ending = re.split(r"[_\-.\s]", re.sub(r"\.nii(\.gz)?$", "", path.name.lower()))[-1]
        name = next((name for name, known in endings.items() if ending in known), None)
        if ending in of_labels and seg is None:
            seg = path
        elif name is None and ending not in of_labels:
            others.append(path)
        elif name is not None and name not in modalities:
            modalities[name] = path
        else:
            notes.append(f"{path}: left out, since another file of this case ends in `{ending}`, too.")
    named_so = [path for path in others if "seg" in path.name.lower()]
    if seg is None and len(named_so) == 1:
        (seg,) = named_so
        notes.append(f"{seg}: does not end in `_seg`; taken as the labels, since no other file of the case is named so.")
    notes += [f"{path}: left out, since its name tells no modality." for path in others if path != seg]
    patient = VISIT.fullmatch(folder.name)
    return Case(folder.name, patient[1] if patient else folder.name, modalities, seg), notes


def read_pictures(folder: Path) -> tuple[list[Picture], list[str], list[str]]:
    """List the pictures in `yes/` and `no/`, and in folders in these, sorted by sample id.

    Returns:
        The pictures, what is wrong, and what is worth knowing.
    """
    pictures, problems, notes = [], unreadable_in(folder), list[str]()
    answers = _answers(folder)
    for answer, inner in sorted(answers.items()):
        found = find_files(inner, IMAGE_SUFFIXES)
        first: dict[str, Path] = {}
        for path in found.files:
            name = path.relative_to(inner).as_posix()
            pictures.append(Picture(f"kaggle/{answer}/{name}", path, ANSWERS[answer]))
            if (other := first.setdefault(normal(name), path)) != path:
                problems.append(f"{path}: has the same name as {other}. Rename or remove one of them.")
        if others := [path.name for path in (*found.others, *found.unread)]:
            notes.append(f"{inner}: {len(others)} files left out that are no images (first: {others[0]}).")
    if missing := sorted(ANSWERS.keys() - answers.keys()):
        notes.append(f"{folder}: there is no `{missing[0]}/`, so that all pictures are of one class.")
    return sorted(pictures, key=lambda picture: picture.sample_id), problems, notes


def _cases_below(folder: Path, depth: int) -> Iterator[Path]:
    for inner in folders_in(folder):
        if _is_named_case(inner) and _holds_volumes(inner):
            yield inner
        elif depth > 1:
            yield from _cases_below(inner, depth - 1)


def _left_out_below(root: Path, depth: int = CASE_DEPTH) -> list[Path]:
    """List the folders that are no cases but look like one: with volumes under another name, or so named and without any."""
    found = []
    for inner in folders_in(root):
        named, holds = _is_named_case(inner), _holds_volumes(inner)
        deeper = [] if (named and holds) or depth == 1 else _left_out_below(inner, depth - 1)
        if named != holds and not deeper and not (named and next(_cases_below(inner, max(1, depth - 1)), None)):
            found.append(inner)
        found += deeper
    return found


def _is_named_case(folder: Path) -> bool:
    return normal(folder.name).startswith("brats")


def _holds_volumes(folder: Path) -> bool:
    return any(is_volume(path) for path in list_files(folder, below=False).files)


def _answers(folder: Path) -> dict[str, Path]:
    return {name: inner for name, inner in named_folders(folder).items() if name in ANSWERS}
