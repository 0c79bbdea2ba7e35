"""Tables of texts."""

from __future__ import annotations

import pytest

from segzoo.evaluation.tables import markdown_table, text_table


def test_text_table_aligns_the_first_column_left_and_the_others_right() -> None:
    table = text_table(["name", "ms"], [["a", "1.5"], ["longer", ""]])
    assert table.splitlines() == ["name     ms", "a       1.5", "longer"]


def test_markdown_table_escapes_bars() -> None:
    assert markdown_table(["a", "b"], [["x|y", "1"]]).splitlines() == ["| a | b |", "| --- | --- |", r"| x\|y | 1 |"]


def test_tables_refuse_rows_of_another_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        text_table(["a", "b"], [["x"]])
