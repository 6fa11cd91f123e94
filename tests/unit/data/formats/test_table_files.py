"""Tables as people save them: what cannot be read as it was meant is an error, not fewer rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtl.core.errors import DataError
from mtl.data.formats.tables import read_rows


def test_a_quotation_mark_that_is_not_closed_takes_no_rows_along(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text('image,comment\na,"said ""so"", twice"\nb,"see note\nc,x\nd,y\n')
    with pytest.raises(DataError, match=r"t.csv:3: this row is no CSV .*expected each quotation mark to be closed"):
        read_rows(table)
    table.write_text('image,comment\na,"said ""so"", twice"\nb,see note\n')
    assert read_rows(table) == [(1, ["image", "comment"]), (2, ["a", 'said "so", twice']), (3, ["b", "see note"])]
