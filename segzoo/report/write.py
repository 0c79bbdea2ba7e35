"""The files of a comparison."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from segzoo.engine.checkpoint import write_atomically
from segzoo.report.content import Comparison
from segzoo.report.markdown import to_markdown
from segzoo.report.page import render


def write_report(comparison: Comparison, folder: str) -> dict[str, Path]:
    """Writes report.html, report.md and compare.json.

    Args:
        comparison: what is shown.
        folder: made if absent; files of an earlier report are replaced, each at once.

    Returns:
        paths by "html", "markdown" and "json".
    """
    os.makedirs(folder, exist_ok=True)
    paths = {"html": "report.html", "markdown": "report.md", "json": "compare.json"}
    contents = {
        "html": render(comparison),
        "markdown": to_markdown(comparison),
        "json": json.dumps(_strict(comparison.as_dict()), indent=1, allow_nan=False) + "\n",
    }
    for kind, name in paths.items():
        write_atomically(os.path.join(folder, name), contents[kind])
    return {kind: Path(folder) / name for kind, name in paths.items()}


def _strict(value: Any) -> Any:
    """The same without NaN and infinity, which no json has."""
    if isinstance(value, dict):
        return {key: _strict(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
