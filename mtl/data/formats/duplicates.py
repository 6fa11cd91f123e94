"""Which image files show the same photograph, although size, compression or name differ.

Every file becomes a small fingerprint: the green channel (the sharpest of tissue and fundus images) at 64 x 64 without its
coarse shading, normalised, so that the scalar product of two fingerprints is their correlation. On retinal photographs copies
reach 0.99 and other pairs stay below 0.86. Copies that were turned are not found, cropped ones only with a `box`, mirrored ones
when asked for. Imports PIL and OpenCV only when used.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mtl.core.causes import listed_errors
from mtl.core.errors import DataError
from mtl.core.files import file_hash
from mtl.core.memo import Memo
from mtl.data.formats.headers import open_image
from mtl.data.formats.images import deep_values

FORMAT = 2  # a higher one makes remembered clusters void: raise it with every change of what counts as a copy
SIDE = 64  # of a fingerprint
SHADING = 4.0  # sigma in pixels of a fingerprint: what is smoother than this does not count
DISC = 0.42  # radius of the part that counts, in sides
BLOCK = 512  # rows of the matrix of correlations that are in memory at once
FindBox = Callable[[np.ndarray], tuple[int, int, int, int]]


def near_duplicates(
    paths: Sequence[str | Path],
    threshold: float = 0.955,
    *,
    disc: bool = True,
    box: FindBox | None = None,
    mirrored: bool = False,
    workers: int = 4,
    memo: Memo | None = None,
) -> list[int]:
    """Cluster image files that show the same photograph.

    Args:
        paths: Image files. Files with equal bytes are decoded once and always share a cluster.
        threshold: Correlation of two fingerprints above which they are copies; clusters are what chains of copies connect.
        disc: Compare only a disc in the middle: the dark border around a fundus is alike in all pictures.
        box: Finds in a picture [h, w] uint8 the part (x_min, y_min, x_max, y_max) that is compared; None compares all of it. A
            plain function of a module: what it finds is remembered.
        mirrored: Compare each picture with the mirror images of the others, too.
        workers: Threads that decode.
        memo: Remembers the clusters as long as all files and settings stay as they are; None searches anew.

    Returns:
        Per path the number of its cluster, counted from 0 in the order of `paths`.

    Raises:
        DataError: A file is missing or no image.
    """
    files = [Path(path) for path in paths]
    search = partial(_search, files, threshold, disc, box, mirrored, workers)
    if memo is None or not files:
        return search()
    where = None if box is None else f"{box.__module__}.{box.__qualname__}"
    question = f"copies, search {FORMAT}, threshold {threshold}, disc {disc}, box {where}, mirrored {mirrored}"
    try:
        clusters = memo.answer(question, files, search, partial(_is_clustering, count=len(files)))
    except OSError as error:
        raise DataError(f"{error.filename}: there is no such image.") from error
    memo.write()
    return clusters


def _is_clustering(value: Any, count: int) -> bool:
    """Return whether a remembered value is what a search of `count` files returns."""
    return isinstance(value, list) and len(value) == count and all(type(number) is int for number in value)


def _search(files: list[Path], threshold: float, disc: bool, box: FindBox | None, mirrored: bool, workers: int) -> list[int]:
    """Decode and compare the files; arguments as in `near_duplicates`."""
    first = _first_of_equal(files)
    unique = sorted(set(first))
    prints = _fingerprints([files[index] for index in unique], disc, box, workers)
    found = _alike(prints, prints, threshold)
    if mirrored:
        found += _alike(prints, [_mirror(values, disc) for values in prints], threshold)
    pairs = [(unique[a], unique[b]) for a, b in found]
    return connected(len(files), [*pairs, *enumerate(first)])


def _fingerprints(files: list[Path], disc: bool, box: FindBox | None, workers: int) -> list[np.ndarray]:
    """Decode the files in threads; all that cannot be decoded are named at once."""

    def look(path: Path) -> np.ndarray | DataError:
        try:
            return fingerprint(path, disc=disc, box=box)
        except DataError as error:
            return error

    with ThreadPoolExecutor(max(1, workers)) as pool:
        found = list(pool.map(look, files))
    broken = [entry for entry in found if isinstance(entry, DataError)]
    if len(broken) == 1:
        raise broken[0]
    if broken:
        raise listed_errors("in the images", [str(error) for error in broken], "Restore these files, or remove them.")
    return [entry for entry in found if not isinstance(entry, DataError)]


def fingerprint(path: Path, disc: bool = True, box: FindBox | None = None) -> np.ndarray:
    """Return [n] float32 with mean 0 and length 1 (all zeros for a picture without structure); n is 64 * 64, less with `disc`.

    Remembered per process as long as the file does not change.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise DataError(f"{path}: there is no such image.") from error
    return _fingerprint(Path(path), status.st_size, status.st_mtime_ns, disc, box)


