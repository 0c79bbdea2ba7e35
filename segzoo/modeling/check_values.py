"""Checks of a config node's words and numbers, one table each: what every method's own check begins with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from segzoo.errors import ConfigError

# Whether a finite number is allowed, and how to say so after "it must be".
Range = tuple[Callable[[float], bool], str]


def check_choices(name: str, node: CfgNode, choices: Mapping[str, Sequence[str]]) -> None:
    """Checks that words are among the allowed ones.

    Args:
        name: of the node, such as "MODEL.FCOS".
        node: with the keys of `choices`.
        choices: key -> allowed values.

    Raises:
        ConfigError: names the key, its value and the allowed ones.
    """
    for key, allowed in choices.items():
        if node[key] not in allowed:
            raise ConfigError(f"{name}.{key} is {node[key]!r}", f"use one of {', '.join(allowed)}")


def check_ranges(name: str, node: CfgNode, ranges: Mapping[str, Range]) -> None:
    """Checks that values are finite numbers in their range; True and False are none.

    Args:
        name: of the node, such as "MODEL.FCOS".
        node: with the keys of `ranges`.
        ranges: key -> its range.

    Raises:
        ConfigError: names the key, its value and the range.
    """
    for key, (is_allowed, text) in ranges.items():
        if not (is_number(node[key]) and is_allowed(node[key])):
            raise ConfigError(f"{name}.{key} is {node[key]!r}", f"it must be {text}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number and no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
