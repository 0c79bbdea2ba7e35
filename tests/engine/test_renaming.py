"""Tables that rename weights."""

from __future__ import annotations

import pytest
import torch

from segzoo.engine.renaming import Rule, rename
from segzoo.errors import CheckpointError

RULES = (
    Rule(r"special\.0\.weight", "special.weight"),
    Rule(r"(?P<name>\w+)\.(?P<index>\d+)\.(?P<leaf>weight|bias)", "tower_{name}.{3*index+1}.{leaf}"),
    Rule(r"stage(?P<stage>\d)\.(?P<block>\d+)", "res{stage+1}.{block}.{2*block}"),
    Rule(r"scale", "scale", shape=(1,)),
    Rule(r"counter\d", "", why="of no use"),
)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("mask.11.bias", "tower_mask.34.bias"),
        ("special.0.weight", "special.weight"),
        ("special.1.weight", "tower_special.4.weight"),
        ("stage9.12", "res10.12.24"),
        ("module.stage1.0", "res2.0.0"),
    ],
)
def test_rename_fills_templates_by_the_first_rule_that_knows_the_whole_name(theirs: str, ours: str) -> None:
    value = torch.rand(2)
    renamed = rename({theirs: value}, RULES)
    assert renamed.used == {theirs: ours}
    assert renamed.weights[ours] is value


def test_rename_lists_dropped_and_unexpected_entries() -> None:
    weights = {name: torch.zeros(1) for name in ("counter1", "counter22", "module.counter3", "mask.0.bias.more")}
    renamed = rename(weights, RULES)
    assert renamed.dropped == {"of no use": ["counter1", "module.counter3"]}
    assert renamed.unexpected == ["counter22", "mask.0.bias.more"]
    assert renamed.weights == {}


def test_rename_reshapes_or_refuses() -> None:
    assert rename({"scale": torch.tensor(2.0)}, RULES).weights["scale"].tolist() == [2.0]
    with pytest.raises(CheckpointError, match=r"'scale' is \(2,\), not \(1,\)"):
        rename({"scale": torch.zeros(2)}, RULES)


def test_rename_of_two_entries_to_one_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"'scale' and 'module\.scale' are both scale"):
        rename({"scale": torch.tensor(1.0), "module.scale": torch.tensor(2.0)}, RULES)
