"""How generators write: whole data sets that appear at once, and never over something else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mtl.core.errors import DataError
from mtl.core.files import partial_beside, remove_stale


def write_image(path: Path, image: np.ndarray, quality: int = 92) -> None:
    """Write [H, W, 3] uint8 RGB in the format of the suffix; `quality` is for JPEG."""
    import cv2

    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    encoded, data = cv2.imencode(path.suffix, image[..., ::-1], parameters)
    if not encoded:
        raise DataError(f"{path}: the image could not be encoded.")
    path.write_bytes(data.tobytes())


@contextmanager
def new_folder(output: Path, contents: tuple[str, ...], overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `output` that takes its place once everything is written.

    Args:
        output: Where the data set will be.
        contents: Names that a data set of this kind holds; a folder with anything else is never replaced.
        overwrite: Replace an earlier data set at `output`.

    Raises:
        DataError: `output` is not empty and may not be replaced.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise DataError(f"`{output}` exists already. Choose another output, or replace it with overwrite=true.")
        foreign = (
            [output.name] if not output.is_dir() else [path.name for path in output.iterdir() if path.name not in contents]
        )
        if foreign:
            raise DataError(
                f"`{output}` was not made by this command: it holds `{foreign[0]}`. Nothing is replaced; choose another output."
            )
    remove_stale(output)
    partial = partial_beside(output)
    try:
        partial.mkdir(parents=True)
        yield partial
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
