"""Studies: an entry for every row of a paper's tables, as a config with the paper's figures beside it.

A file projects/<Method>/ablations.yaml:

    configs: ../../configs                  # folder of the config files, seen from this file
    evaluation_keys: [MODEL.METHOD.LIMIT]   # optional: keys that change nothing about a training, see below
    tables:
      "1a":                                 # the paper's number of the table
        title: depth of the backbone
        columns: [segm/AP, FPS]             # names of metrics (as TEST.BEST_METRIC's) and of COSTS
        dataset: coco_2017_val
        device: V100
        rows:                               # their ids are 1a-50 and 1a-101
          "50": {model_of: 2-baseline, paper: [30.0, 20]}    # one figure a column
          "101":
            config: method_R50.yaml
            options: {MODEL.RESNETS.DEPTH: 101}
            paper: [31.5, null]             # null: the paper prints none

A row is a config of its own, or the model of another row, trained once for both; then its options may only concern the
evaluation: TEST.*, *_TEST, and what `evaluation_keys` lists. A row with `cited` has the figures of a method that
nothing here builds. `config`, `options`, `dataset` (of the metrics), `device` (of the speed) and `image_size` (of the
complexity: height, width) may also stand in a table, for those of its rows that do not say otherwise; `config` and
`options` of a table do not reach rows with `model_of`. A row may have a `note`.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from segzoo.config import merge_config
from segzoo.engine.validate import METRIC_PATTERN, validate_config
from segzoo.errors import ConfigError

# Columns that are no metric of an evaluation -> what measures them. GMAC are what the papers call GFLOPs; "network FPS"
# leaves post-processing out; "trainable M" are 10^6 trainable parameters; "maps MiB" is the size of the fp32 maps that
# the masks of an image are made from.
COSTS = {
    "GMAC": "complexity",
    "trainable M": "complexity",
    "maps MiB": "complexity",
    "FPS": "speed",
    "network FPS": "speed",
    "ms": "speed",
}
# Kind of measurement -> the setting without which its figures mean nothing.
NEEDS = {"train": "dataset", "complexity": "image_size", "speed": "device"}
# Keys that change nothing about a training, whatever the method.
EVALUATION_KEYS = re.compile(r"TEST\..+|.+_TEST")

# Key -> its type, of each level of the file.
SETTINGS = {"config": str, "options": dict, "dataset": str, "device": str, "image_size": list}
FILE_KEYS = {"configs": str, "evaluation_keys": list, "tables": dict}
TABLE_KEYS = {"title": str, "columns": list, "rows": dict, **SETTINGS}
ROW_KEYS = {"paper": list, "model_of": str, "cited": str, "note": str, **SETTINGS}
TYPE_NAMES: dict[type, str] = {str: "a text", dict: "a mapping", list: "a list"}


@dataclass(frozen=True)
class Row:
    """One row of a table: what to build, and what the paper found.

    id: "<table>-<row>". title: the table's. options: config key -> value. figures: column -> the paper's figure, or
    None where it prints none.
    model_of: id of the row whose model this is, or "". dataset, device, image_size (height, width): what the figures
    belong to, where that matters. cited: the other method whose figures these are, or "": nothing builds it.
    """

    id: str
    table: str
    title: str
    figures: Mapping[str, float | None]
    config_file: str
    options: Mapping[str, Any]
    model_of: str = ""
    dataset: str = ""
    device: str = ""
    image_size: tuple[int, ...] = ()
    note: str = ""
    cited: str = ""

    @property
    def kinds(self) -> tuple[str, ...]:
        """What has to be done for the figures, of "train" (and evaluate), "complexity" and "speed"."""
        return tuple(kind for kind in NEEDS if kind in {kind_of(column) for column in self.figures})

    @property
    def words(self) -> list[str]:
        """The options as KEY VALUE words of a command line."""
        return [str(word) for pair in self.options.items() for word in pair]


def kind_of(column: str) -> str:
    """What measures a column: a key of NEEDS, or "" for a name that is unknown."""
    return "train" if METRIC_PATTERN.fullmatch(column) else COSTS.get(column, "")


def read_ablations(path: str) -> list[Row]:
    """All rows of a file, in its order, those with `model_of` completed.

    Only the file itself is checked here; `row_config` meets its configs and their keys.

    Raises:
        ConfigError: not readable, not yaml, or not as described above; names the table, the row and the key.
    """
    content = _load(path)
    _check_keys(content, FILE_KEYS, ("configs", "tables"), path)
    configs = os.path.normpath(os.path.join(os.path.dirname(path), content["configs"]))
    evaluation_keys = _evaluation_keys(content, path)
    rows = []
    for name, table in content["tables"].items():
        where = f"{path}, table {name}"
        _check_name(name, where)
        _check_table(table, where)
        for row_name, row in table["rows"].items():
            row_where = f"{where}, row {row_name}"
            _check_name(row_name, row_where)
            _check_row(row, evaluation_keys, row_where)
            rows.append(_read_row(f"{name}-{row_name}", name, table, row, configs, row_where))
    return _complete(rows, path)


def select_rows(rows: Sequence[Row], ids: Sequence[str]) -> list[Row]:
    """The rows with these ids, in the order of `rows`; all of them without ids.

    Raises:
        ConfigError: an id that no row has.
    """
    known = [row.id for row in rows]
    for wanted in ids:
        if wanted not in known:
            raise ConfigError(f"no row {wanted!r}", _nearest(wanted, known))
    return [row for row in rows if not ids or row.id in ids]


def row_config(row: Row, cfg: CfgNode) -> CfgNode:
    """Merges a row into `cfg` (all known keys with their defaults), in place, and checks the result.

    Raises:
        ConfigError: an absent config file, an unknown key or an impossible value.
    """
    merge_config(cfg, row.config_file, row.words)
    validate_config(cfg)
    return cfg


def count_trainable(cfg: CfgNode) -> int:
    """Trainable parameters of the model of `cfg`, which is not changed.

    The model is built without memory for its values; MODEL.WEIGHTS is not read.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


