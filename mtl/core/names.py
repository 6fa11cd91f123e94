"""Names as people and computers spell them: one form to compare them in."""

from __future__ import annotations

import unicodedata

LONGEST = 200  # bytes; what is made beside a folder or file of this name has a longer one


def folder_name_problem(name: str, where: str) -> str | None:
    """Return what is wrong with a name that is to be one folder below another, None where nothing is.

    Args:
        name: As given.
        where: The key that it was given to, for the message.
    """
    bad = next((sign for sign in name if sign in "/\\" or not sign.isprintable()), None)
    if not name.strip():
        found = "is empty"
    elif bad is not None:
        found = f"contains {bad!r}"
    elif name[0] in ".~" or name != name.strip():
        found = "begins or ends with a blank, a dot or `~`"
    elif len(name.encode("utf-8", "surrogatepass")) > LONGEST:
        found = f"has {len(name.encode('utf-8', 'surrogatepass'))} bytes"
    else:
        return None
    return (
        f"`{where}` is {name!r}, which {found}. Expected the name of one folder, of at most {LONGEST} bytes, without slashes "
        "and line breaks, that does not begin with a dot or `~`; where it lies is for paths.output_root or output_root to say."
    )


def normal(name: str) -> str:
    """Return the form in which names of files, patients and classes are compared: composed (NFC) and without case.

    A Mac stores `\u00e9` as two characters, most others as one (Unicode Standard Annex 15); both are one name.
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def readable(name: object) -> str:
    r"""Return a name as text that every file and terminal takes: bytes that are not UTF-8 stand as `\xe9`."""
    return str(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
