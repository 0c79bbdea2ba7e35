"""CenterNet's networks with the authors' weights against the maps of the authors' own program (reference data)."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from segzoo.engine.centernet_weights import DLA_RULES, HOURGLASS_RULES
from segzoo.engine.renaming import DROP_COUNTERS, Renamed, Rule, rename
from segzoo.modeling.backbones.dla import Dla
from segzoo.modeling.backbones.hourglass import StackedHourglass

pytestmark = pytest.mark.reference
# What a method's table adds.
HEADS = ("hm.", "wh.", "reg.")


def load_backbone(backbone: nn.Module, weights: dict[str, Tensor], rules: tuple[Rule, ...]) -> Renamed:
    """Fills the backbone; everything but heads must be known and everything must be there."""
    renamed = rename(weights, rules)
    assert renamed.unexpected == [name for name in weights if name.startswith(HEADS) and "tracked" not in name]
    ours = {name.removeprefix("backbone."): value for name, value in renamed.weights.items()}
    assert len(ours) == len(renamed.weights)
    result = backbone.load_state_dict(ours, strict=False)
    assert result.unexpected_keys == []
    assert all(name.endswith("num_batches_tracked") for name in result.missing_keys)
    return renamed


def assert_close_to_authors(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * float(theirs.std()))


def num_values(weights: dict[str, Tensor], names: list[str]) -> int:
    """Of what is learned among `names`."""
    return sum(weights[name].numel() for name in names if not name.endswith(("mean", "var", "tracked")))


def test_dla_34_gives_the_authors_features(parity: ModuleType) -> None:
    weights, backbone = parity.state_dict("centernet_dla34"), Dla().eval()
    renamed = load_backbone(backbone, weights, DLA_RULES)
    assert num_values(weights, list(weights)) == 19_675_892
    # Of the authors' parameters those of level3.project and level4.project do nothing.
    unused = [name for name in weights if name.startswith(("base.level3.project", "base.level4.project"))]
    assert sorted(name for names in renamed.dropped.values() for name in names if "tracked" not in name) == sorted(
        name for name in unused if "tracked" not in name
    )
    learned = num_values(weights, list(weights)) - num_values(weights, renamed.unexpected + unused)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == learned
    outputs = parity.load("centernet_dla34_outputs")
    images = outputs["image"].float()
    with torch.no_grad():
        levels, feature = backbone.bottom_up(images), backbone(images[:1])["p2"]
    assert_close_to_authors(levels["level4"][:1], outputs["level4"])
    assert_close_to_authors(levels["level5"], outputs["level5"])
    assert_close_to_authors(feature, outputs["feature"])


def test_hourglass_104_gives_the_authors_features_of_both_stacks(parity: ModuleType) -> None:
    weights, backbone = parity.state_dict("centernet_hourglass104"), StackedHourglass().eval()
    renamed = load_backbone(backbone, weights, HOURGLASS_RULES)
    assert list(renamed.dropped) == [DROP_COUNTERS.why]
    outputs = parity.load("centernet_hourglass104_outputs")
    # In double precision, the same on every machine: fp32 differs with a processor's convolutions, here by up to
    # 4e-3 of the deviation after two hundred layers. The stored maps are fp32 too: exact values of the second stack are
    # beyond 1e-3 of one in five hundred of them, by 1.7e-3 at most.
    with torch.no_grad():
        first, second = backbone.double()(outputs["image"][:1].double()).values()
    # Every second pixel is stored.
    assert_close_to_authors(first[..., ::2, ::2].float(), outputs["cnvs"][0])
    difference = (second[..., ::2, ::2] - outputs["cnvs"][1]).abs() / outputs["cnvs"][1].std()
    assert float(difference.square().mean().sqrt()) < 1e-3
    assert float((difference > 1e-3).double().mean()) < 0.005
    assert float(difference.max()) < 2e-3


@pytest.mark.parametrize(
    ("name", "rules"), [("centernet_dla34", DLA_RULES), ("centernet_hourglass104", HOURGLASS_RULES)]
)
def test_names_with_module_before_them_are_the_same(name: str, rules: tuple[Rule, ...], parity: ModuleType) -> None:
    names = parity.load(f"{name}_weights")["order"]
    plain = rename(dict.fromkeys(names, torch.empty(0)), rules)
    wrapped = rename({f"module.{name}": torch.empty(0) for name in names}, rules)
    assert list(wrapped.weights) == list(plain.weights)
    assert wrapped.unexpected == [f"module.{name}" for name in plain.unexpected]
