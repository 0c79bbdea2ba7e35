"""CenterNet's files and DLA-34's trunk in our CenterMask: every value in its place, the masks' heads untouched."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from centermask.convert import CONVERTERS, DLA_CONFIG, HOURGLASS_CONFIG
from projects import CONVERTERS as ALL_CONVERTERS
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.engine.convert import compare, convert, model_shapes, needed_options, open_source
from segzoo.engine.renaming import rename
from segzoo.engine.weights import load_weights
from segzoo.errors import CheckpointError
from tools.convert_weights import REPOSITORY, main

DLA_PAIRS = [
    ("base.base_layer.0.weight", "backbone.bottom_up.base_layer.0.weight"),
    ("base.level3.tree2.tree1.bn2.running_var", "backbone.bottom_up.level3.tree2.tree1.bn2.running_var"),
    ("base.level5.project.0.weight", "backbone.bottom_up.level5.project.0.weight"),
    ("dla_up.ida_1.node_2.conv.weight", "backbone.dla_up.ida_1.node_2.conv.weight"),
    ("dla_up.ida_0.proj_1.conv.conv_offset_mask.bias", "backbone.dla_up.ida_0.proj_1.conv.offset.bias"),
    ("ida_up.proj_1.actf.0.running_mean", "backbone.ida_up.proj_1.norm.running_mean"),
    ("ida_up.up_2.weight", "backbone.ida_up.up_2.weight"),
    ("hm.0.weight", "heads.0.heatmap.0.weight"),
    ("wh.2.bias", "heads.0.size.2.bias"),
    ("reg.2.weight", "heads.0.offset.2.weight"),
]
HOURGLASS_PAIRS = [
    ("pre.0.conv.weight", "backbone.pre.0.conv.weight"),
    ("kps.1.low2.low2.up1.0.bn1.weight", "backbone.kps.1.low2.low2.up1.0.bn1.weight"),
    ("inters_.0.1.running_var", "backbone.inters_.0.1.running_var"),
    ("cnvs.1.bn.bias", "backbone.cnvs.1.bn.bias"),
    ("hm.0.0.conv.weight", "heads.0.heatmap.0.weight"),
    ("wh.1.0.conv.bias", "heads.1.size.0.bias"),
    ("reg.1.1.bias", "heads.1.offset.2.bias"),
]
HEADS = {"heatmap": "hm", "size": "wh", "offset": "reg"}
SMALL = {
    "centernet-dla34": (DLA_CONFIG, ["MODEL.DLA.CHANNELS", "(4, 4, 8, 8, 16, 16)"]),
    "centernet-hourglass104": (
        HOURGLASS_CONFIG,
        ["MODEL.HOURGLASS.CHANNELS", "(8, 8, 12)", "MODEL.HOURGLASS.BLOCKS", "(1, 1, 1)"],
    ),
}


def converter_of(name: str):
    return next(converter for converter in CONVERTERS if converter.name == name)


def small_config(name: str) -> CfgNode:
    config_file, options = SMALL[name]
    node = "MODEL.CENTERMASK."
    options = [*options, node + "NUM_CLASSES", "3", node + "HEAD_CHANNELS", "5", "MODEL.DEVICE", "cpu"]
    return merge_config(get_cfg(), str(REPOSITORY / config_file), options)


def randomised(network: nn.Module) -> nn.Module:
    """`network` with values that differ everywhere, those of its norms as well."""
    for name, value in network.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) + (0.5 if "running_var" in name else -0.5))
    return network


def authors_names(weights: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """What of our weights CenterNet's file holds, under its names, without its rules."""
    is_dla = name == "centernet-dla34"
    renamed = {}
    for ours, value in weights.items():
        if match := re.fullmatch(r"heads\.(\d)\.(\w+)\.([02])\.(\w+)", ours):
            stack, head, layer, leaf = match.groups()
            if head in HEADS:
                inner = (
                    f"{layer}.{leaf}" if is_dla else f"{stack}." + (f"0.conv.{leaf}" if layer == "0" else f"1.{leaf}")
                )
                renamed[f"{HEADS[head]}.{inner}"] = value
        elif ours.startswith("backbone.bottom_up."):
            renamed[ours.replace("backbone.bottom_up.", "base.")] = value
        elif ours.startswith("backbone."):
            theirs = ours.removeprefix("backbone.")
            if is_dla:
                theirs = theirs.replace(".conv.offset.", ".conv.conv_offset_mask.").replace(".norm.", ".actf.0.")
            renamed[theirs] = value
    return renamed


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [("centernet-dla34", *pair) for pair in DLA_PAIRS]
    + [("centernet-hourglass104", *pair) for pair in HOURGLASS_PAIRS],
)
def test_rules_rename_each_kind_of_entry(name: str, theirs: str, ours: str, prefix: str) -> None:
    renamed = rename({prefix + theirs: torch.zeros(1)}, converter_of(name).rules)
    assert renamed.used == {prefix + theirs: ours}


