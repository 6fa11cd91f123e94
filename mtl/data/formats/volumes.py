"""Volumes of MR scanners (NIfTI): read upright whatever their stored axes, and masks written back into the stored ones.

Upright is what a radiologist looks at: slices from inferior to superior, rows from anterior to posterior, columns from the
patient's right to left. Oblique volumes take the nearest of these orientations; nothing is resampled. Imports nibabel only when
used.
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


def is_volume(path: str | Path) -> bool:
    """Return whether a file name is that of a NIfTI volume."""
    return Path(path).name.lower().endswith(SUFFIXES)


@dataclass(frozen=True)
class Volume:
    """A volume in its file and upright.

    Attributes:
        path: The file.
        header: As nibabel has it.
        affine: [4, 4] of the stored axes: index to millimetres (right, anterior, superior).
        shape: (x, y, z) as stored, without further axes of length 1.
    """

    path: Path
    header: Any
    affine: np.ndarray
    shape: tuple[int, int, int]

    @cached_property
    def array(self) -> np.ndarray:
        """[slices, rows, columns] upright: the stored type, or float32 where values are scaled; decoded when first asked for.

        Raises:
            DataError: The file ends early.
        """
        import nibabel

        try:
            image: Any = nibabel.load(self.path)
            slope, inter = image.dataobj.slope, image.dataobj.inter
            stored = np.asanyarray(image.dataobj.get_unscaled() if (slope, inter) == (1, 0) else image.dataobj)
        except Exception as error:  # nibabel, gzip and zlib have an exception of their own each
            raise _unreadable(self.path, error) from error
        if stored.dtype.kind == "f":
            stored = np.nan_to_num(stored.astype(np.float32), copy=False, posinf=0.0, neginf=0.0)
        return self.upright(stored.reshape(self.shape))

    @property
    def size(self) -> tuple[int, int, int]:
        """(slices, rows, columns) of the upright array."""
        slices, rows, columns = (self.shape[axis] for axis in self._axes)
        return slices, rows, columns

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Millimetres between slices, rows and columns."""
        lengths = np.linalg.norm(self.affine[:3, :3], axis=0)
        slices, rows, columns = (float(lengths[axis]) for axis in self._axes)
        return slices, rows, columns

    def upright(self, stored: np.ndarray) -> np.ndarray:
        """Turn an array (x, y, z) with the stored axes upright."""
        return np.ascontiguousarray(np.flip(stored.transpose(self._axes), self._flipped))

    def stored(self, upright: np.ndarray) -> np.ndarray:
        """Turn an array [slices, rows, columns] back to the stored axes."""
        return np.flip(upright, self._flipped).transpose(np.argsort(self._axes))

    def matches(self, other: Volume) -> bool:
        """Return whether voxel by voxel this is the same place as another volume."""
        return self.shape == other.shape and bool(np.allclose(self.affine, other.affine, atol=SAME_PLACE))

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
        DataError: The file is missing, not a NIfTI file, has not three dimensions, voxels that are no plain numbers, or an
            affine without an inverse.
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
    dtype = image.get_data_dtype()
    if dtype.kind not in "biuf":
        what = "colours or other groups of numbers" if dtype.fields else "complex numbers" if dtype.kind == "c" else str(dtype)
        raise DataError(f"{path}: its voxels are {what}; expected one grey value each. Convert it to grey values.")
    affine = np.asarray(image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{path}: its affine has no inverse, so the voxels have no place or size. Correct the file's header.")
    x, y, z = shape
    return Volume(path, image.header, affine, (x, y, z))


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