class _StrictLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping; yaml itself would silently keep the last of two rows."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as stream:
            return yaml.load(stream, Loader=_StrictLoader)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}", "give a file such as ablations.yaml") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid yaml: {error}") from error


def _check_table(table: Any, where: str) -> None:
    _check_keys(table, TABLE_KEYS, ("title", "columns", "rows"), where)
    columns = table["columns"]
    unknown = [column for column in columns if not (isinstance(column, str) and kind_of(column))]
    if unknown:
        raise ConfigError(
            f"{where}: unknown column {unknown[0]!r}",
            f"columns are metrics such as segm/AP, bbox/AP50, or one of {', '.join(COSTS)}",
        )
    if len(set(columns)) < len(columns):
        raise ConfigError(f"{where}: columns {columns} name one twice")


def _read_row(row_id: str, name: str, table: Mapping[str, Any], row: Any, configs: str, where: str) -> Row:
    """The row without what `model_of` adds."""
    settings = {key: row.get(key, table.get(key)) for key in NEEDS.values()}
    result = Row(
        id=row_id,
        table=name,
        title=table["title"],
        figures=_figures(row["paper"], table["columns"], where),
        config_file="",
        options=row.get("options", {}),
        model_of=row.get("model_of", ""),
        dataset=settings["dataset"] or "",
        device=settings["device"] or "",
        image_size=_image_size(settings["image_size"], where),
        note=row.get("note", ""),
        cited=row.get("cited", ""),
    )
    for kind in result.kinds:
        if not settings[NEEDS[kind]]:
            raise ConfigError(f"{where}: has figures of kind {kind!r} but no {NEEDS[kind]}", f"give {NEEDS[kind]}")
    if result.cited or "model_of" in row:
        return result
    config = row.get("config", table.get("config"))
    if config is None:
        raise ConfigError(f"{where}: neither config nor model_of", "say which config file, or which row's model it is")
    return replace(
        result, config_file=os.path.join(configs, config), options={**table.get("options", {}), **result.options}
    )


def _evaluation_keys(content: Mapping[str, Any], path: str) -> list[str]:
    keys = content.get("evaluation_keys", [])
    wrong = [key for key in keys if not isinstance(key, str)]
    if wrong:
        raise ConfigError(f"{path}: {wrong[0]!r} in evaluation_keys is no key", "give names such as MODEL.METHOD.LIMIT")
    return list(keys)


