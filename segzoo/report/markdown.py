"""A comparison as Markdown: the sentences, conditions and tables of the page, without its pictures."""

from __future__ import annotations

from segzoo.evaluation.tables import markdown_table
from segzoo.report.content import Comparison
from segzoo.report.summary import summarize
from segzoo.report.tables import Cell, all_tables


def to_markdown(comparison: Comparison) -> str:
    """The document; the best of a column is bold."""
    lines = [f"# {comparison.title}", "", " ".join(summarize(comparison)), ""]
    lines += [markdown_table(["", ""], [[what, value] for what, value in comparison.conditions])]
    lines += [f"\n{note}" for note in comparison.notes]
    for section, tables in all_tables(comparison).items():
        lines += ["", f"## {section}"]
        for table in tables:
            rows = [[_text(cell) for cell in row] for row in table.rows]
            lines += ["", markdown_table(table.header, rows), "", table.caption]
    return "\n".join(lines) + "\n"


def _text(cell: Cell) -> str:
    # A line break would end the table.
    text = " ".join(cell.text.split())
    return f"**{text}**" if cell.is_best else text
