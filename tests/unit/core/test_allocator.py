"""Freed memory stays with the process that will ask for it again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from mtl.core.allocator import OWN_SETTINGS

FAULTS = """
import resource, sys
import numpy as np
from mtl.core.allocator import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else None
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = np.empty(2**26, np.uint8)
    block[:] = 1
    del block
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")


def page_faults(word: str, **settings: str) -> tuple[str, int]:
    environment = {key: value for key, value in os.environ.items() if key not in OWN_SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, word], capture_output=True, text=True, check=True, env=environment | settings
    )
    kept, faults = done.stdout.split()
    return kept, int(faults)


@glibc
def test_a_large_block_is_not_faulted_in_again() -> None:
    assert page_faults("leave")[1] > 16  # pages of any size
    assert page_faults("keep") == ("True", 0)


@glibc
@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_what_the_user_set_wins(name: str) -> None:
    value = "glibc.malloc.arena_max=4" if name == "GLIBC_TUNABLES" else "4"
    assert page_faults("keep", **{name: value})[0] == "False"
