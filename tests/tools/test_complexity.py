"""Parameters and GMAC against figures worked out by hand and against the papers'."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from segzoo.errors import ConfigError
from segzoo.evaluation.complexity import Complexity, measure_complexity
from segzoo.modeling.backbones.deformable_resnet import DeformableBottleneck
from segzoo.modeling.deformable import ModulatedDeformConv
from tools import complexity as command


class SmallNetwork(nn.Module):
    """A convolution, a norm, a deformable convolution and a product outside of any child."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.filter = nn.Parameter(torch.randn(5, 4, 3, 3))
        self.shared = self.conv

    def dense_outputs(self, images: Tensor) -> dict[str, list[Tensor]]:
        features = self.norm(self.conv(images))
        offsets = torch.zeros(1, 18, *features.shape[-2:])
        deformed = deform_conv2d(features, offsets, self.filter, padding=1)
        return {"maps": [deformed, torch.matmul(deformed[0, 0], deformed[0, 1].T)]}


def test_measure_complexity_small_network_equals_the_count_by_hand() -> None:
    counted = measure_complexity(SmallNetwork().eval(), (8, 6))
    convolution, deformable, product = 48 * 4 * 27, 48 * 5 * 36, 8 * 6 * 8
    assert counted.parameters == counted.trainable_parameters == (4 * 27 + 4) + 8 + 5 * 36
    assert counted.gmac * 1e9 == pytest.approx(convolution + deformable + product)
    assert counted.parts["conv"].macs == convolution
    assert counted.parts["other"].macs == deformable + product
    assert counted.notes == []


class DeformableNetwork(nn.Module):
    """A modulated deformable convolution with stride, and a deformable bottleneck with groups."""

    def __init__(self) -> None:
        super().__init__()
        self.modulated = ModulatedDeformConv(3, 8, padding=1, stride=2)
        self.block = DeformableBottleneck(8, 16, bottleneck_channels=4, num_groups=2, deform_num_groups=2, norm="")

    def dense_outputs(self, images: Tensor) -> Tensor:
        return self.block(self.modulated(images))


def test_measure_complexity_deformable_convolutions_count_as_plain_ones_and_their_offsets() -> None:
    counted = measure_complexity(DeformableNetwork().eval(), (8, 6))
    outputs = 4 * 3
    modulated, offsets_and_masks = outputs * 8 * 27, outputs * 27 * 27
    assert counted.parts["modulated"].macs == modulated + offsets_and_masks
    shortcut, conv1, conv3 = outputs * 16 * 8, outputs * 4 * 8, outputs * 16 * 4
    conv2, conv2_offset = outputs * 4 * 18, outputs * 36 * 36
    assert counted.parts["block"].macs == shortcut + conv1 + conv2 + conv2_offset + conv3
    assert counted.notes == []


def test_measure_complexity_model_without_dense_outputs_says_that_only_the_backbone_counts() -> None:
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 2, 1)
    model.head = nn.Conv2d(2, 2, 1)
    counted = measure_complexity(model.eval(), (4, 4))
    assert counted.gmac * 1e9 == pytest.approx(16 * 6)
    assert counted.parameters == 8 + 6
    assert "only its backbone" in counted.notes[0]


def test_measure_complexity_empty_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="--size"):
        measure_complexity(SmallNetwork(), (0, 8))


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert command.main([*arguments, "--json"] if "--json" not in arguments else list(arguments)) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_complexity_polarmask_r50_gives_the_papers_figures(capsys: pytest.CaptureFixture[str]) -> None:
    # The paper prints 32.09 M (trainable parameters) and 202.3 GMAC.
    result = run_json(capsys, "--config-file", "configs/polarmask_R50.yaml", "--size", "800", "1280")
    assert result["parameters"] == 32_369_082
    assert result["trainable_parameters"] == 32_093_562
    assert result["gmac"] == pytest.approx(202.0, rel=0.01)
    assert result["gmac"] == pytest.approx(sum(part["gmac"] for part in result["parts"].values()), abs=0.01)


def test_complexity_polarmask_r50_with_box_branch_gives_the_papers_figures(capsys: pytest.CaptureFixture[str]) -> None:
    # Table 3 prints 34.46 M and 252.7 GMAC.
    result = run_json(capsys, "--config-file", "configs/polarmask_R50_official.yaml", "--size", "800", "1280")
    assert result["parameters"] == 34_739_651
    assert result["trainable_parameters"] == 34_464_131
    assert result["gmac"] == pytest.approx(252.6, rel=0.01)


