"""Finding images, slides and volumes for prediction. Imports no torch, so that a wrong `source` is answered at once."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from mtl.core.errors import ConfigError, DataError
from mtl.core.files import list_files
from mtl.core.names import readable
from mtl.core.registry import DATA_FAMILIES
from mtl.data.formats.images import IMAGE_SUFFIXES
from mtl.data.formats.slides import MASK_ENDING, SLIDE_SUFFIXES, is_slide, is_tissue_mask
from mtl.data.formats.volumes import SUFFIXES, is_volume
from mtl.inference.result_names import EarlierResults, stem

LABELS = "labels"  # what a volume holds that is no image
ALL_SUFFIXES = (*IMAGE_SUFFIXES, *SUFFIXES, *SLIDE_SUFFIXES)
EXPECTED = f"files with one of these suffixes: {', '.join(sorted(ALL_SUFFIXES))}"
TEXTS = (".csv", ".json", ".log", ".md", ".tsv", ".txt", ".xml", ".yaml")  # no pictures, whatever is in them


class Inputs(list[Path]):
    """The images, slides and volumes that a `source` names, sorted, each once.

    Attributes:
        unread: A sentence for each entry that looks like an image and cannot be read: a pipe, a link that leads nowhere, ...
        notes: What was left out on purpose.
    """

    def __init__(self, paths: Iterable[Path] = ()) -> None:
        super().__init__(paths)
        self.unread: dict[Path, str] = {}
        self.notes: list[str] = []


def find_images(source: str | Path, leave_out: Path | None = None) -> Inputs:
    """List the images, slides and volumes that `source` names: a file, a folder (searched recursively) or a glob.

    Links are followed. Hidden files and folders below a folder are skipped, and so are tissue masks (`<slide>_tissue.tif`) and
    results of earlier predictions. The volumes `<case>_<modality>.nii[.gz]` of one case are one entry: their folder, or
    `<folder>/<case>` where a folder holds several cases (`case_files` knows the files). Other volumes beside them, such as the
    mask `<case>_seg.nii.gz`, are left out.

    Args:
        source: What to look for.
        leave_out: Folder of the results, which may not be that of the images.

    Raises:
        DataError: Nothing found, or a single file whose name is that of a mask or of a result.
        ConfigError: The results would lie among the images.
    """
    found = _find(source)
    if leave_out is None or Path(source).is_file():
        return found
    results = leave_out.resolve()
    if any(_folder(path) == results for path in found):
        raise ConfigError(
            f"`output={leave_out}` is where the images of `source={source}` lie; results there would be taken for images the "
            "next time. Choose another output."
        )
    return found


def form_of(path: Path, microns: bool) -> str:
    """Return the form in which a file is predicted: `volume`, `slide` or `image`.

    Args:
        path: As `find_images` names it.
        microns: The network counts in microns. Others know no slides: for them a tiled TIFF is an image like any other.
    """
    if is_case(path):
        return "volume"
    return "slide" if is_slide(path) and (microns or path.suffix.lower() in SLIDE_SUFFIXES) else "image"


def endings() -> dict[str, str]:
    """Return by ending of a volume's name its modality, or `LABELS`, as the data families declare them."""
    found: dict[str, str] = {}
    for entry in DATA_FAMILIES.entries().values():
        found |= {ending: name for name, known in entry.constants.get("volume_endings", {}).items() for ending in known}
        found |= dict.fromkeys(entry.constants.get("label_endings", ()), LABELS)
    return found


def is_case(path: Path) -> bool:
    """Return whether an entry of `find_images` is made of volumes."""
    return is_volume(path) or path.is_dir() or (path.suffix.lower() not in IMAGE_SUFFIXES and not path.is_file())


def case_files(path: Path) -> dict[str, Path]:
    """Return the files of an entry that is made of volumes, by modality; "" where the name of a single file tells none.

    Raises:
        DataError: Two files are of one modality.
    """
    if path.is_file():
        return {split_name(path)[1]: path}
    folder, case = (path, None) if path.is_dir() else (path.parent, path.name)
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        name, modality = split_name(file)
        if is_volume(file) and modality not in ("", LABELS) and case in (None, name):
            first = found.setdefault(modality, file)
            if first != file:
                raise DataError(f"{folder}: {first.name} and {file.name} are both {modality}. Keep one of them.")
    return found


def split_name(path: Path) -> tuple[str, str]:
    """Split `<case>_<modality>.nii[.gz]` into case and modality (or `LABELS`); of other names the second is empty."""
    name = stem(path)
    found = re.fullmatch(r"(.+)[_\-.\s](\w+?)", name)
    modality = endings().get(found[2].lower()) if found else None
    return (found[1], modality) if found and modality else (name, "")


def _folder(path: Path) -> Path:
    return (path if path.is_dir() else path.parent).resolve()


