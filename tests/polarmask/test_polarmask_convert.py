"""The authors' weights in our PolarMask: every value in its place, so that the network computes the same."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from polarmask.convert import CONVERTERS, RULES, polarmask_fit
from polarmask.polarmask import PolarMask
from projects import get_cfg
from segzoo.config import merge_config
from segzoo.engine.convert import Fit, Source, compare, convert, model_shapes, needed_options
from segzoo.engine.renaming import Renamed, rename
from segzoo.engine.weights import load_weights
from segzoo.errors import CheckpointError
from segzoo.modeling import deformable as deformable_convolution
from tests.polarmask.authors_network import AuthorsPolarMask

OFFICIAL = "configs/polarmask_R50_official.yaml"
# Rows of the authors' naming, written out.
PAIRS = [
    ("backbone.conv1.weight", "backbone.bottom_up.stem.conv1.weight"),
    ("backbone.bn1.running_mean", "backbone.bottom_up.stem.conv1.norm.running_mean"),
    ("backbone.layer1.0.conv1.weight", "backbone.bottom_up.res2.0.conv1.weight"),
    ("backbone.layer3.22.bn2.running_var", "backbone.bottom_up.res4.22.conv2.norm.running_var"),
    ("backbone.layer4.0.downsample.0.weight", "backbone.bottom_up.res5.0.shortcut.weight"),
    ("backbone.layer4.0.downsample.1.bias", "backbone.bottom_up.res5.0.shortcut.norm.bias"),
    ("backbone.layer2.3.conv2_offset.bias", "backbone.bottom_up.res3.3.conv2_offset.bias"),
    ("backbone.layer2.3.conv2.conv_offset.bias", "backbone.bottom_up.res3.3.conv2_offset.bias"),
    ("neck.lateral_convs.0.conv.weight", "backbone.fpn_lateral3.weight"),
    ("neck.lateral_convs.2.conv.bias", "backbone.fpn_lateral5.bias"),
    ("neck.fpn_convs.1.conv.weight", "backbone.fpn_output4.weight"),
    ("neck.fpn_convs.3.conv.weight", "backbone.top_block.p6.weight"),
    ("neck.fpn_convs.4.conv.bias", "backbone.top_block.p7.bias"),
    ("bbox_head.cls_convs.0.conv.weight", "head.cls_tower.0.weight"),
    ("bbox_head.reg_convs.2.gn.bias", "head.box_tower.7.bias"),
    ("bbox_head.mask_convs.3.conv.weight", "head.mask_tower.9.weight"),
    ("bbox_head.reg_convs.9.bias", "head.box_tower.9.bias"),
    ("bbox_head.cls_convs.10.weight", "head.cls_tower.10.weight"),
    ("bbox_head.mask_convs.6.conv_offset_mask.weight", "head.mask_tower.6.offset.weight"),
    ("bbox_head.polar_cls.bias", "head.cls_logits.bias"),
    ("bbox_head.fcos_cls.bias", "head.cls_logits.bias"),
    ("bbox_head.fcos_reg.weight", "head.box_pred.weight"),
    ("bbox_head.polar_mask.weight", "head.ray_pred.weight"),
    ("module.bbox_head.fcos_centerness.weight", "head.centerness.weight"),
]


def official_config(options: list[str]) -> CfgNode:
    words = [*options, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""]
    return merge_config(get_cfg(), OFFICIAL, words)


def converted(weights: dict[str, Tensor]) -> tuple[Renamed, Fit, list[str]]:
    """Weights under our names, where they belong, and the options that the official preset lacks."""
    renamed = convert(Source(weights), CONVERTERS[0], "authors.pth")
    fit = polarmask_fit(renamed.weights)
    return renamed, fit, needed_options(official_config([]), fit.options)


@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=[theirs for theirs, _ in PAIRS])
def test_rules_rename_each_kind_of_entry(theirs: str, ours: str) -> None:
    assert rename({theirs: torch.zeros(1)}, RULES).used == {theirs: ours}


@pytest.mark.parametrize(
    "name",
    [
        "backbone.fc.weight",
        "backbone.layer5.0.conv1.weight",
        "neck.lateral_convs.3.conv.weight",
        "neck.fpn_convs.5.conv.weight",
        "bbox_head.cls_convs.0.conv.bias",
        "bbox_head.polar_reg.weight.extra",
        "mask_head.polar_reg.weight",
    ],
)
def test_rules_leave_other_programs_entries_alone(name: str) -> None:
    renamed = rename({name: torch.zeros(1)}, RULES)
    assert renamed.unexpected == [name]
    assert renamed.used == {}


@pytest.mark.parametrize(
    ("groups", "deformable", "prefix"), [(1, False, "polar"), (1, True, "fcos"), (4, False, "fcos"), (4, True, "polar")]
)
def test_converted_weights_give_the_maps_of_the_authors_network(
    groups: int, deformable: bool, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authors = AuthorsPolarMask(groups, deformable, prefix)
    renamed, _, options = converted(authors.state_dict())
    torch.save({"model": renamed.weights}, tmp_path / "converted.pth")
    model = PolarMask(official_config(options)).eval()
    load_weights(model, str(tmp_path / "converted.pth"))
    # Both by the same operator: thirty layers of random weights enlarge the rounding of another one.
    monkeypatch.setattr(deformable_convolution, "grid_deform_conv2d", deform_conv2d)
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        ours, theirs = model.dense_outputs(images), authors(images)
    pairs = {"cls_logits": "cls", "centerness_logits": "centerness", "box_logits": "reg", "ray_logits": "mask"}
    for our_name, their_name in pairs.items():
        for level, expected in enumerate(theirs[their_name]):
            tolerance = 1e-4 * float(expected.std()) + 1e-6
            torch.testing.assert_close(getattr(ours, our_name)[level], expected, rtol=0, atol=tolerance)


def test_every_entry_is_used_and_lands_unchanged(tmp_path: Path) -> None:
    weights = {f"module.{name}": value for name, value in AuthorsPolarMask(deformable=True).state_dict().items()}
    renamed, _, options = converted(weights)
    assert renamed.unexpected == []
    assert [*renamed.dropped.values()] == [[name for name in weights if name.endswith("num_batches_tracked")]]
    model = PolarMask(official_config(options))
    assert set(renamed.used.values()) == set(model.state_dict())
    torch.save({"model": renamed.weights}, tmp_path / "converted.pth")
    load_weights(model, str(tmp_path / "converted.pth"))
    assert_equal(model, renamed, weights)


def assert_equal(model: nn.Module, renamed: Renamed, weights: dict[str, Tensor]) -> None:
    loaded = model.state_dict()
    assert len(loaded) == len(renamed.used)
    for theirs, ours in renamed.used.items():
        assert torch.equal(loaded[ours].flatten(), weights[theirs].flatten()), f"{theirs} -> {ours}"


def test_polarmask_fit_of_a_plain_network_says_what_it_is() -> None:
    _, fit, options = converted(AuthorsPolarMask(num_rays=24).state_dict())
    assert fit.config_file == OFFICIAL
    assert fit.found["backbone"] == "ResNet-50; deformable: no stage"
    assert fit.found["head"] == "5 classes, 24 rays, a box branch, plain towers of 4 convolutions"
    cfg = official_config(options)
    assert cfg.MODEL.POLARMASK.NUM_RAYS == 24
    assert cfg.MODEL.FCOS.NUM_CLASSES == 5
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is True
    assert cfg.INPUT.FORMAT == "BGR"


def test_polarmask_fit_of_a_deformable_resnext_gives_its_options() -> None:
    _, fit, options = converted(AuthorsPolarMask(groups=4, deformable=True).state_dict())
    assert fit.found["backbone"] == "ResNeXt-50, 4 groups; deformable: res3, res4, res5"
    assert "deformable towers" in fit.found["head"]
    cfg = official_config(options)
    assert cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE == [False, True, True, True]
    assert (cfg.MODEL.RESNETS.DEFORM_MODULATED, cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS) == (False, 1)
    assert (cfg.MODEL.RESNETS.NUM_GROUPS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP) == (4, 2)
    assert cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.FCOS.DEFORMABLE is True


def without(weights: dict[str, Tensor], pattern: str) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if not re.search(pattern, name)}


def test_polarmask_fit_without_a_box_branch_takes_boxes_from_contours() -> None:
    weights = without(AuthorsPolarMask().state_dict(), r"reg_convs|polar_reg|scales_bbox")
    renamed, fit, options = converted(weights)
    assert "no box branch" in fit.found["head"]
    cfg = official_config(options)
    assert (cfg.MODEL.POLARMASK.BOX_BRANCH, cfg.MODEL.POLARMASK.BOXES) == (False, "contours")
    assert compare(renamed, model_shapes(cfg), {}).problem == ""


@pytest.mark.parametrize("blocks", [(3, 4, 23, 3), (3, 8, 36, 3)])
def test_polarmask_fit_tells_the_depth_by_the_blocks(blocks: tuple[int, ...]) -> None:
    renamed, _, _ = converted(AuthorsPolarMask().state_dict())
    resnet = "backbone.bottom_up."
    for stage, number in enumerate(blocks, start=2):
        for index in range(number):
            renamed.weights[f"{resnet}res{stage}.{index}.conv3.weight"] = torch.zeros(1, 1, 1, 1)
    assert polarmask_fit(renamed.weights).options["MODEL.RESNETS.DEPTH"] == {23: 101, 36: 152}[blocks[2]]


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"polar_cls\.weight", r"missing in the file: head\.cls_logits\.weight"),
        (r"layer3\.5\.conv3", r"\[3, 4, 5, 3\] blocks"),
        (r"neck\.", r"missing in the file: backbone\.fpn_output3\.weight"),
    ],
)
def test_polarmask_fit_of_a_cut_file_names_what_is_missing(pattern: str, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        converted(without(AuthorsPolarMask().state_dict(), pattern))


def test_polarmask_fit_refuses_filters_of_no_convolution() -> None:
    weights = AuthorsPolarMask().state_dict()
    for odd in (torch.tensor(1.0), torch.zeros(0, 32, 3, 3)):
        with pytest.raises(CheckpointError, match=r"head\.ray_pred\.weight is"):
            converted({**weights, "bbox_head.polar_mask.weight": odd})


def test_compare_lists_what_is_missing_unexpected_and_of_another_shape() -> None:
    weights = without(AuthorsPolarMask().state_dict(), r"layer2\.1\.bn2\.running_mean|scales_mask\.4")
    weights["bbox_head.polar_centerness.bias"] = torch.zeros(2)
    weights["bbox_head.cls_convs.4.gn.bias"] = torch.zeros(32)
    weights["bbox_head.loss.gamma"] = torch.zeros(1)
    renamed, _, options = converted(weights)
    report = compare(renamed, model_shapes(official_config(options)), {})
    assert set(report.missing) == {"backbone.bottom_up.res3.1.conv2.norm.running_mean", "head.mask_scales.4.scale"}
    assert set(report.renamed.unexpected) == {"bbox_head.cls_convs.4.gn.bias", "bbox_head.loss.gamma"}
    assert report.wrong_shape == ["head.centerness.bias (2,) -> (1,)"]
    assert "missing in the file (2)" in report.problem


def test_convert_refuses_two_namings_of_one_layer() -> None:
    weights = AuthorsPolarMask().state_dict()
    weights["bbox_head.fcos_cls.bias"] = weights["bbox_head.polar_cls.bias"]
    with pytest.raises(CheckpointError, match=r"authors.pth: .*polar_cls\.bias' and .*fcos_cls\.bias' are both head"):
        converted(weights)


@pytest.mark.reference
def test_authors_weights_fit_the_official_preset_key_by_key(parity: ModuleType, tmp_path: Path) -> None:
    weights = parity.state_dict("polarmask")
    renamed, _, options = converted(weights)
    assert options == []
    report = compare(renamed, model_shapes(official_config(options)), {})
    assert report.problem == ""
    assert report.parameters == 34_739_651
    assert set(renamed.used) == {name for name in weights if not name.endswith("num_batches_tracked")}
    model = PolarMask(official_config([]))
    torch.save({"model": renamed.weights}, tmp_path / "converted.pth")
    load_weights(model, str(tmp_path / "converted.pth"))
    assert_equal(model, renamed, weights)
