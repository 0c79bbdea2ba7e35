"""CenterNet's names of its networks' weights into ours: the tables of the backbones, without heads.

A method adds rules for its heads. Tables hold names without "module.", see `renaming.bare_name`.
"""

from __future__ import annotations

import re

from segzoo.engine.renaming import DROP_COUNTERS, LEAF, NORM_LEAF, Rule

# Of a norm inside a longer group.
_NORM = r"(?:weight|bias|running_mean|running_var)"
# Of a residual block, and of a convolution with a norm in a sequence.
_BLOCK = rf"(?:conv[12]\.weight|bn[12]\.{_NORM})"
_SEQUENCE = rf"(?:0\.weight|1\.{_NORM})"
_CONV_NORM = rf"(?:conv\.weight|bn\.{_NORM})"


def dla_trunk_rules(source: str, target: str) -> tuple[Rule, ...]:
    """DLA-34 named as its authors, CenterNet and timm do, into `DlaTrunk`, which keeps their names.

    Args:
        source, target: what stands before the names, such as "base." and "backbone.bottom_up.".
    """
    tree = rf"(?:tree[12]\.)+{_BLOCK}|(?:tree[12]\.)*(?:root\.{_CONV_NORM}|project\.{_SEQUENCE})"
    unused = r"level[34]\.project\..+"
    return (
        Rule(re.escape(source) + unused, "", why="projection whose result the authors' program never uses"),
        Rule(rf"{re.escape(source)}(?P<name>(?:base_layer|level[01])\.{_SEQUENCE})", target + "{name}"),
        Rule(rf"{re.escape(source)}(?P<name>level[2-5]\.(?:{tree}))", target + "{name}"),
        Rule(re.escape(source) + r"fc\.(?:weight|bias)", "", why="ImageNet's classifier"),
    )


_UP = r"(?P<part>dla_up\.ida_\d|ida_up)"
_LAYER = rf"{_UP}\.(?P<layer>(?:proj|node)_\d)"
# Of the whole of CenterNet's DLA-34, into "backbone." of a model.
DLA_RULES = (
    *dla_trunk_rules("base.", "backbone.bottom_up."),
    Rule(rf"{_LAYER}\.conv\.{LEAF}", "backbone.{part}.{layer}.conv.{leaf}"),
    Rule(rf"{_LAYER}\.conv\.conv_offset_mask\.{LEAF}", "backbone.{part}.{layer}.conv.offset.{leaf}"),
    Rule(rf"{_LAYER}\.actf\.0\.{NORM_LEAF}", "backbone.{part}.{layer}.norm.{leaf}"),
    Rule(rf"{_UP}\.(?P<layer>up_\d)\.weight", "backbone.{part}.{layer}.weight"),
    DROP_COUNTERS,
)

_SKIP_BLOCK = rf"(?:{_BLOCK}|skip\.{_SEQUENCE})"
_HOURGLASS = (
    rf"pre\.(?:0\.{_CONV_NORM}|1\.{_SKIP_BLOCK})",
    rf"kps\.\d\.(?:low2\.)*(?:up1|low[123])\.\d\.{_SKIP_BLOCK}",
    rf"cnvs\.\d\.{_CONV_NORM}",
    rf"inters\.\d\.{_SKIP_BLOCK}",
    rf"(?:inters|cnvs)_\.\d\.{_SEQUENCE}",
)
# Of CenterNet's Hourglass-104, into "backbone." of a model; `StackedHourglass` keeps the names.
HOURGLASS_RULES = (*(Rule(rf"(?P<name>{part})", "backbone.{name}") for part in _HOURGLASS), DROP_COUNTERS)
