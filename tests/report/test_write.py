"""The files of a report: they agree, and they are whole."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segzoo.errors import SegZooError
from segzoo.report.content import TrainedRun
from segzoo.report.markdown import render_markdown
from segzoo.report.write import render_json, write_report
from tests.report.made_up import bare_comparison, bare_model, comparison
from tests.report.pages import Page


def markdown_rows(text: str, title: str) -> list[list[str]]:
    """Cells of the table under a heading, without its header."""
    part = text.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]


def test_write_report_writes_files_that_agree(tmp_path: Path) -> None:
    made = comparison(count=2, seeds=2)
    paths = write_report(made, str(tmp_path / "new" / "report"))
    page = Page(Path(paths.page).read_text(encoding="utf-8"))
    values = json.loads(Path(paths.json).read_text(encoding="utf-8"))
    rows = markdown_rows(Path(paths.markdown).read_text(encoding="utf-8"), "Results")
    for index, row in enumerate(page.rows("main")):
        runs = values["models"][index]["runs"]
        mean = sum(run["results"]["segm"]["AP"] for run in runs) / len(runs)
        assert row["AP"].startswith(f"{mean:.1f} ± ")
        assert rows[index][1].strip("*") == row["AP"]
        assert values["models"][index]["speeds"][0]["whole_ms"]["median"] == pytest.approx(float(row["ms"]), abs=0.05)
    assert sorted(os.listdir(tmp_path / "new" / "report")) == ["compare.json", "report.html", "report.md"]
    assert "gallery" not in values


def test_all_tables_of_the_page_are_in_the_markdown_document(tmp_path: Path) -> None:
    made = comparison(count=2, seeds=2)
    paths = write_report(made, str(tmp_path))
    page = Page(Path(paths.page).read_text(encoding="utf-8"))
    document = Path(paths.markdown).read_text(encoding="utf-8").replace("**", "")
    for name, rows in page.tables.items():
        for cell in (" ".join(cell.split()) for cell in rows[-1]):
            assert cell in document.replace("(+", "+").replace("group)", "group"), (name, cell)


def test_json_is_strict_and_knows_numpy() -> None:
    seed: Any = np.int64(3)
    ap: Any = np.float32(0.5)
    run = TrainedRun(seed, 100, 2, minutes=float("nan"), results={"segm": {"AP": ap}})
    made = bare_comparison(bare_model(runs=[run]))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    read = json.loads(render_json(made), parse_constant=refuse)["models"][0]["runs"][0]
    assert (read["seed"], read["minutes"], read["results"]["segm"]["AP"]) == (3, None, 0.5)


def test_markdown_keeps_bars_breaks_and_brackets_out_of_its_tables() -> None:
    made = bare_comparison(bare_model(runs=[TrainedRun(0, 10, 1, error="a | b\nc <script>")]))
    made.notes = ["one\ntwo"]
    document = render_markdown(made)
    assert r"a \| b c &lt;script>" in document
    assert "- one two" in document


def test_same_comparison_gives_the_same_files(tmp_path: Path) -> None:
    first, second = (write_report(comparison(count=1, seeds=1), str(tmp_path / name)) for name in "ab")
    for one, other in ((first.page, second.page), (first.markdown, second.markdown), (first.json, second.json)):
        assert Path(one).read_bytes() == Path(other).read_bytes()


def test_write_report_refuses_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SegZooError, match="cannot make the folder"):
        write_report(bare_comparison(), str(tmp_path / "file"))


def test_write_report_writes_names_that_are_no_text(tmp_path: Path) -> None:
    made = comparison(count=1, seeds=1)
    made.gallery[0].image = made.models[0].failures[0].image = "bad\udcff.jpg"
    paths = write_report(made, str(tmp_path))
    assert "bad?.jpg" in Path(paths.page).read_text(encoding="utf-8")
    json.loads(Path(paths.json).read_text(encoding="utf-8"))
