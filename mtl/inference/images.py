"""Finding images, slides and volumes for prediction. Imports no torch, so that a wrong `source` is answered at once."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from mtl.core.errors import ConfigError, DataError
from mtl.core.registry import DATA_FAMILIES
from mtl.data.formats.images import IMAGE_SUFFIXES
from mtl.data.formats.slides import MASK_ENDING, SLIDE_SUFFIXES, is_slide, is_tissue_mask
from mtl.data.formats.volumes import SUFFIXES, is_volume

RESULTS = "predictions.csv"  # tells a folder of results from a folder of images
LABELS = "labels"  # what a volume holds that is no image
EXPECTED = f"files with one of these suffixes: {', '.join(sorted([*IMAGE_SUFFIXES, *SUFFIXES, *SLIDE_SUFFIXES]))}"


def find_images(source: str | Path, leave_out: Path | None = None) -> list[Path]:
    """List the images, slides and volumes that `source` names: a file, a folder (searched recursively) or a glob.

    Sorted, each once. Hidden files and folders below a folder are skipped, and so are tissue masks (`<slide>_tissue.tif`).
    The volumes `<case>_<modality>.nii[.gz]` of one case are one entry: their folder, or `<folder>/<case>` where a folder holds
    several cases (`case_files` knows the files). Other volumes beside them, such as the mask `<case>_seg.nii.gz`, are left out.

    Args:
        source: What to look for.
        leave_out: Folder of the results; pictures of an earlier prediction in it are no input.

    Raises:
        DataError: Nothing found, or a single file whose name is that of a mask.
        ConfigError: The results would lie among the images.
    """
    found = _find(source)
    if leave_out is None or Path(source).is_file():
        return found
    results = leave_out.resolve()
    if any(_folder(path) == results for path in found) and not (results / RESULTS).exists():
        raise ConfigError(
            f"`output={leave_out}` is where the images of `source={source}` lie; results there would be taken for images the "
            "next time. Choose another output."
        )
    kept = [path for path in found if results not in (_folder(path), *_folder(path).parents)]
    if not kept:
        raise DataError(
            f"`source={source}` names only pictures in the folder of the results, `{leave_out}`. Choose another one."
        )
    return kept


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
    """Return the files of an entry that is made of volumes, by modality; "" where the name of a single file tells none."""
    if path.is_file():
        return {split_name(path)[1]: path}
    folder, case = (path, None) if path.is_dir() else (path.parent, path.name)
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        name, modality = split_name(file)
        if is_volume(file) and modality not in ("", LABELS) and case in (None, name):
            found.setdefault(modality, file)
    return found


def split_name(path: Path) -> tuple[str, str]:
    """Split `<case>_<modality>.nii[.gz]` into case and modality (or `LABELS`); of other names the second is empty."""
    name = stem(path)
    found = re.fullmatch(r"(.+)[_\-.\s](\w+?)", name)
    modality = endings().get(found[2].lower()) if found else None
    return (found[1], modality) if found and modality else (name, "")


def stem(path: Path) -> str:
    """Return the name without the suffix of an image, a slide or a volume; other names, as of folders, stay whole."""
    suffixes = sorted((*IMAGE_SUFFIXES, *SUFFIXES, *SLIDE_SUFFIXES), key=len, reverse=True)
    ending = next((suffix for suffix in suffixes if path.name.lower().endswith(suffix)), "")
    return path.name[: len(path.name) - len(ending)] or path.name


def _folder(path: Path) -> Path:
    return (path if path.is_dir() else path.parent).resolve()


def _find(source: str | Path) -> list[Path]:
    text, path = str(source), Path(source)
    if path.is_file():
        ending = re.split(r"[_\-.\s]", stem(path).lower())[-1]
        if is_volume(path) and endings().get(ending) == LABELS:
            raise DataError(
                f"`source={text}` is a mask: its name ends in `{ending}`; expected an MR volume. Choose one, or the case "
                "folder."
            )
        if is_tissue_mask(path):
            raise DataError(f"`source={text}` is a tissue mask: its name ends in `_tissue`; expected a slide. Choose one.")
        return [path]
    if path.is_dir():
        inside = (found for found in path.rglob("*") if not any(part.startswith(".") for part in found.relative_to(path).parts))
        images = _entries(inside)
        if not images:
            raise DataError(f"`source={text}` holds no image. Expected {EXPECTED}.")
        return images
    if glob.has_magic(text):
        matches = [Path(name) for name in glob.glob(text, recursive=True)]  # noqa: PTH207 (may be absolute)
        folders = (entry for match in matches if match.is_dir() for entry in match.iterdir() if is_volume(entry))
        images = _entries({*matches, *folders})
        if not images:
            raise DataError(f"`source={text}` matches no image. Expected {EXPECTED}.")
        return images
    raise DataError(
        f"`source={text}` does not exist. Expected an image, a volume, a folder or a quoted glob such as 'slides/*.jpg'."
    )


def _entries(paths: Iterable[Path]) -> list[Path]:
    """Keep images, slides and volumes, and join the volumes of a case."""
    found: list[Path] = []
    cases: dict[Path, set[str]] = defaultdict(set)
    others: list[Path] = []
    for path in paths:
        if not path.is_file():
            continue
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
