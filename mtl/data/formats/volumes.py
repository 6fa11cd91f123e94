"""Volumes of MR scanners (NIfTI): read upright whatever their stored axes, and masks written back into the stored ones.

Upright is what a radiologist looks at: slices from inferior to superior, rows from anterior to posterior, columns from the
patient's right to left. Oblique volumes take the nearest of these orientations; nothing is resampled. Axes need not be at right
angles (a tilted gantry): volumes are determinants, and distances know the angles. What a header leaves open or contradicts is
refused, and so are voxels that are no numbers. Imports nibabel only when used.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.errors import DataError
from mtl.core.files import write_bytes

SUFFIXES = (".nii", ".nii.gz")
UPRIGHT = ("L", "P", "S")  # directions in which columns, rows and slices are counted
SAME_PLACE = 1e-3  # mm or share: affines that differ by less are equal
MM = {"unknown": 1.0, "meter": 1e3, "mm": 1.0, "micron": 1e-3}  # NIfTI: a unit that is not given is the millimetre
PLAUSIBLE_MM = (0.005, 300.0)  # between neighbouring voxels
SAME_LENGTH = 0.01  # share by which the two affines of a header may differ in the size of voxels
SQUARE = 1e-3  # cosine below which an angle is right


def is_volume(path: str | Path) -> bool:
    """Return whether a file name is that of a NIfTI volume."""
    return Path(path).name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class Volume:
    """A volume in its file and upright.

    Attributes:
        path: The file.
        header: As nibabel has it.
        affine: [4, 4] of the stored axes: index to place (right, anterior, superior) in the unit of the header.
        shape: (x, y, z) as stored, without further axes of length 1.
        mm: Millimetres in that unit.
    """

    path: Path
    header: Any
    affine: np.ndarray
    shape: tuple[int, int, int]
    mm: float = 1.0

    @cached_property
    def array(self) -> np.ndarray:
        """[slices, rows, columns] upright: the stored type, or float32 where values are scaled; decoded when first asked for.

        Raises:
            DataError: The file ends early, or holds voxels that are no numbers.
        """
        import nibabel

        try:
            image: Any = nibabel.load(self.path)
            slope, inter = image.dataobj.slope, image.dataobj.inter
            stored = np.asanyarray(image.dataobj.get_unscaled() if (slope, inter) == (1, 0) else image.dataobj)
        except Exception as error:  # nibabel, gzip and zlib have an exception of their own each
            raise _unreadable(self.path, error) from error
        if stored.dtype.kind == "f":
            with np.errstate(over="ignore"):
                stored = stored.astype(np.float32)
            finite = np.isfinite(stored)
            if not finite.all():
                place = np.argwhere(~finite)[0][:3].tolist()
                raise DataError(
                    f"{self.path}: {stored.size - np.count_nonzero(finite)} of {stored.size} voxels are not numbers (NaN "
                    f"or infinite; the first at {place}); expected numbers. Correct the file, with 0 where there is nothing."
                )
        return self.upright(stored.reshape(self.shape))

    @property
    def may_lack_numbers(self) -> bool:
        """Whether the type of the voxels allows NaN and infinity."""
        return bool(self.header.get_data_dtype().kind == "f")

    @property
    def size(self) -> tuple[int, int, int]:
        """(slices, rows, columns) of the upright array."""
        slices, rows, columns = (self.shape[axis] for axis in self._axes)
        return slices, rows, columns

    @property
    def steps(self) -> np.ndarray:
        """[3, 3] vectors in millimetres to the next slice, row and column of the upright array."""
        signs = [-1.0 if place in self._flipped else 1.0 for place in range(3)]
        steps: np.ndarray = self.mm * self.affine[:3, self._axes].T * np.array(signs)[:, None]
        return steps

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns, along the axes."""
        slices, rows, columns = (float(length) for length in np.linalg.norm(self.steps, axis=1))
        return slices, rows, columns

    @property
    def skew(self) -> tuple[float, float, float] | None:
        """Cosines of the angles between (slices, rows), (slices, columns) and (rows, columns); None where all are right."""
        unit = self.steps / np.linalg.norm(self.steps, axis=1, keepdims=True)
        first, second, third = (float(unit[a] @ unit[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
        return (first, second, third) if max(abs(first), abs(second), abs(third)) > SQUARE else None

    @property
    def voxel_mm3(self) -> float:
        """Cubic millimetres of a voxel."""
        return float(abs(np.linalg.det(self.steps)))

    @property
    def notes(self) -> list[str]:
        """What is worth knowing about how the volume lies, a sentence each."""
        notes = []
        if self.skew is not None:
            degrees = 90 - np.degrees(np.arccos(np.abs(self.skew).max()))
            notes.append(f"{self.path}: its axes are {degrees:.1f} degrees off a right angle; volumes and distances know that.")
        if not int(self.header["sform_code"]) and not int(self.header["qform_code"]):
            notes.append(
                f"{self.path}: its header does not say how the volume lies; taken from right to left, back to front, upwards."
            )
        return notes

    def upright(self, stored: np.ndarray) -> np.ndarray:
        """Turn an array (x, y, z) with the stored axes upright."""
        return np.ascontiguousarray(np.flip(stored.transpose(self._axes), self._flipped))

    def stored(self, upright: np.ndarray) -> np.ndarray:
        """Turn an array [slices, rows, columns] back to the stored axes."""
        return np.flip(upright, self._flipped).transpose(np.argsort(self._axes))

    def matches(self, other: Volume) -> bool:
        """Return whether voxel by voxel this is the same place as another volume."""
        mine, others = self.mm * self.affine[:3], other.mm * other.affine[:3]
        return self.shape == other.shape and bool(np.allclose(mine, others, atol=SAME_PLACE))

    @cached_property
    def _turned(self) -> np.ndarray:
        """[3, 2]: for each stored axis the upright one (0 columns, 1 rows, 2 slices) and whether it counts as that does."""
        from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

        return ornt_transform(io_orientation(self.affine), axcodes2ornt(UPRIGHT)).astype(int)

    @property
    def _axes(self) -> tuple[int, ...]:
        """The stored axes of slices, rows and columns."""
        return tuple(int(axis) for axis in np.argsort(self._turned[:, 0])[::-1])

    @property
    def _flipped(self) -> tuple[int, ...]:
        """The axes of the upright array that count the other way."""
        return tuple(place for place, axis in enumerate(self._axes) if self._turned[axis, 1] < 0)


def read_volume(path: str | Path) -> Volume:
    """Open a NIfTI file; only its header is read until `array` is asked for.

    Raises:
        DataError: The file is missing, not a NIfTI file, has not three dimensions, voxels that are no plain numbers, or a
            header that does not say, or contradicts itself in, where and how large the voxels are.
    """
    import nibabel

    path = Path(path)
    try:
        image: Any = nibabel.load(path)
    except Exception as error:
        raise _unreadable(path, error) from error
    if not isinstance(image, nibabel.Nifti1Pair):
        raise DataError(f"{path}: is a {type(image).__name__}; expected a NIfTI file (.nii or .nii.gz). Convert it.")
    shape = tuple(int(length) for length in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise DataError(
            f"{path}: has {len(image.shape)} dimensions {tuple(image.shape)}; expected one volume of 3. Save each volume as a "
            "file of its own."
        )
    if 0 in shape:
        raise DataError(f"{path}: is empty: {' x '.join(map(str, shape))} voxels. Restore or remove it.")
    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        what = "colours or other groups of numbers" if dtype.fields else "complex numbers" if dtype.kind == "c" else str(dtype)
        raise DataError(f"{path}: its voxels are {what}; expected one grey value each. Convert it to grey values.")
    mm = _unit(path, image.header)
    affine = np.asarray(image.affine, np.float64)
    _check_affine(path, affine, mm)
    _check_agreement(path, image.header)
    x, y, z = shape
    return Volume(path, image.header, affine, (x, y, z), mm)


def _unit(path: Path, header: Any) -> float:
    """Return the millimetres in the unit of a header."""
    try:
        return MM[header.get_xyzt_units()[0]]
    except KeyError as error:
        raise DataError(
            f"{path}: its header gives lengths in a unit of code {int(header['xyzt_units']) & 7}; expected 1 (metre), 2 (mm) "
            "or 3 (micron). Correct it."
        ) from error


def _check_affine(path: Path, affine: np.ndarray, mm: float) -> None:
    axes = mm * affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    if not np.isfinite(affine).all() or not lengths.all() or abs(np.linalg.det(axes / lengths)) < 1e-6:
        raise DataError(f"{path}: its affine has no inverse, so the voxels have no place or size. Correct the file's header.")
    low, high = PLAUSIBLE_MM
    if lengths.min() < low or lengths.max() > high:
        raise DataError(
            f"{path}: neighbouring voxels are {' x '.join(f'{length:g}' for length in lengths)} mm apart; expected {low:g} to "
            f"{high:g}. Correct the affine or the unit (xyzt_units) of its header."
        )


def _check_agreement(path: Path, header: Any) -> None:
    """Refuse a header whose two affines give voxels another size or turn the volume otherwise: nobody knows which is right."""
    from nibabel.orientations import io_orientation

    try:
        (qform, scanner), (sform, aligned) = header.get_qform(coded=True), header.get_sform(coded=True)
    except Exception as error:  # a quaternion that is none
        raise _unreadable(path, error) from error
    if not (scanner and aligned) or np.allclose(qform, sform, atol=SAME_PLACE):
        return
    lengths = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (qform, sform)]
    sizes = [float(abs(np.linalg.det(affine[:3, :3]))) for affine in (qform, sform)]
    same = np.allclose(lengths[0], lengths[1], rtol=SAME_LENGTH, atol=0) and abs(sizes[0] / sizes[1] - 1) <= SAME_LENGTH
    if not same or not np.array_equal(io_orientation(qform), io_orientation(sform)):
        found = [f"{' x '.join(f'{length:.4g}' for length in of)}, {size:.4g}" for of, size in zip(lengths, sizes, strict=True)]
        raise DataError(
            f"{path}: the two affines of its header contradict each other: voxels of {found[0]} cubed (qform), of {found[1]} "
            "cubed (sform), or other directions. Remove the one that is wrong (code 0)."
        )


def write_mask(path: str | Path, array: np.ndarray, like: Volume) -> None:
    """Write a mask as a NIfTI file that lies on a volume voxel by voxel: its stored axes, its affine.

    Args:
        path: Ends in `.nii` or `.nii.gz`; appears whole or not at all.
        array: [slices, rows, columns] upright, whole numbers from 0 to 255.
        like: The volume that the mask belongs to.

    Raises:
        DataError: Another shape than the volume, or another suffix.
    """
    _write(Path(path), array, like, np.uint8)


def write_map(path: str | Path, array: np.ndarray, like: Volume) -> None:
    """Write a map of numbers as a NIfTI file of float32 that lies on a volume voxel by voxel, as `write_mask` does a mask."""
    _write(Path(path), array, like, np.float32)


def _write(path: Path, array: np.ndarray, like: Volume, dtype: type[np.generic]) -> None:
    import nibabel

    suffix = next((suffix for suffix in reversed(SUFFIXES) if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise DataError(f"{path}: expected a name that ends in {' or '.join(SUFFIXES)}.")
    if array.shape != like.size:
        raise DataError(
            f"{path}: the array is {array.shape}; expected {like.size}, the (slices, rows, columns) of {like.path.name}."
        )
    header = like.header.copy()
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header["cal_min"] = header["cal_max"] = 0  # the window of the grey values says nothing about this
    image = nibabel.Nifti1Image(np.ascontiguousarray(like.stored(array).astype(dtype)), like.affine, header)
    content = image.to_bytes()
    # As fast as nibabel packs; without a time in it, so that the same mask gives the same bytes.
    write_bytes(path, gzip.compress(content, 1, mtime=0) if suffix == SUFFIXES[1] else content)


def _unreadable(path: Path, error: Exception) -> DataError:
    if not path.exists():
        return DataError(f"{path}: there is no such volume.")
    reason = str(error).replace(str(path), path.name) or type(error).__name__
    return DataError(f"{path}: cannot be read as a NIfTI volume ({reason}). Replace the file.")
