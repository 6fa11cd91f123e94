"""Every file that a run is going to read is decoded once before it begins, so that none ends it after hours."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mtl.core.causes import listed_errors
from mtl.core.cores import usable_cores
from mtl.core.errors import DataError
from mtl.core.family import DataFamily
from mtl.core.types import Record

log = logging.getLogger("mtl")

FORMAT = 1  # a higher one makes remembered answers void: raise it with every change of what readers refuse
WORKERS = 4
SLOW = 5.0  # seconds after which the log says what they went into


def check_readable(family: DataFamily, records: Iterable[Record], settings: dict[str, Any], images: bool = True) -> None:
    """Decode the image and the labels of each sample; what could be read is remembered by the memo of the family.

    A header says nothing of a file that ends early, so pixels are decoded: what one epoch reads, once per data set where there
    is an image cache, else once per run.

    Args:
        family: Reads the files; called from several threads.
        records: Samples that the run will use. Those that share all their files (slices of a volume) are looked at once.
        settings: Of the family, on which it depends what it refuses.
        images: Decode the images too, not only the labels; an image cache that is complete has done so.

    Raises:
        DataError: Names all files that cannot be read.
    """
    own = {key: value for key, value in settings.items() if key != "root"}
    about = hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:12]
    question = f"{'image and labels' if images else 'labels'} readable, check {FORMAT}, settings {about}"
    samples = {family.files_of(record): record for record in records}
    started = time.monotonic()

    def look(files: tuple[str, ...], record: Record) -> str:
        def read() -> bool:
            if images:
                family.read_image(record)
            family.read_labels(record)
            return True  # an error is not remembered: the file may be back at the next try

        try:
            family.memo.answer(question, files, read, lambda value: value is True)
        except DataError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename}: cannot be read ({error.strerror})."
        return ""

    with ThreadPoolExecutor(min(WORKERS, usable_cores())) as pool:
        problems = [problem for problem in pool.map(look, samples.keys(), samples.values()) if problem]
    family.memo.write()
    if problems:
        raise listed_errors("in the files of this run", problems, "Restore these files, or remove them with their labels.")
    if (took := time.monotonic() - started) > SLOW:
        where = "" if family.memo_folder else "; with data.cache.enabled=true later runs would not"
        log.info("decoded %d images and their labels once to see that all can be read: %.0f s%s", len(samples), took, where)
