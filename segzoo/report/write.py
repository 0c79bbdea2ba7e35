"""Writes a comparison as a page, as Markdown and as json."""

from __future__ import annotations

import json
import math
import numbers
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segzoo.engine.checkpoint import write_atomically
from segzoo.errors import SegZooError
from segzoo.report.content import Comparison
from segzoo.report.markdown import render_markdown
from segzoo.report.page import render_page

PAGE_NAME, MARKDOWN_NAME, JSON_NAME = "report.html", "report.md", "compare.json"


@dataclass(frozen=True)
class ReportPaths:
    """Of the files of a report."""

    page: str
    markdown: str
    json: str


def write_report(comparison: Comparison, folder: str) -> ReportPaths:
    """Writes report.html, report.md and compare.json, each of them whole or not at all.

    Args:
        comparison: what is shown.
        folder: made if it does not exist; earlier files of these names are replaced.

    Raises:
        SegZooError: the folder or a file cannot be written.
    """
    paths = ReportPaths(*(os.path.join(folder, name) for name in (PAGE_NAME, MARKDOWN_NAME, JSON_NAME)))
    # All is made before anything is written: an error leaves the earlier report as it was.
    texts = {
        paths.json: render_json(comparison),
        paths.markdown: render_markdown(comparison),
        paths.page: render_page(comparison),
    }
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise SegZooError(f"cannot make the folder {folder}: {error}", "choose a writable folder") from error
    for path, text in texts.items():
        # File names may hold bytes that are no text.
        write_atomically(path, text.encode("utf-8", "replace").decode("utf-8"))
    return paths


def render_json(comparison: Comparison) -> str:
    """The whole of `compare.json`, by the letter of the standard: what is not a finite number is null."""
    return json.dumps(_plain(comparison.as_dict()), indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    """Values that every reader of json understands; numpy's numbers become Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None
