"""Synthetic brain MRI in the native layouts of the `brain` family: `brats/` and `kaggle/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import ConfigError
from mtl.data.families.brain.painter import LABELS, SEQUENCES, Head, add_skull, generate_head, paint, tissue_of
from mtl.data.families.writing import new_folder

FIELD, HEIGHT = 240.0, 140.0  # millimetres: side of a slice, brain from bottom to top
TOP = 0.97  # z of the last slice, which shows hardly any brain
PICTURES = 3  # of the Kaggle kind per patient, copies not counted
COPIED = 5  # every so many pictures have a copy
KINDS = ((".jpg", "RGB"), (".JPG", "RGB"), (".jpeg", "L"), (".png", "L"), (".png", "RGBA"), (".PNG", "P"), (".jpg", "RGB"))
CASE, PICTURE = range(2)  # purposes of random streams


def generate_brain(output: Path, patients: int, fields: int, seed: int, width: int = 240, overwrite: bool = False) -> None:
    """Generate volumes of patients with a tumour, and pictures of other heads with and without.

    Every volume has four sequences and the labels; its first and last slices show hardly any brain, and the tumour reaches
    neither. Half of the pictures show a tumour. All show the skull; sizes, suffixes and colour modes differ. Every fifth has a
    copy that was cut, scaled and compressed anew.

    Args:
        output: New folder; receives `brats/` and `kaggle/`.
        patients: Number of volumes; there are three times as many different pictures.
        fields: Slices per volume.
        seed: Of everything random.
        width: Of a slice in pixels; pictures are of about the same size.
        overwrite: Replace an earlier data set at `output`.
    """
    problems = [
        f"`{name}` is {value}; expected at least {least}."
        for name, value, least in (("patients", patients, 1), ("fields", fields, 3), ("width", width, 48), ("seed", seed, 0))
        if value < least
    ]
    if problems:
        raise ConfigError(problems)
    with new_folder(Path(output), overwrite) as folder:
        for number in range(1, patients + 1):
            name = f"BraTS20_Training_{number:03d}"
            (folder / "brats" / name).mkdir(parents=True)
            _generate_case(np.random.default_rng([seed, CASE, number]), folder / "brats" / name, fields, width)
        for answer in ("yes", "no"):
            (folder / "kaggle" / answer).mkdir(parents=True)
        for number in range(1, PICTURES * patients + 1):
            _generate_picture(np.random.default_rng([seed, PICTURE, number]), folder / "kaggle", number, width)


def _generate_case(rng: np.random.Generator, folder: Path, slices: int, width: int) -> None:
    head = generate_head(rng)
    x, y = _grid(head, (width, width))
    heights = np.linspace(-TOP, TOP, slices)
    tissues = [tissue_of(head, x, y, z, tumor=True) for z in heights]
    spacing = (FIELD / width, FIELD / width, HEIGHT * TOP / (slices - 1))
    for sequence in SEQUENCES:
        scale = rng.uniform(600, 3000)  # grey values have no unit
        planes = [paint(rng, head, tissue, x, y, sequence) for tissue in tissues]
        _write_volume(folder / f"{folder.name}_{sequence}.nii.gz", np.rint(np.stack(planes) * scale).astype(np.int16), spacing)
    _write_volume(folder / f"{folder.name}_seg.nii.gz", LABELS[np.stack(tissues)], spacing)


def _generate_picture(rng: np.random.Generator, folder: Path, number: int, width: int) -> None:
    """Generate a picture of a head of its own, and a copy of every fifth."""
    tumor = number % 2 == 1
    head = generate_head(rng)
    height = head.tumor[2] + rng.uniform(-0.1, 0.1)
    # The head fills the picture more than it does a slice of a volume.
    size = round(width * rng.uniform(0.9, 1.3)), round(width * rng.uniform(0.8, 1.1))
    x, y = (axis * 0.72 for axis in _grid(head, size))
    sequence = str(rng.choice(list(SEQUENCES)))
    picture = paint(rng, head, tissue_of(head, x, y, height, tumor), x, y, sequence)
    picture = add_skull(rng, picture, x, y, height)
    grey = np.clip(picture * rng.uniform(180, 240), 0, 255).astype(np.uint8)
    suffix, mode = KINDS[number % len(KINDS)]
    answer = "yes" if tumor else "no"
    name = "Y{}{}" if tumor else "{} no{}"
    _write_picture(folder / answer / name.format(number, suffix), grey, mode)
    if number % COPIED == 1:
        import cv2

        rows, columns = grey.shape
        cut = grey[rows // 50 :, : columns - columns // 40]
        small = cv2.resize(cut, None, fx=0.9, fy=0.9, interpolation=cv2.INTER_AREA)
        _write_picture(folder / answer / name.format(500 + number, ".jpg"), small, "L", quality=80)


def _grid(head: Head, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return x [1, W] and y [H, 1] of pixel centres in coordinates of the brain."""
    rows, columns = ((np.arange(length) + 0.5) / length * 2 - 1 for length in size)
    return columns[None] / head.axes[0], rows[:, None] / head.axes[1]


def _write_volume(path: Path, array: np.ndarray, spacing: tuple[float, float, float]) -> None:
    """Write [slices, rows, columns] as BraTS stores it: columns, rows, slices, counted to the left, back and top."""
    import nibabel

    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[1, 3] = spacing[1] * (array.shape[1] - 1)
    image: Any = nibabel.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), affine)
    nibabel.save(image, path)


def _write_picture(path: Path, grey: np.ndarray, mode: str, quality: int = 90) -> None:
    """Write grey values in a colour mode; a suffix in capitals says nothing about the format."""
    from PIL import Image

    picture = Image.fromarray(grey)
    if mode == "P":
        picture = picture.convert("P")
    elif mode != "L":
        picture = picture.convert(mode)
    is_jpeg = path.suffix.lower() in (".jpg", ".jpeg")
    picture.save(path, "JPEG" if is_jpeg else "PNG", **({"quality": quality} if is_jpeg else {}))
