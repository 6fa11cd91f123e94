"""Finding image files for prediction. Imports no torch, so that a wrong `source` is answered at once."""

from __future__ import annotations

import glob
from pathlib import Path

from mtl.core.errors import ConfigError, DataError
from mtl.data.base import IMAGE_SUFFIXES

RESULTS = "predictions.csv"  # tells a folder of results from a folder of images


def find_images(source: str | Path, leave_out: Path | None = None) -> list[Path]:
    """List the images that `source` names: a file, a folder (searched recursively) or a glob; sorted, each once.

    Hidden files and folders below a folder are skipped.

    Args:
        source: What to look for.
        leave_out: Folder of the results; pictures of an earlier prediction in it are no input.

    Raises:
        DataError: Nothing found.
        ConfigError: The results would lie among the images.
    """
    found = _find(source)
    if leave_out is None or Path(source).is_file():
        return found
    results = leave_out.resolve()
    if any(path.resolve().parent == results for path in found) and not (results / RESULTS).exists():
        raise ConfigError(
            f"`output={leave_out}` is where the images of `source={source}` lie; results there would be taken for images the "
            "next time. Choose another output."
        )
    kept = [path for path in found if results not in path.resolve().parents]
    if not kept:
        raise DataError(
            f"`source={source}` names only pictures in the folder of the results, `{leave_out}`. Choose another one."
        )
    return kept


def _find(source: str | Path) -> list[Path]:
    text, path = str(source), Path(source)
    suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
    if path.is_file():
        return [path]
    if path.is_dir():
        inside = (found for found in path.rglob("*") if not any(part.startswith(".") for part in found.relative_to(path).parts))
        images = sorted(found for found in inside if found.suffix.lower() in IMAGE_SUFFIXES and found.is_file())
        if not images:
            raise DataError(f"`source={text}` holds no image. Expected files with one of these suffixes: {suffixes}.")
        return images
    if glob.has_magic(text):
        matches = (Path(name) for name in glob.glob(text, recursive=True))  # noqa: PTH207 (may be absolute)
        images = sorted({found for found in matches if found.suffix.lower() in IMAGE_SUFFIXES and found.is_file()})
        if not images:
            raise DataError(f"`source={text}` matches no image. Expected files with one of these suffixes: {suffixes}.")
        return images
    raise DataError(f"`source={text}` does not exist. Expected an image, a folder or a quoted glob such as 'slides/*.jpg'.")