def connected(count: int, pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Number the connected parts of a graph.

    Args:
        count: Number of nodes.
        pairs: Nodes that belong together.

    Returns:
        Per node the number of its part, counted from 0 in the order of the nodes.
    """
    parent = list(range(count))

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    numbers: dict[int, int] = {}
    return [numbers.setdefault(root(node), len(numbers)) for node in range(count)]


@lru_cache(maxsize=4096)
def _fingerprint(path: Path, size: int, modified: int, disc: bool, box: FindBox | None) -> np.ndarray:
    import cv2
    from PIL import Image

    with open_image(path) as (image, header):
        image.draft("RGB", (4 * SIDE, 4 * SIDE))  # lets JPEG decode at 1/2, 1/4 or 1/8
        plane = Image.fromarray(_spread(deep_values(image, header))) if header.is_deep else image.convert("RGB").getchannel(1)
        plane = plane if box is None else plane.crop(box(np.asarray(plane)))
        small = plane.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    values = np.asarray(small, np.float32)
    values = values - cv2.GaussianBlur(values, (0, 0), SHADING)
    if disc:
        values = values[_disc()]
    values = values.ravel() - values.mean()
    length = float(np.linalg.norm(values))
    # Less than one grey value per pixel is rounding and compression, not structure.
    return values / length if length > np.sqrt(values.size) / 2 else np.zeros_like(values)


def _spread(deep: np.ndarray) -> np.ndarray:
    """Map grey values of more than 8 bits, which have no unit, to [h, w] uint8 by the darkest and the brightest."""
    low, high = float(deep.min()), float(deep.max())
    return np.rint((deep - low) * (255 / (high - low or 1.0))).astype(np.uint8)


def _first_of_equal(files: list[Path]) -> list[int]:
    """Return per file the index of the first file with the same bytes."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(files):
        try:
            by_size[path.stat().st_size].append(index)
        except OSError as error:
            raise DataError(f"{path}: there is no such image.") from error
    first = list(range(len(files)))
    for members in by_size.values():
        if len(members) > 1:
            seen: dict[str, int] = {}
            for index in members:
                first[index] = seen.setdefault(file_hash(files[index]), index)
    return first


def _disc() -> np.ndarray:
    along = np.arange(SIDE) + 0.5 - SIDE / 2
    return along[:, None] ** 2 + along**2 <= (DISC * SIDE) ** 2


def _mirror(values: np.ndarray, disc: bool) -> np.ndarray:
    """Return the fingerprint of the picture mirrored left to right."""
    shown = _disc() if disc else np.ones((SIDE, SIDE), bool)
    picture = np.zeros((SIDE, SIDE), np.float32)
    picture[shown] = values
    return picture[:, ::-1][shown]


def _alike(prints: list[np.ndarray], others: list[np.ndarray], threshold: float) -> list[tuple[int, int]]:
    """List the pairs (a, b), a < b, in which fingerprint a of the first and b of the second list correlate."""
    if not prints:
        return []
    matrix, other = np.stack(prints), np.stack(others)
    found = []
    for start in range(0, len(matrix), BLOCK):
        rows, columns = np.nonzero(matrix[start : start + BLOCK] @ other[start:].T > threshold)
        found += [(int(a) + start, int(b) + start) for a, b in zip(rows, columns, strict=True) if a < b]
    return found