def test_complexity_pretrained_timm_backbone_needs_no_weights_and_keeps_its_norms_frozen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    monkeypatch.setattr("importlib.util.find_spec", lambda *_: None)
    arguments = ("--config-file", "configs/polarmask_EffLite0.yaml", "--size", "100", "128")
    result = run_json(capsys, *arguments)
    assert result["image_size"] == [128, 128]
    assert "padded" in result["notes"][0]
    assert result["parameters"] > result["trainable_parameters"]
    thawed = run_json(capsys, *arguments, "--json", "MODEL.TIMM.FREEZE_BN", "False", "MODEL.TIMM.FREEZE_AT", "0")
    assert thawed["parameters"] == thawed["trainable_parameters"] == result["parameters"]


def test_complexity_unknown_key_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["--config-file", "configs/polarmask_R50.yaml", "MODEL.NO_SUCH_KEY", "1"])
    assert code == ConfigError.exit_code == 2
    assert "NO_SUCH_KEY" in capsys.readouterr().err


def test_complexity_error_with_json_is_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config-file", "configs/polarmask_R50.yaml", "--size", "0", "8"]
    assert command.main(arguments) == 2
    assert capsys.readouterr().out == ""
    assert command.main([*arguments, "--json"]) == 2
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert list(result) == ["error"]
    assert "--size" in result["error"]
    assert captured.err.startswith(f"error: {result['error']}")


def test_table_ends_with_the_totals() -> None:
    table = Complexity((8, 8), measure_complexity(SmallNetwork().eval(), (8, 8)).parts).table()
    assert table.splitlines()[-1].split()[:3] == ["total", "300", "300"]


def test_complexity_orienmask_has_the_papers_counts_and_mask_maps(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--config-file", "configs/orienmask_D53.yaml", "--size", "544", "544")
    result = run_json(capsys, *arguments)
    assert result["parameters"] == result["trainable_parameters"] == 63_662_063
    assert result["gmac"] == pytest.approx(87.1, rel=0.01)
    assert result["parts"]["backbone"]["gmac"] == pytest.approx(42.0, rel=0.01)
    assert result["mask_map_bytes"] / 2**20 == pytest.approx(1.27, abs=0.005)
    base = run_json(capsys, "--config-file", "configs/orienmask_D53_base.yaml", "--size", "64", "64")
    assert base["parameters"] == 63_596_143


def test_table_says_how_large_the_maps_are_that_masks_are_built_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--config-file", "configs/quick/orienmask_scenes.yaml", "--size", "256", "256"]) == 0
    # 18 maps of 64 x 64 values of 4 bytes.
    assert "feature maps used to build masks: 0.28 MiB" in capsys.readouterr().out


def test_complexity_centermask_dla34_has_the_trunks_counts_and_no_map_of_shapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run_json(capsys, "--config-file", "configs/centermask_DLA34.yaml", "--size", "512", "512")
    assert result["parts"]["backbone.bottom_up"]["gmac"] == pytest.approx(16.0, rel=0.01)
    # CenterNet's 19 675 892 less two projections (1x1 convolution and norm) that it never uses, and what shapes (1024
    # channels at S = 32) and a saliency of 80 classes have.
    hidden, unused = 64 * 9 * 256 + 256, (64 * 128 + 2 * 128) + (128 * 256 + 2 * 256)
    assert result["parameters"] == 19_675_892 - unused + 2 * hidden + 257 * (1024 + 80)
    # Heatmap, offset, size and saliency are dense, shapes are made where there is an object.
    per_cell = 4 * 64 * 9 * 256 + 256 * (80 + 2 + 2 + 80)
    assert result["parts"]["heads"]["gmac"] == pytest.approx(128 * 128 * per_cell / 1e9, rel=0.001)
    assert result["mask_map_bytes"] == (64 + 80) * 128 * 128 * 4


def test_complexity_centermask_fcos_counts_towers_and_saliency_but_no_map_of_shapes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = run_json(capsys, "--config-file", "configs/centermask_fcos_R101.yaml", "--size", "128", "128")
    conv = 256 * 256 * 9
    norms, predictions = 2 * 256, 256 * 9 * (80 + 4 + 1 + 1024) + 80 + 4 + 1 + 1024
    assert result["parts"]["head"]["parameters"] == 8 * (conv + norms) + predictions + 5
    assert result["parts"]["saliency"]["parameters"] == 4 * (conv + norms) + 257 * 80
    locations = sum((128 // stride) ** 2 for stride in (8, 16, 32, 64, 128))
    assert result["parts"]["head"]["gmac"] == pytest.approx(locations * (8 * conv + 256 * 9 * 85) / 1e9, rel=0.001)
    assert result["parts"]["saliency"]["gmac"] == pytest.approx(16**2 * (4 * conv + 256 * 80) / 1e9, rel=0.001)
    assert result["mask_map_bytes"] == 4 * (256 * locations + 80 * 32**2)
