"""MODEL_ZOO.md: every shipped config with its recipe, its cost, the paper's AP and what was measured here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from projects import get_cfg
from projects.catalog import COUNTED_IMAGE, ROOT, config_names, read_config, study_rows
from projects.costs import count_config
from projects.results import Result, read_results
from segzoo.engine.ablations import Row
from segzoo.evaluation.complexity import Complexity, build_for_counting, count_parameters
from segzoo.evaluation.tables import markdown_table

ZOO_FILE = ROOT / "MODEL_ZOO.md"
COMMAND = "python tools/model_zoo.py"
NOT_TRAINED = "not trained here"
HEADER = [
    "config",
    "method",
    "backbone",
    "recipe",
    "images, px",
    "parameters, M",
    "GMAC",
    "paper's AP",
    "measured here",
]
COUNTED_TEXT = " x ".join(map(str, COUNTED_IMAGE))
# Columns that stand for a model's quality, and what is written before their figures.
AP_COLUMNS = {"segm/AP": "", "bbox/AP": "box "}
INTRODUCTION = f"""\
# Model zoo

Every config of `configs/`. This file is written by `{COMMAND}`; a test tells when it is out of date.

* **recipe**: optimizer, iterations x images of a step, learning rate. **images**: the short side and the limit of the
  long one, or height x width, in training, and in evaluation where that differs.
* **parameters**: all learned values, frozen ones included, for the config's number of classes.
* **GMAC**: multiply-accumulates of one image of {COUNTED_TEXT} px as the config's evaluation resizes it. Convolutions,
  linear layers and matrix products count. What the image's content decides on is named beside it; Mask R-CNN is
  counted with as many proposals and detections as its config allows.
* **paper's AP**: mask AP in percent (box AP where it says so) that the paper prints for this very config, and the row
  of `projects/<Method>/ablations.yaml`. "none": no table has this config as it stands.
* **measured here**: only what was trained with this repository (`projects/results.yaml`), on other and far smaller
  data than the papers'. **Nothing was trained on COCO's full training set here**, so the two columns must not be
  compared. No trained weights are published; `docs/weights.md` says how to read the authors'.
"""


def build_zoo(gmac_of: Callable[[str, CfgNode], str]) -> str:
    """The whole file.

    Args:
        gmac_of: from a config's name and values to the text of its GMAC: counted, or known from an earlier file.

    Raises:
        ConfigError: a config, a study or a result that is at fault.
    """
    datasets, results = read_results()
    rows = study_rows()
    cells: dict[bool, list[list[str]]] = {False: [], True: []}
    for name in config_names():
        cfg = read_config(name)
        own = [result for result in results if result.config == name]
        line = [f"[{Path(name).stem}](configs/{name})", cfg.MODEL.META_ARCHITECTURE, backbone_text(cfg)]
        line += [recipe_text(cfg), size_text(cfg), f"{count_parameters(build_for_counting(cfg, 'meta')) / 1e6:.2f}"]
        line += [gmac_of(name, cfg), paper_text(name, rows), measured_text(own)]
        cells["/" in name].append(line)
    return "\n".join(
        [
            INTRODUCTION,
            "## Configs for COCO and for own data\n",
            markdown_table(HEADER, cells[False]),
            "\n## Small configs for generated scenes and for checks\n",
            markdown_table(HEADER, cells[True]),
            "\n## What was measured here\n",
            *(f"* **{name}**: {text}." for name, text in datasets.items()),
            "",
            results_table(results),
            "",
        ]
    )


def counted_gmac(name: str, cfg: CfgNode) -> str:
    """The text of a config's GMAC, counted; takes some seconds."""
    return gmac_text(count_config(cfg))


def gmac_text(cost: Complexity) -> str:
    """GMAC of what is always done, and of one more of what the image's content decides on."""
    stage = cost.object_cost
    return f"{cost.gmac:.1f}" + (f" + {stage.macs / 1e9:.2f} a {stage.unit}" if stage is not None else "")


def known_gmac(text: str) -> dict[str, str]:
    """Config -> text of its GMAC, from an earlier MODEL_ZOO.md."""
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(HEADER) and "](configs/" in cells[0]:
            found[cells[0].partition("](configs/")[2].removesuffix(")")] = cells[HEADER.index("GMAC")]
    return found


