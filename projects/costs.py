"""Parameters and GMAC beside the papers' figures, and of every method at its recipe's size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from projects import get_cfg
from projects.catalog import COUNTED_IMAGE, MAIN_CONFIGS, RELATIVES, counted_size, read_config, study_rows
from segzoo.engine.ablations import COSTS, Row, row_config
from segzoo.evaluation.complexity import Complexity, build_for_counting, measure_complexity
from segzoo.evaluation.tables import markdown_table, text_table

# How much of what an image's content decides on is counted, by its unit; of boxes as many as a config detects at most.
COLOR_GROUPS = (1, 3, 6)


@dataclass
class PaperRow:
    """A row of a paper's table of costs: the paper's figures and ours, by column; without ours where it is cited."""

    method: str
    row: Row
    paper: dict[str, float]
    ours: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json."""
        columns = {
            column: {"paper": figure, "ours": round(self.ours[column], 3) if column in self.ours else None}
            for column, figure in self.paper.items()
        }
        return {
            "method": self.method,
            "row": self.row.id,
            "image_size": list(self.row.image_size),
            "config_file": Path(self.row.config_file).name,
            "options": dict(self.row.options),
            "cited": self.row.cited,
            "figures": columns,
            "notes": self.notes,
        }


@dataclass
class RecipeRow:
    """What a shipped config costs for one image at its recipe's size."""

    config: str
    complexity: Complexity

    def as_dict(self) -> dict[str, Any]:
        """Plain values for json."""
        return {"config_file": self.config, **self.complexity.as_dict()}


def paper_rows() -> list[PaperRow]:
    """Every row with figures of costs of all papers, counted at the row's image size."""
    counted: dict[tuple[Any, ...], Complexity] = {}
    rows = []
    for method, row in study_rows():
        paper = {
            column: figure
            for column, figure in row.figures.items()
            if COSTS.get(column) == "complexity" and figure is not None
        }
        if not paper:
            continue
        result = PaperRow(method, row, paper)
        if not row.cited:
            key = (row.config_file, *row.words, row.image_size)
            if key not in counted:
                size = (row.image_size[0], row.image_size[1])
                counted[key] = _count(row_config(row, get_cfg()), size)
            result.ours = _figures(counted[key], paper)
            result.notes = [*counted[key].notes, *filter(None, [row.note])]
        rows.append(result)
    return rows


def recipe_rows(names: Sequence[str] = (*MAIN_CONFIGS, *RELATIVES)) -> list[RecipeRow]:
    """The cost of configs below configs/ for an image of COUNTED_IMAGE as their evaluation resizes it."""
    return [RecipeRow(name, count_config(read_config(name))) for name in names]


def count_config(cfg: CfgNode, image_size: tuple[int, int] = COUNTED_IMAGE) -> Complexity:
    """The cost of a config for an image of (height, width) px as its evaluation resizes it.

    With totals for what the image's content decides on.
    """
    return _count(cfg, counted_size(cfg, image_size))


def _count(cfg: CfgNode, size: tuple[int, int]) -> Complexity:
    complexity = measure_complexity(build_for_counting(cfg), size)
    stage, most = complexity.object_cost, cfg.TEST.DETECTIONS_PER_IMAGE
    if stage is not None:
        stage.counts = COLOR_GROUPS if stage.unit == "colour group" else (most,)
    if cfg.MODEL.META_ARCHITECTURE == "MaskRCNN":
        complexity.notes.append(f"that is {cfg.MODEL.RPN.POST_NMS_TOPK_TEST} proposals and {most} masks")
    return complexity


def _figures(complexity: Complexity, columns: dict[str, float]) -> dict[str, float]:
    map_bytes = complexity.mask_map_bytes
    ours = {"GMAC": complexity.gmac, "trainable M": complexity.trainable_parameters / 1e6}
    if map_bytes is not None:
        ours["maps MiB"] = map_bytes / 2**20
    return {column: ours[column] for column in columns if column in ours}


def tables(paper: Sequence[PaperRow], recipes: Sequence[RecipeRow], *, markdown: bool = False) -> str:
    """Both tables with what has to be said about them."""
    table = markdown_table if markdown else text_table
    height, width = COUNTED_IMAGE
    rows: list[PaperRow | RecipeRow] = [*paper, *recipes]
    notes = [note for row in rows for note in _notes(row)]
    return "\n".join(
        [
            "The papers' figures and ours:",
            "",
            table(["row", "input", "column", "paper", "ours", "difference"], _paper_cells(paper)),
            "",
            f"For one image of {height} x {width} px, resized as each recipe's evaluation does:",
            "",
            table(["config", "input", "parameters", "trainable", "GMAC"], _recipe_cells(recipes)),
            *(["", *(f"{'* ' if markdown else ''}{note}" for note in notes)] if notes else []),
        ]
    )


def _paper_cells(rows: Sequence[PaperRow]) -> list[list[str]]:
    cells = []
    for row in rows:
        for column, figure in row.paper.items():
            own = row.ours.get(column)
            texts = ["-", "cited" if row.row.cited else "-"]
            if own is not None:
                texts = [f"{own:.2f}", f"{own - figure:+.2f} ({(own - figure) / figure:+.1%})"]
            size = " x ".join(map(str, row.row.image_size))
            cells.append([f"{row.method} {row.row.id}", size, column, f"{figure:g}", *texts])
    return cells


def _recipe_cells(rows: Sequence[RecipeRow]) -> list[list[str]]:
    cells = []
    for row in rows:
        cost = row.complexity
        size = " x ".join(map(str, cost.image_size))
        numbers = [f"{cost.parameters:,}", f"{cost.trainable_parameters:,}"]
        cells.append([row.config, size, *numbers, f"{cost.gmac:.1f}"])
        if cost.object_cost is not None:
            stage = cost.object_cost
            for count in stage.counts:
                total = cost.gmac + count * stage.macs / 1e9
                plural = f"{stage.unit}{'es' if stage.unit.endswith('x') else 's'}"
                cells.append([f"  with {count} {stage.unit if count == 1 else plural}", "", "", "", f"{total:.1f}"])
    return cells


def _notes(row: PaperRow | RecipeRow) -> list[str]:
    if isinstance(row, PaperRow):
        return [f"{row.method} {row.row.id}: {note}" for note in row.notes]
    notes = [f"{row.config}: {note}" for note in row.complexity.notes]
    if row.complexity.object_cost is not None:
        stage = row.complexity.object_cost
        notes.append(f"{row.config}: each {stage.unit} adds {stage.macs / 1e9:.2f} GMAC; without any: detection alone")
    return notes
