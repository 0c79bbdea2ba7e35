"""The figures of a comparison as a Markdown document: the same tables as the page, without plots and pictures."""

from __future__ import annotations

from segzoo.evaluation.tables import markdown_table
from segzoo.report.content import Comparison
from segzoo.report.tables import Cell, Table, all_tables
from segzoo.report.wording import collect_notes, summary


def render_markdown(comparison: Comparison) -> str:
    """The whole of `report.md`; the same comparison gives the same text."""
    parts = [f"# {_one_line(comparison.title)}", _one_line(" ".join(summary(comparison)))]
    for table in all_tables(comparison):
        parts += [f"## {_one_line(table.title)}", _one_line(table.caption), _table(table)]
    parts.append("## Notes")
    notes = collect_notes(comparison)
    lines = [f"- {f'**{_one_line(title)}:** ' if title else ''}{_one_line(note)}" for title, note in notes]
    parts.append("\n".join(lines) or "There are no notes.")
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    header = [_one_line(f"{column.group} {column.title}".strip()) for column in table.columns]
    return markdown_table(header, [[_cell(cell) for cell in row] for row in table.rows])


def _cell(cell: Cell) -> str:
    text = f"{cell.text} ({cell.note})" if cell.note else cell.text
    return f"**{_one_line(text)}**" if cell.is_best else _one_line(text)


def _one_line(text: str) -> str:
    """A line break would end a table's row; an angle bracket would begin a tag."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
