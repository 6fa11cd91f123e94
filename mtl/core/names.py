"""Names as people and computers spell them: one form to compare them in."""

from __future__ import annotations

import unicodedata


def normal(name: str) -> str:
    """Return the form in which names of files, patients and classes are compared: composed (NFC) and without case.

    A Mac stores `\u00e9` as two characters, most others as one (Unicode Standard Annex 15); both are one name.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def readable(name: object) -> str:
    r"""Return a name as text that every file and terminal takes: bytes that are not UTF-8 stand as `\xe9`."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
