"""How generators write: whole data sets that appear at once, with a mark, and never over anything without it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mtl.core.errors import DataError
from mtl.core.files import file_hash, partial_beside, remove_stale, write_json
from mtl.core.json_text import parse_json
from mtl.data.families.folders import LEFT_BY_SYSTEMS

MARK = ".generated.json"  # in a generated folder: hidden, so that readers leave it out


def write_image(path: Path, image: np.ndarray, quality: int = 92) -> None:
    """Write [H, W, 3] uint8 RGB in the format of the suffix; `quality` is for JPEG."""
    import cv2

    parameters = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    encoded, data = cv2.imencode(path.suffix, image[..., ::-1], parameters)
    if not encoded:
        raise DataError(f"{path}: the image could not be encoded.")
    path.write_bytes(data.tobytes())


@contextmanager
def new_folder(output: Path, overwrite: bool) -> Iterator[Path]:
    """Give a temporary folder beside `output` that takes its place, with a mark in it, once everything is written.

    The mark (`MARK`) lists what was generated. A folder is only ever replaced if all of its files stand in its mark and are as
    they were generated: the layout is that of real data sets, so that names tell nothing.

    Args:
        output: Where the data set will be.
        overwrite: Replace an earlier generated data set at `output`.

    Raises:
        DataError: `output` is not empty and may not be replaced.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        if not overwrite:
            raise DataError(f"`{output}` exists already. Choose another output, or replace it with overwrite=true.")
        _refuse_foreign(output)
    elif output.is_symlink() and not output.exists():
        raise DataError(f"`{output}` is a link that leads nowhere. Remove it, or choose another output.")
    place = output.resolve()  # what a link leads to is replaced, not the link
    replaced = place.with_name(f"{place.name}.old")
    for path in (place, replaced):
        remove_stale(path)
    partial, old = partial_beside(place), partial_beside(replaced)
    try:
        partial.mkdir(parents=True)
        yield partial
        write_json(partial / MARK, {"made by": "mtl data synth", "files": {n: file_hash(partial / n) for n in _names(partial)}})
        if place.exists():
            place.rename(old)
        partial.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_foreign(output: Path) -> None:
    """Refuse to replace a folder in which anything is that its mark does not list, or lists otherwise.

    Raises:
        DataError: There is such a file; the text names the first.
    """
    names = _names(output) if output.is_dir() else [output.name]
    if not names:
        return
    hint = "Nothing is replaced; choose another output, or remove it by hand."
    try:
        listed = parse_json((output / MARK).read_text(encoding="utf-8"))["files"]
        known = {str(name): str(content) for name, content in listed.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise DataError(
            f"`{output}` was not made by this command, since it has no `{MARK}` that says so: it holds `{names[0]}`. {hint}"
        ) from None
    try:
        foreign = [name for name in names if name != MARK and not _is_generated(output / name, known.get(name))]
    except OSError as error:
        raise DataError(f"`{error.filename}` cannot be read ({error.strerror}). {hint}") from error
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise DataError(f"`{output}` holds what was not made by this command: `{foreign[0]}`{more}, added or changed. {hint}")


def _is_generated(path: Path, content: str | None) -> bool:
    return content is not None and path.is_file() and not path.is_symlink() and file_hash(path) == content


def _names(folder: Path) -> list[str]:
    """List everything below a folder that is no folder, hidden files included, relative to it; links are not followed."""
    found = []
    for inner, folders, files in os.walk(folder):
        here = Path(inner).relative_to(folder)
        links = [name for name in folders if (Path(inner) / name).is_symlink()]
        found += [(here / name).as_posix() for name in (*files, *links) if name.casefold() not in LEFT_BY_SYSTEMS]
    return sorted(found)
