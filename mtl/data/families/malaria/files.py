"""Folders of NIH-NLM-ThinBloodSmearsPf: which annotation belongs to which image. Opens no file."""

from __future__ import annotations

from pathlib import Path

from mtl.core.names import normal
from mtl.data.families.folders import by_name, find_files, named_folders, unreadable, unreadable_in
from mtl.data.formats.images import IMAGE_SUFFIXES
from mtl.data.formats.tables import some

SETS = ("Point Set", "Polygon Set")
IMAGES, ANNOTATIONS = "img", "gt"  # folders of a patient, in normal form
ANNOTATION_SUFFIXES = frozenset({".txt"})


def pair_files(patient: Path, problems: list[str], notes: list[str]) -> tuple[list[tuple[Path, Path]], int]:
    """Pair the images of a patient with their annotations; return the pairs, and how many files are or should be annotations.

    Args:
        patient: Folder with `Img/` and `GT/`.
        problems: Receives annotations without image, and what may be an annotation but cannot be read.
        notes: Receives what else is left out.
    """
    folders = named_folders(patient, problems)
    nowhere = patient / "none"
    pictures = find_files(folders.get(IMAGES, nowhere), IMAGE_SUFFIXES)
    truths = find_files(folders.get(ANNOTATIONS, nowhere), ANNOTATION_SUFFIXES)
    images, annotations = by_name(pictures.files, problems), by_name(truths.files, problems)
    if not images and not annotations:
        notes.append(f"{patient}: holds neither images in `Img/` nor annotations in `GT/`.")
    problems += [*unreadable_in(patient), *unreadable(truths.unread)]
    notes += pictures.note(patient / "Img", IMAGE_SUFFIXES)
    misnamed = [path for path in truths.others if normal(path.stem) in images and normal(path.stem) not in annotations]
    problems += [f"{path}: is not read; expected an annotation that ends in .txt. Convert or remove it." for path in misnamed]
    if idle := [path.name for path in truths.others if path not in misnamed]:
        notes.append(f"{patient / 'GT'}: {some(idle)} left out; expected files that end in .txt.")
    problems += [
        f"{path}: there is no image of this name in `{patient / 'Img'}`."
        for stem, path in annotations.items()
        if stem not in images
    ]
    bare = [path for stem, path in images.items() if stem not in annotations]
    if len(bare) == 1:
        notes.append(f"{bare[0]}: has no annotation and is left out.")
    elif bare:
        notes.append(f"{patient / 'Img'}: {some([path.name for path in bare])} have no annotation and are left out.")
    pairs = [(path, annotations[stem]) for stem, path in images.items() if stem in annotations]
    return pairs, len(truths.files) + len(truths.unread) + len(misnamed)
