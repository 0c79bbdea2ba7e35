"""OrienMask's raw maps from the authors' weights against those of the authors' own program (reference data)."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from orienmask.convert import CONVERTERS
from segzoo.engine.convert import Source, convert
from tests.orienmask.networks import full_network

pytestmark = pytest.mark.reference
# Theirs, in the order of ours: finest first.
SCALES = ("s8", "s16", "s32")


def test_converted_weights_give_the_authors_maps(parity: ModuleType) -> None:
    converter = next(converter for converter in CONVERTERS if converter.name == "orienmask")
    renamed = convert(Source(parity.state_dict("orienmask_fpnplus")), converter, "authors.pth")
    assert renamed.unexpected == []
    network = full_network().eval()
    result = network.load_state_dict(renamed.weights, strict=False)
    assert result.unexpected_keys == []
    assert all(name.endswith("num_batches_tracked") for name in result.missing_keys)
    images, raw = parity.load("orienmask_inputs")["image"][:2], parity.load("orienmask_fpnplus_outputs")["raw"]
    for index in range(2):
        with torch.no_grad():
            maps = network(images[index : index + 1].float())
        # Theirs hold the orientations of one scale's anchors each, ours those of all, in this order of scales.
        orientations = torch.cat([raw[scale]["orien"][index] for scale in SCALES])
        pairs = [(maps.orientations[0], orientations)]
        pairs += [(level[0], raw[scale]["bbox"][index]) for level, scale in zip(maps.boxes, SCALES, strict=True)]
        for ours, theirs in pairs:
            theirs = theirs.float()
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3 * float(theirs.std()))
