"""Where the objects of a generated scene lie and who hides whom; no colours here.

Shape shorthand: H, W of the scene; h, w of a layer's window, all in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from segzoo.data.scenes.shapes import OUTLINES, fill_polygons, place_outline

# Size = square root of an object's area; as fractions of the scene's side: 16 to 128 px of 256.
MIN_SIZE_FRACTION = 1 / 16
MAX_SIZE_FRACTION = 1 / 2
MAX_OBJECTS = 10
# Nothing is hidden beyond this: an object that would do so to another is put elsewhere.
MIN_VISIBLE_FRACTION = 0.45
PLACEMENT_TRIES = 12

# Chances of an object; those of a hole and of a cut count only where the object is large enough to show it.
NEAR_ANOTHER_CHANCE = 0.42
HOLE_CHANCE = 0.06
CUT_CHANCE = 0.045
BAR_CHANCE = 0.05
# Chance that an object may lie so that it splits others into parts.
SPLIT_CHANCE = 0.12
MIN_CUT_SIZE_PX = 22.0
BAR = -1
# Smaller specks and pinholes do not count as parts and holes.
MIN_PART_PX = 16
MIN_HOLE_PX = 9


@dataclass(frozen=True)
class Layer:
    """One thing that is painted: an object, or a bar that only hides.

    Attributes:
        category: index into CLASS_NAMES, or BAR.
        top, left: of the window in the scene, pixels.
        mask: (h, w) bool, the pixels it covers.
        size_px: scale of the thing, for its texture.
    """

    category: int
    top: int
    left: int
    mask: np.ndarray
    size_px: float

    @property
    def window(self) -> tuple[slice, slice]:
        """The part of the scene that `mask` covers."""
        return slice(self.top, self.top + self.mask.shape[0]), slice(self.left, self.left + self.mask.shape[1])


@dataclass
class Layout:
    """A scene without colours.

    Attributes:
        owner: (H, W) int16, index into `layers` of the topmost one at each pixel, -1 for the background.
        layers: in painting order.
    """

    owner: np.ndarray
    layers: list[Layer] = field(default_factory=list)

    def object_indices(self) -> list[int]:
        """Indices into `layers` of the objects (not of the bars)."""
        return [index for index, layer in enumerate(self.layers) if layer.category != BAR]

    def visible_mask(self, index: int) -> np.ndarray:
        """(H, W) bool: the pixels at which layer `index` is seen."""
        return self.owner == index

    def accepts(self, layers: list[Layer], may_split: bool) -> bool:
        """Whether `layers` can be painted on top: every object stays visible enough and, unless `may_split`, whole."""
        owner = self.owner.copy()
        for offset, layer in enumerate(layers):
            owner[layer.window][layer.mask] = len(self.layers) + offset
        everything = self.layers + layers
        seen = np.bincount(owner.ravel() + 1, minlength=len(everything) + 1)[1:]
        for layer, count in zip(everything, seen, strict=True):
            if layer.category != BAR and count < MIN_VISIBLE_FRACTION * np.count_nonzero(layer.mask):
                return False
        if may_split:
            return True
        seen_before = np.bincount(self.owner.ravel() + 1, minlength=len(everything) + 1)[1:]
        changed = [index for index in self.object_indices() if seen[index] != seen_before[index]]
        return not any(self._is_split(index, owner) for index in changed)

    def _is_split(self, index: int, owner: np.ndarray) -> bool:
        window = self.layers[index].window
        num_parts = count_parts(owner[window] == index)
        return num_parts > 1 and num_parts > count_parts(self.owner[window] == index)

    def add(self, layers: list[Layer]) -> None:
        """Paints `layers` on top."""
        for layer in layers:
            self.owner[layer.window][layer.mask] = len(self.layers)
            self.layers.append(layer)


def count_parts(mask: np.ndarray) -> int:
    """Number of 8-connected parts of at least MIN_PART_PX pixels of an (h, w) bool mask."""
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return int(np.count_nonzero(stats[1:, cv2.CC_STAT_AREA] >= MIN_PART_PX))


def count_holes(mask: np.ndarray) -> int:
    """Number of 4-connected holes of at least MIN_HOLE_PX pixels of an (h, w) bool mask."""
    outside = np.pad(~mask, 1, constant_values=True).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    is_hole = stats[:, cv2.CC_STAT_AREA] >= MIN_HOLE_PX
    is_hole[[0, labels[0, 0]]] = False
    return int(np.count_nonzero(is_hole))


def make_layout(rng: np.random.Generator, height: int, width: int) -> Layout:
    """Draws 1 to 10 objects, sqrt(area) log-uniform from 1/16 to 1/2 of the shorter side, all wholly inside."""
    layout = Layout(np.full((height, width), -1, dtype=np.int16))
    num_objects = int(rng.integers(1, MAX_OBJECTS + 1))
    fractions = np.exp(rng.uniform(np.log(MIN_SIZE_FRACTION), np.log(MAX_SIZE_FRACTION), num_objects))
    sizes = fractions * min(height, width)
    # Large things tend to lie at the back, or they would leave nothing of the small ones.
    order = np.argsort(-np.log(sizes) + rng.uniform(-0.8, 0.8, num_objects), kind="stable")
    for size_px in sizes[order]:
        _add_object(rng, layout, float(size_px))
    return layout


def _add_object(rng: np.random.Generator, layout: Layout, size_px: float) -> None:
    height, width = layout.owner.shape
    category = int(rng.integers(len(OUTLINES)))
    mask = _object_mask(rng, category, size_px, height, width)
    with_bar, may_split = rng.random() < BAR_CHANCE, bool(rng.random() < SPLIT_CHANCE)
    for _ in range(PLACEMENT_TRIES):
        top, left = _choose_corner(rng, layout, mask)
        layers = [Layer(category, top, left, mask, size_px)]
        if with_bar:
            layers.append(_bar_across(rng, layers[0], height, width))
        if layout.accepts(layers, may_split):
            layout.add(layers)
            return


def _object_mask(rng: np.random.Generator, category: int, size_px: float, height: int, width: int) -> np.ndarray:
    """(h, w) bool mask, tight, that fits into the scene."""
    is_large_enough = size_px >= MIN_CUT_SIZE_PX
    with_hole = bool(rng.random() < HOLE_CHANCE) and is_large_enough
    with_cut = bool(rng.random() < CUT_CHANCE) and is_large_enough
    while True:
        polygons = place_outline(OUTLINES[category](rng), size_px, with_hole)
        extent = np.ceil(polygons[0].max(axis=0)).astype(int)
        if extent[0] <= width and extent[1] <= height:
            break
    mask = fill_polygons(polygons, int(extent[1]), int(extent[0]))
    if with_cut:
        mask &= ~_band(rng, mask, gap_px=max(3.0, rng.uniform(0.08, 0.15) * size_px))
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]


def _band(rng: np.random.Generator, mask: np.ndarray, gap_px: float) -> np.ndarray:
    """(h, w) bool: a straight band through the middle of a mask, roughly across its long axis."""
    points = np.argwhere(mask).astype(np.float64)
    center = points.mean(axis=0)
    normal_angle = _long_axis(points - center) + rng.uniform(-0.35, 0.35)
    normal = np.array([np.sin(normal_angle), np.cos(normal_angle)])  # (row, col)
    distances = (points - center) @ normal
    shift = rng.uniform(-0.25, 0.25) * (distances.max() - distances.min()) / 2
    rows, cols = np.indices(mask.shape)
    along = (rows - center[0]) * normal[0] + (cols - center[1]) * normal[1] - shift
    return np.abs(along) <= gap_px / 2


def _long_axis(offsets: np.ndarray) -> float:
    """Angle in radians (from +x towards +y) of the main axis of (P, 2) offsets (row, col)."""
    var_row, var_col = np.mean(offsets[:, 0] ** 2), np.mean(offsets[:, 1] ** 2)
    return 0.5 * float(np.arctan2(2 * np.mean(offsets[:, 0] * offsets[:, 1]), var_col - var_row))


def _bar_across(rng: np.random.Generator, layer: Layer, height: int, width: int) -> Layer:
    """A bar that hides a band of the object and reaches a little beyond it at both sides."""
    thickness_px = max(4.0, rng.uniform(0.12, 0.2) * layer.size_px)
    margin = int(np.ceil(max(6.0, 0.15 * layer.size_px)))
    top, left = max(0, layer.top - margin), max(0, layer.left - margin)
    bottom = min(height, layer.top + layer.mask.shape[0] + margin)
    right = min(width, layer.left + layer.mask.shape[1] + margin)
    window = np.zeros((bottom - top, right - left), dtype=bool)
    window[layer.top - top :, layer.left - left :][: layer.mask.shape[0], : layer.mask.shape[1]] = layer.mask
    return Layer(BAR, top, left, _band(rng, window, thickness_px), layer.size_px)


def _choose_corner(rng: np.random.Generator, layout: Layout, mask: np.ndarray) -> tuple[int, int]:
    """(top, left) of the window: anywhere, or (often) so that the object lies across the edge of another."""
    room = np.array(layout.owner.shape) - mask.shape
    corner = rng.integers(0, room + 1)
    objects = layout.object_indices()
    if objects and rng.random() < NEAR_ANOTHER_CHANCE:
        other = layout.layers[objects[int(rng.integers(len(objects)))]]
        anchors = np.argwhere(other.mask)
        anchor = anchors[int(rng.integers(len(anchors)))] + (other.top, other.left)
        own = np.argwhere(mask)
        corner = np.clip(anchor - own[int(rng.integers(len(own)))], 0, room)
    return int(corner[0]), int(corner[1])