def backbone_text(cfg: CfgNode) -> str:
    """A backbone's usual name, or what it is a small one of."""
    name, default = cfg.MODEL.BACKBONE.NAME, get_cfg()
    pyramid = " FPN" if "fpn" in name else ""
    if "timm" in name:
        return cfg.MODEL.TIMM.NAME + pyramid
    for word, key, usual in (
        ("dla", "DLA", "DLA-34"),
        ("hourglass", "HOURGLASS", "Hourglass-104"),
        ("darknet", "DARKNET", "Darknet-53"),
    ):
        if word in name:
            node, normal = cfg.MODEL[key], default.MODEL[key]
            is_usual = all(node[entry] == normal[entry] for entry in normal if entry not in ("NORM", "DEFORMABLE"))
            return usual if is_usual else f"small {usual.partition('-')[0]}"
    resnets = cfg.MODEL.RESNETS
    grouped = f"-{resnets.NUM_GROUPS}x{resnets.WIDTH_PER_GROUP}d" if resnets.NUM_GROUPS > 1 else ""
    deformable = " DCN" if any(resnets.DEFORM_ON_PER_STAGE) else ""
    return f"{'X' if grouped else 'R'}-{resnets.DEPTH}{grouped}{deformable}{pyramid}"


def recipe_text(cfg: CfgNode) -> str:
    """Optimizer, iterations, batch and learning rate."""
    solver = cfg.SOLVER
    return f"{solver.OPTIMIZER}, {solver.MAX_ITER:,} x {solver.IMS_PER_BATCH}, {solver.BASE_LR:g}"


def size_text(cfg: CfgNode) -> str:
    """Sizes of the network's input in training, and in evaluation where these differ."""
    inputs = cfg.INPUT
    if inputs.RESIZE != "shortest_edge":
        return "own size" if inputs.RESIZE == "keep_res" else " x ".join(map(str, inputs.FIXED_SIZE))
    sides = inputs.MIN_SIZE_TRAIN if isinstance(inputs.MIN_SIZE_TRAIN, list | tuple) else (inputs.MIN_SIZE_TRAIN,)
    train = f"{min(sides)}{f' to {max(sides)}' if len(set(sides)) > 1 else ''} / {inputs.MAX_SIZE_TRAIN}"
    test = f"{inputs.MIN_SIZE_TEST} / {inputs.MAX_SIZE_TEST}"
    return train if train == test else f"{train}; {test}"


def paper_text(name: str, rows: Sequence[tuple[str, Row]]) -> str:
    """The paper's AP of rows that are this config as it stands, one of each data set.

    Of several the first one that is no other row's model.
    """
    found: dict[tuple[str, str], str] = {}
    for method, row in sorted(rows, key=lambda pair: bool(pair[1].model_of)):
        if row.cited or row.options or Path(row.config_file).resolve() != (ROOT / "configs" / name).resolve():
            continue
        for column, prefix in AP_COLUMNS.items():
            figure = row.figures.get(column)
            if figure is not None:
                place = row.dataset.removeprefix("coco_2017_")
                found.setdefault((column, place), f"{prefix}{figure:.1f} {place} ({method} {row.id})")
    return "; ".join(found.values()) or "none"


def measured_text(results: Sequence[Result]) -> str:
    """The AP of each training, with the data set."""
    texts = []
    for result in results:
        column = next(column for column in (*AP_COLUMNS, *result.metrics) if column in result.metrics)
        texts.append(f"{AP_COLUMNS.get(column, column + ' ')}{result.metrics[column]:.1f} {result.dataset}")
    return "; ".join(texts) or NOT_TRAINED


def results_table(results: Sequence[Result]) -> str:
    """All trainings with their conditions and all of their metrics."""
    cells = []
    for result in results:
        metrics = ", ".join(f"{name} {value:.1f}" for name, value in result.metrics.items())
        options = " ".join(f"{key} {value}" for key, value in result.options.items())
        machine = "; ".join(filter(None, [result.machine, result.note]))
        changed = f"{result.config} {options}".strip()
        cells.append(
            [changed, result.dataset, f"{result.iterations:,}", f"{result.minutes:g}", result.commit, machine, metrics]
        )
    return markdown_table(["config", "data", "iterations", "minutes", "commit", "machine", "percent"], cells)


def differences(old: str, new: str) -> list[str]:
    """Lines of the new file that the old one lacks, and the other way round."""
    before, after = set(old.splitlines()), set(new.splitlines())
    return [f"+ {line}" for line in new.splitlines() if line not in before] + [
        f"- {line}" for line in old.splitlines() if line not in after
    ]


def keep_gmac(known: Mapping[str, str]) -> Callable[[str, CfgNode], str]:
    """For `build_zoo`: what is known, and counted what is not."""
    return lambda name, cfg: known.get(name) or counted_gmac(name, cfg)
