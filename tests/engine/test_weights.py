"""MODEL.WEIGHTS: what fits, what does not, and what is refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from segzoo.engine import weights
from segzoo.engine.weights import load_weights, read_zoo_pickle
from segzoo.errors import CheckpointError


class Evil:
    """Unpickling it would run a command."""

    def __reduce__(self) -> tuple[Callable, tuple[str]]:
        return os.system, ("true",)


class BackboneAndHead(nn.Module):
    def __init__(self, num_classes: int = 2) -> None:
        super().__init__()
        self.backbone = nn.Sequential()
        self.backbone.add_module("stem", nn.Conv2d(3, 4, 3))
        self.backbone.add_module("stage", nn.Conv2d(4, 5, 3))
        self.head = nn.Conv2d(5, num_classes, 1)


def test_load_weights_prefers_the_average(tmp_path: Path) -> None:
    source, target = BackboneAndHead(), BackboneAndHead()
    average = {"head.bias": torch.full((2,), 9.0)}
    torch.save({"model": source.state_dict(), "ema": {"updates": 1, "shadow": average}}, tmp_path / "model.pth")
    load_weights(target, str(tmp_path / "model.pth"))
    assert torch.equal(target.head.weight, source.head.weight)
    assert target.head.bias.tolist() == [9.0, 9.0]


def test_load_weights_of_another_head_lists_groups_unless_allowed(tmp_path: Path) -> None:
    state = BackboneAndHead(num_classes=5).state_dict()
    state["extra.weight"] = state.pop("backbone.stage.bias")
    torch.save({"model": state}, tmp_path / "model.pth")
    target = BackboneAndHead()
    before = target.head.weight.detach().clone()
    with pytest.raises(CheckpointError) as caught:
        load_weights(BackboneAndHead(), str(tmp_path / "model.pth"))
    message = str(caught.value)
    assert "missing in the file (1): backbone.stage.bias" in message
    assert "unexpected in the file (1): extra.weight" in message
    assert "wrong shape (file -> model) (2): head.weight (5, 5, 1, 1) -> (2, 5, 1, 1)" in message
    assert "--allow-head-mismatch" in message
    load_weights(target, str(tmp_path / "model.pth"), allow_head_mismatch=True)
    assert torch.equal(target.backbone.stage.weight, state["backbone.stage.weight"])
    assert torch.equal(target.head.weight, before)


def test_load_weights_of_a_foreign_file_is_refused_even_if_mismatch_is_allowed(tmp_path: Path) -> None:
    torch.save({"alien.weight": torch.ones(1)}, tmp_path / "alien.pth")
    torch.save({"epoch": 3, "notes": "x"}, tmp_path / "notes.pth")
    for name, reason in (("alien.pth", "none of its 1 entries fits"), ("notes.pth", "not a tensor")):
        with pytest.raises(CheckpointError, match=reason):
            load_weights(BackboneAndHead(), str(tmp_path / name), allow_head_mismatch=True)


def test_load_weights_of_an_imagenet_pickle_fills_the_backbone_by_name(tmp_path: Path) -> None:
    # Without "backbone.", and with a classifier that no detector has.
    stem = np.full((4, 3, 3, 3), 2.0, np.float32)
    arrays = {"stem.weight": stem, "stage.weight": np.ones((5, 4, 3, 3), np.float32), "fc.weight": np.ones((9, 5))}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "imagenet.pkl").write_bytes(pickle.dumps(content))
    model = BackboneAndHead()
    load_weights(model, str(tmp_path / "imagenet.pkl"))
    assert torch.equal(model.backbone.stem.weight, torch.from_numpy(stem))
    assert torch.equal(model.backbone.stage.weight, torch.ones(5, 4, 3, 3))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_read_zoo_pickle_reads_arrays_of_any_protocol(tmp_path: Path, protocol: int) -> None:
    content = {"blobs": {"conv1_w": np.arange(6.0).reshape(2, 3), "scale": np.float32(2.5), "list": [1, "a", b"x"]}}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    loaded = read_zoo_pickle(str(tmp_path / "zoo.pkl"))["blobs"]
    assert np.array_equal(loaded["conv1_w"], content["blobs"]["conv1_w"])
    assert loaded["scale"] == np.float32(2.5)


def test_read_zoo_pickle_refuses_code_and_garbage(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"model": Evil()}))
    with pytest.raises(CheckpointError, match=r"evil.pkl: refused: the file asks for (posix|os|nt).system"):
        read_zoo_pickle(str(tmp_path / "evil.pkl"))
    whole = pickle.dumps({"model": np.ones(100)})
    for number, content in enumerate((b"", whole[:60], b"no pickle at all", pickle.dumps([1]))):
        (tmp_path / f"{number}.pkl").write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{number}.pkl"):
            read_zoo_pickle(str(tmp_path / f"{number}.pkl"))


def test_load_weights_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> str:
        raise OSError("Name or service not known")

    monkeypatch.setattr(weights.PathManager, "get_local_path", fail)
    url = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    with pytest.raises(CheckpointError) as caught:
        load_weights(BackboneAndHead(), url)
    assert "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl" in str(caught.value)
    assert "MODEL.WEIGHTS <file>" in str(caught.value)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_weights(BackboneAndHead(), "nowhere.pth")