def _find(source: str | Path) -> Inputs:
    text, path = readable(source), Path(source)
    if path.is_file():
        return _single(path, text)
    if path.is_dir():
        listing = list_files(path)
        found = _inputs(listing.files)
        found.unread = {entry: _unread(entry) for entry in listing.unread if _could_be_input(entry)}
        found.notes += _foreign(listing.files)
        return _some(found, f"`source={text}` holds no image.")
    if os.path.lexists(path):
        raise DataError(f"{_unread(path)} Expected {EXPECTED}.")
    if glob.has_magic(text):
        matches = [Path(name) for name in glob.glob(str(source), recursive=True)]  # noqa: PTH207 (may be absolute)
        folders = [entry for match in matches if match.is_dir() for entry in match.iterdir() if is_volume(entry)]
        found = _inputs({*matches, *folders})
        named = [match for match in matches if match.name.lower().endswith(ALL_SUFFIXES) and not match.is_file()]
        found.unread = {match: _unread(match) for match in sorted(named) if match not in found}
        return _some(found, f"`source={text}` matches no image.")
    raise DataError(
        f"`source={text}` does not exist. Expected an image, a volume, a folder or a quoted glob such as 'slides/*.jpg'."
    )


def _foreign(files: Iterable[Path]) -> list[str]:
    """Return a note per folder that names files which may be pictures and are not predicted."""
    others: dict[Path, list[str]] = defaultdict(list)
    for path in files:
        if not path.name.lower().endswith((*ALL_SUFFIXES, *TEXTS)):
            others[path.parent].append(readable(path.name))
    return [
        f"{readable(folder)}: {len(names)} file{'s' if len(names) > 1 else ''} left out, of other suffixes (first: {names[0]})."
        for folder, names in sorted(others.items())
    ]


def _single(path: Path, text: str) -> Inputs:
    ending = re.split(r"[_\-.\s]", stem(path).lower())[-1]
    if is_volume(path) and endings().get(ending) == LABELS:
        raise DataError(
            f"`source={text}` is a mask: its name ends in `{ending}`; expected an MR volume. Choose one, or the case folder."
        )
    if is_tissue_mask(path):
        raise DataError(f"`source={text}` is a tissue mask: its name ends in `_tissue`; expected a slide. Choose one.")
    if path in EarlierResults():
        raise DataError(f"`source={text}` is a result of an earlier prediction; expected an image. Choose one, or copy it.")
    return Inputs([path])


def _some(found: Inputs, nothing: str) -> Inputs:
    """Return what was found, if there is anything."""
    if not found:
        reasons = [*[*found.unread.values()][:3], *found.notes[:3]]
        raise DataError(" ".join([nothing, f"Expected {EXPECTED}.", *reasons]))
    return found


def _inputs(paths: Iterable[Path]) -> Inputs:
    """Return the entries among some paths; what earlier predictions wrote is left out, with one sentence for each folder."""
    files = [path for path in paths if path.is_file() and path.name.lower().endswith(ALL_SUFFIXES)]
    earlier = EarlierResults()
    results = {path for path in files if path in earlier}
    found = Inputs(_entries(path for path in files if path not in results))
    found.notes += [
        f"{readable(folder)}: {count} file{'s' if count > 1 else ''} left out, the results of an earlier prediction."
        for folder, count in sorted(Counter(path.parent for path in results).items())
    ]
    return found


def _could_be_input(path: Path) -> bool:
    """Return whether something that cannot be read is named like an image, or may hold some."""
    named = path.name.lower().endswith(ALL_SUFFIXES)
    return named or path.is_dir() or (path.is_symlink() and not path.suffix)


def _unread(path: Path) -> str:
    """Return why an entry that is no readable file was skipped."""
    name = readable(path)
    if path.is_dir():
        if os.access(path, os.R_OK | os.X_OK):
            return f"{name}: is a folder, although it is named like an image. Give it as the source to look into it."
        return f"{name}: the folder cannot be opened. Allow reading it, or leave it out."
    if path.is_symlink() and not path.exists():
        return f"{name}: is a link that leads nowhere. Restore what it leads to, or remove it."
    return f"{name}: is no regular file but a pipe, a device or a socket. Copy what it gives into a file."


def _entries(files: Iterable[Path]) -> list[Path]:
    """Leave out tissue masks and label volumes, and join the volumes of a case."""
    found: list[Path] = []
    cases: dict[Path, set[str]] = defaultdict(set)
    others: list[Path] = []
    for path in files:
        if path.suffix.lower() in (*IMAGE_SUFFIXES, *SLIDE_SUFFIXES):
            found += [] if is_tissue_mask(path) else [path]
        elif is_volume(path):
            case, modality = split_name(path)
            if not modality:
                others.append(path)
            elif modality != LABELS:
                cases[path.parent].add(case)
    found = [path for path in found if not _belongs(path, found)]
    for folder, names in cases.items():
        found += [folder] if len(names) == 1 else [folder / name for name in names]
    found += [path for path in others if path.parent not in cases]
    return sorted(set(found))


def _belongs(path: Path, found: list[Path]) -> bool:
    """Return whether an image is the tissue mask of a slide in another folder."""
    slide = path.stem.removesuffix(MASK_ENDING)
    return slide != path.stem and any(other.stem == slide and is_slide(other) for other in found)