def _check_row(row: Any, evaluation_keys: Sequence[str], where: str) -> None:
    """Keys and types of a row, and what may stand beside `cited` and `model_of`."""
    _check_keys(row, ROW_KEYS, ("paper",), where)
    if row.get("cited"):
        own = [key for key in ("config", "options", "model_of") if key in row]
        if own:
            raise ConfigError(f"{where}: {own[0]} beside cited", "a method that can be built is not cited")
    elif "model_of" in row:
        _check_model_of(row, evaluation_keys, where)


def _check_model_of(row: Mapping[str, Any], evaluation_keys: Sequence[str], where: str) -> None:
    if "config" in row:
        raise ConfigError(f"{where}: both config and model_of", "keep one: the other row's config is taken")
    options = [str(key) for key in row.get("options", {})]
    other = [key for key in options if key not in evaluation_keys and not EVALUATION_KEYS.fullmatch(key)]
    if other:
        raise ConfigError(
            f"{where}: {other[0]} beside model_of", "a model that is trained otherwise is a row with a config"
        )


def _complete(rows: Sequence[Row], path: str) -> list[Row]:
    """Gives the rows with `model_of` the config of that row, and its options where they have none."""
    by_id = {row.id: row for row in rows}
    if len(by_id) < len(rows):
        ids = [row.id for row in rows]
        raise ConfigError(f"{path}: two rows are called {next(i for i in ids if ids.count(i) > 1)!r}")
    completed = []
    for row in rows:
        if row.model_of:
            if row.model_of not in by_id:
                raise ConfigError(
                    f"{path}, row {row.id}: model_of {row.model_of!r} is no row", _nearest(row.model_of, list(by_id))
                )
            origin = by_id[row.model_of]
            if origin.cited:
                raise ConfigError(f"{path}, row {row.id}: {row.model_of!r} is cited, it has no model")
            if origin.model_of:
                raise ConfigError(
                    f"{path}, row {row.id}: {row.model_of!r} has no model of its own", f"say {origin.model_of!r}"
                )
            row = replace(row, config_file=origin.config_file, options={**origin.options, **row.options})
        completed.append(row)
    return completed


def _figures(paper: Sequence[Any], columns: Sequence[str], where: str) -> dict[str, float | None]:
    if len(paper) != len(columns):
        raise ConfigError(
            f"{where}: {len(paper)} figures for the {len(columns)} columns {', '.join(columns)}", "give one a column"
        )
    given = [figure for figure in paper if figure is not None]
    wrong = [figure for figure in given if isinstance(figure, bool) or not isinstance(figure, int | float)]
    wrong = wrong or [figure for figure in given if not math.isfinite(figure)]
    if wrong:
        raise ConfigError(
            f"{where}: {wrong[0]!r} is no figure", "give finite numbers, or null for one that is not printed"
        )
    return dict(zip(columns, paper, strict=True))


def _image_size(size: Sequence[Any] | None, where: str) -> tuple[int, ...]:
    if size is None:
        return ()
    if len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise ConfigError(f"{where}: image_size is {size}", "give height and width in pixels, such as [800, 1280]")
    return tuple(size)


def _check_keys(entry: Any, known: Mapping[str, type], required: Sequence[str], where: str) -> None:
    """An entry must be a mapping with known keys alone, values of their types, and all that is required, not empty."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{where}: is {entry!r}", f"it must be a mapping with {', '.join(required)}")
    for key, value in entry.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}", _nearest(str(key), list(known)))
        if not isinstance(value, known[key]):
            raise ConfigError(f"{where}: {key} is {value!r}", f"it must be {TYPE_NAMES[known[key]]}")
    for key in required:
        if not entry.get(key):
            raise ConfigError(f"{where}: {key} is missing or empty")


def _check_name(name: Any, where: str) -> None:
    if not isinstance(name, str):
        raise ConfigError(f"{where}: the name {name!r} is a {type(name).__name__}", f'write it in quotes: "{name}"')


def _nearest(name: str, known: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    return f"the nearest known one is {nearest[0]!r}" if nearest else ""
