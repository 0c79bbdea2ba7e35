"""Targets have two ways to the same: one mask after the other on a CPU, all masks at once on a device."""

from __future__ import annotations

import pytest

from polarmask import official, rays, shapes


@pytest.fixture(params=["as on a CPU", "as on a device"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a test with the functions of either way, which both work on tensors of the CPU."""
    if request.param == "as on a device":
        monkeypatch.setattr(shapes, "window_shapes", shapes.run_shapes)
        monkeypatch.setattr(rays, "cpu_pairs", rays.device_pairs)
        monkeypatch.setattr(official, "walk_contours", official.run_contours)
