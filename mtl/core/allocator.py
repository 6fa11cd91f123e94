"""How the C library treats large blocks of memory that are freed and asked for again in every step."""

from __future__ import annotations

import ctypes
import os
import sys

# Of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
LARGEST_BLOCK = 2**30  # bytes; larger ones go back to the kernel as ever
KEPT = 2**31 - 1  # bytes at the end of the heap; the largest number that mallopt takes
OWN_SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let this process keep large blocks that it frees, where the C library is glibc.

    It maps every block above 32 MiB anew, and the kernel then clears it page by page, in every training step: up to a fifth
    of a step on a CPU (docs/benchmarks.md). The peak of the process grows by about two percent.

    Returns:
        Whether it was done; not where the user set how glibc allocates.
    """
    if sys.platform != "linux" or any(name in os.environ for name in OWN_SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    return bool(library.mallopt(MMAP_THRESHOLD, LARGEST_BLOCK)) and bool(library.mallopt(TRIM_THRESHOLD, KEPT))