def test_unused_entries_are_dropped_with_a_reason_and_others_are_not_known() -> None:
    names = ["base.level3.project.0.weight", "base.fc.weight", "base.level1.1.num_batches_tracked", "hps.0.weight"]
    renamed = rename(dict.fromkeys(names, torch.zeros(1)), converter_of("centernet-dla34").rules)
    assert sorted(name for found in renamed.dropped.values() for name in found) == sorted(names[:3])
    # The head of another task (poses).
    assert renamed.unexpected == ["hps.0.weight"]


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", list(SMALL))
def test_centernets_file_fills_all_but_shapes_and_saliency(name: str, prefix: str, tmp_path: Path) -> None:
    cfg = small_config(name)
    source, target = randomised(build_model(cfg)), build_model(cfg)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    written = authors_names(source.state_dict(), name)
    content = {"epoch": 140, "state_dict": {prefix + key: value for key, value in written.items()}}
    torch.save(content, tmp_path / "theirs.pth")
    converter, found = open_source(str(tmp_path / "theirs.pth"), ALL_CONVERTERS)
    assert (converter.name, found.notes) == (name, {"epoch": 140})
    renamed = convert(found, converter, "theirs.pth")
    fit = converter.fit(renamed.weights)
    assert (fit.options["MODEL.CENTERMASK.NUM_CLASSES"], fit.options["MODEL.CENTERMASK.HEAD_CHANNELS"]) == (3, 5)
    report = compare(renamed, {key: tuple(value.shape) for key, value in before.items()}, {}, fit.part)
    assert report.problem == ""
    torch.save({"model": renamed.weights, "part": list(fit.part)}, tmp_path / "ours.pth")
    load_weights(target, str(tmp_path / "ours.pth"))
    num_filled = 0
    for key, value in target.state_dict().items():
        is_own = not key.startswith(fit.part)
        if key.endswith("num_batches_tracked"):
            continue
        assert torch.equal(value, before[key] if is_own else source.state_dict()[key]), key
        assert is_own == (key == "running_counts" or re.match(r"heads\.\d\.(shape|saliency)\.", key) is not None), key
        num_filled += not is_own
    assert num_filled == len(renamed.weights)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_convert_weights_of_the_imagenet_trunk_writes_what_the_config_loads(
    prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = small_config("centernet-dla34")
    source, target = randomised(build_model(cfg)).state_dict(), build_model(cfg)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    trunk = {key.removeprefix("backbone.bottom_up."): value for key, value in source.items() if ".bottom_up." in key}
    unused = {
        "fc.weight": torch.zeros(1000, 16, 1, 1),
        "fc.bias": torch.zeros(1000),
        "level4.project.0.weight": torch.zeros(1),
    }
    torch.save({prefix + key: value for key, value in (trunk | unused).items()}, tmp_path / "dla34.pth")
    output = tmp_path / "ours.pth"
    assert main(["--input", str(tmp_path / "dla34.pth"), "--output", str(output), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["format"] == "dla34"
    assert result["options"] == ["MODEL.DLA.CHANNELS", "(4, 4, 8, 8, 16, 16)"]
    assert result["part"] == ["backbone.bottom_up."]
    dropped = {name for names in result["dropped"].values() for name in names if "tracked" not in name}
    assert dropped == {prefix + name for name in unused}
    load_weights(target, str(output))
    for key, value in target.state_dict().items():
        expected = source if ".bottom_up." in key and not key.endswith("tracked") else before
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"hm.2.weight": None}, r"missing in the file: heads\.0\.heatmap\.2\.weight"),
        ({"wh.0.bias": None}, r"missing in the file \(1\): heads\.0\.size\.0\.bias"),
        ({"reg.2.bias": torch.zeros(7)}, r"heads\.0\.offset\.2\.bias \(7,\) -> \(2,\)"),
        ({"hps.0.weight": torch.zeros(1)}, r"unexpected in the file \(1\): hps\.0\.weight"),
        ({"hm.2.bias": torch.tensor([0.0, float("nan"), 0.0])}, "NaN or infinite values in 1 entries: hm.2.bias"),
    ],
)
def test_convert_weights_refuses_damaged_files_and_writes_nothing(
    change: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = authors_names(build_model(small_config("centernet-dla34")).state_dict(), "centernet-dla34") | change
    torch.save({"state_dict": {k: v for k, v in weights.items() if v is not None}}, tmp_path / "theirs.pth")
    output = tmp_path / "ours.pth"
    assert main(["--input", str(tmp_path / "theirs.pth"), "--output", str(output)]) == 2
    assert re.search(expected, capsys.readouterr().err)
    assert not output.exists()


@pytest.mark.parametrize("name", list(SMALL))
def test_hourglass_and_dla_files_are_told_apart(name: str) -> None:
    weights = authors_names(build_model(small_config(name)).state_dict(), name)
    known = [
        converter.name for converter in ALL_CONVERTERS if any(re.fullmatch(converter.mark, key) for key in weights)
    ]
    assert known == [name]
    with pytest.raises(CheckpointError, match="without which the model is not known"):
        converter_of(name).fit({})


@pytest.mark.reference
@pytest.mark.parametrize(
    ("name", "file"), [("centernet-dla34", "centernet_dla34"), ("centernet-hourglass104", "centernet_hourglass104")]
)
def test_the_networks_of_the_released_files_fit_their_configs(name: str, file: str, parity: ModuleType) -> None:
    packed, converter = parity.load(f"{file}_weights"), converter_of(name)
    shapes = {
        key: packed["rule"][key][0] if key in packed["rule"] else packed["stored"][key].shape for key in packed["order"]
    }
    # Of their shapes, without their size.
    weights = {f"module.{key}": torch.zeros(()).expand(tuple(shape)) for key, shape in shapes.items()}
    renamed = rename(weights, converter.rules)
    fit = converter.fit(renamed.weights)
    cfg = merge_config(get_cfg(), str(REPOSITORY / fit.config_file))
    # The config as it is: 80 classes, 256 hidden channels, both stacks. The DLA-34 of the reference data is
    # CenterNet's, too.
    options = needed_options(cfg, fit.options)
    assert options in ([], ["MODEL.CENTERMASK.HEAD_CHANNELS", "256"])
    report = compare(renamed, model_shapes(merge_config(cfg, opts=options)), {}, fit.part)
    assert report.problem == ""
    assert {re.sub(r"\d", "*", ".".join(key.split(".")[:3])) for key in report.left_out} == {
        "running_counts",
        "heads.*.shape",
        "heads.*.saliency",
    }
