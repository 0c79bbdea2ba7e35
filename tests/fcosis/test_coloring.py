"""Colour groups against networkx's Largest-First colouring, and what they promise: no two boxes of a colour overlap."""

from __future__ import annotations

import itertools

import networkx
import numpy as np
import pytest
import torch
from torch import Tensor

from fcosis.coloring import Coloring, color_boxes, color_graph, group_numbers


def do_overlap(first: list[float], second: list[float]) -> bool:
    """Oracle: whether the common part of two boxes has an area."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width > 0 and height > 0


def overlap_graph(boxes: list[list[float]]) -> networkx.Graph:
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(boxes)))
    pairs = itertools.combinations(range(len(boxes)), 2)
    graph.add_edges_from((i, j) for i, j in pairs if do_overlap(boxes[i], boxes[j]))
    return graph


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) on a coarse grid, so that many touch; some are copies, nested in others, or without area."""
    sides = rng.integers(1, 1 + rng.integers(2, 30), (count, 2)) * 4
    corners = rng.integers(0, 50, (count, 2)) * 4
    boxes = np.concatenate((corners, corners + sides), axis=1).astype(np.float32)
    for index in range(1, count):
        other, kind = boxes[rng.integers(index)], rng.integers(12)
        if kind == 0:
            boxes[index] = other
        elif kind == 1:
            boxes[index] = other + np.array([1, 1, -1, -1], np.float32)
        elif kind == 2:
            # Beside the other one: a side in common.
            boxes[index] = [other[2], other[1], other[2] + 8, other[3]]
        elif kind == 3:
            # Below to the right: a corner in common.
            boxes[index] = [other[2], other[3], other[2] + 8, other[3] + 8]
        elif kind == 4:
            boxes[index, 2] = boxes[index, 0]
        elif kind == 5:
            # A point within the other one.
            boxes[index] = np.tile((other[:2] + other[2:]) / 2, 2)
    return boxes


def test_colors_equal_networkx_and_boxes_of_a_color_do_not_overlap() -> None:
    rng = np.random.default_rng(0)
    num_edges = num_colors = 0
    for _ in range(1000):
        boxes = random_boxes(rng, int(rng.integers(0, 61)))
        coloring = color_boxes(torch.from_numpy(boxes), [len(boxes)])
        graph = overlap_graph(boxes.tolist())
        expected = networkx.greedy_color(graph, strategy="largest_first")
        assert dict(enumerate(coloring.colors.tolist())) == expected
        assert coloring.num_colors == [max(expected.values(), default=-1) + 1]
        assert all(expected[i] != expected[j] for i, j in graph.edges)
        num_edges += graph.number_of_edges()
        num_colors = max(num_colors, *coloring.num_colors)
    assert num_edges > 20_000
    assert num_colors > 8


@pytest.mark.parametrize(
    ("second", "colors"),
    [
        ([8, 0, 16, 8], [0, 0]),
        ([8, 8, 16, 16], [0, 0]),
        ([7, 7, 16, 16], [0, 1]),
        ([0, 0, 8, 8], [0, 1]),
        ([2, 2, 4, 4], [0, 1]),
        ([4, 2, 4, 6], [0, 0]),
        ([3, 3, 3, 3], [0, 0]),
    ],
    ids=["common side", "common corner", "common pixel", "identical", "nested", "line within", "point within"],
)
def test_two_boxes_share_a_color_unless_their_overlap_has_an_area(second: list[int], colors: list[int]) -> None:
    boxes = torch.tensor([[0, 0, 8, 8], second], dtype=torch.float32)
    assert color_boxes(boxes, [2]).colors.tolist() == colors


def test_the_box_with_most_overlaps_has_the_first_color() -> None:
    """A wide box over three small ones, which are apart; the first come first among equals."""
    boxes = torch.tensor([[0, 0, 4, 4], [8, 0, 12, 4], [16, 0, 20, 4], [0, 2, 20, 8]], dtype=torch.float32)
    assert color_boxes(boxes, [4]).colors.tolist() == [1, 1, 1, 0]


def test_300_identical_boxes_have_300_colors() -> None:
    coloring = color_boxes(torch.tensor([[3.0, 4.0, 90.0, 70.0]]).expand(300, 4), [300])
    assert coloring.colors.tolist() == list(range(300))
    assert coloring.num_colors == [300]


def batch_boxes() -> tuple[Tensor, list[int]]:
    rng = np.random.default_rng(3)
    counts = [7, 0, 25, 1, 0, 12]
    return torch.from_numpy(np.concatenate([random_boxes(rng, count) for count in counts])), counts


def test_images_are_colored_apart() -> None:
    boxes, counts = batch_boxes()
    coloring = color_boxes(boxes, counts)
    alone = [color_boxes(own, [len(own)]) for own in boxes.split(counts)]
    assert coloring.colors.tolist() == torch.cat([own.colors for own in alone]).tolist()
    assert coloring.num_colors == [own.num_colors[0] for own in alone]
    assert coloring.num_colors[1] == coloring.num_colors[4] == 0


def test_group_numbers_count_images_and_their_colors() -> None:
    boxes, counts = batch_boxes()
    coloring = color_boxes(boxes, counts)
    groups, group_images = group_numbers(coloring, counts)
    # Oracle: a list of all pairs of image and colour.
    pairs = [(image, color) for image, number in enumerate(coloring.num_colors) for color in range(number)]
    images = [image for image, count in enumerate(counts) for _ in range(count)]
    assert [pairs[group] for group in groups.tolist()] == list(zip(images, coloring.colors.tolist(), strict=True))
    assert group_images.tolist() == [image for image, _ in pairs]


@pytest.mark.parametrize("counts", [[], [0], [0, 0]])
def test_without_objects_there_is_no_group(counts: list[int]) -> None:
    coloring = color_boxes(torch.zeros(0, 4), counts)
    assert coloring.num_colors == [0] * len(counts)
    groups, group_images = group_numbers(coloring, counts)
    for column in (coloring.colors, groups, group_images):
        assert column.shape == (0,)
        assert column.dtype == torch.int64


def test_group_numbers_by_hand() -> None:
    coloring = Coloring(torch.tensor([0, 1, 0, 0, 2, 1]), [2, 0, 3])
    groups, group_images = group_numbers(coloring, [3, 0, 3])
    assert groups.tolist() == [0, 1, 0, 2, 4, 3]
    assert group_images.tolist() == [0, 0, 2, 2, 2]


def test_color_graph_takes_the_smallest_free_color() -> None:
    """A path of five, whose inner vertices come first; then a ring of five, which two colours do not do for."""
    path = np.zeros((5, 5), bool)
    for i in range(4):
        path[i, i + 1] = path[i + 1, i] = True
    assert color_graph(path).tolist() == [1, 0, 1, 0, 1]
    ring = path.copy()
    ring[0, 4] = ring[4, 0] = True
    assert color_graph(ring).tolist() == [0, 1, 0, 1, 2]
